"""Which implementation of an operation runs: one table and one rule for every operation. Imports no torch."""

from __future__ import annotations

BUILT: dict[str, tuple[str, ...]] = {
    "adaln": ("reference",),
    "attention": ("torch", "reference"),
    "flow_matching": ("reference",),
    "gate_residual": ("reference",),
    "pretext": ("reference",),
    "qk_norm_rope": ("reference",),
    "semantic_loss": ("reference",),
}
"""The backends of every operation, the preferred one first."""

ATTENTION = "attention"
"""The operation whose backend is chosen on its own (`kernels.attention`)."""


def choose_backend(operation: str, requested: str) -> str:
    """Resolves a requested backend to one that exists, never silently to another one.

    Args:
        operation: A key of BUILT.
        requested: ``"auto"`` or a backend's name.

    Returns:
        One of the operation's backends.

    Raises:
        ValueError: The requested backend is not built for this operation.
    """
    built = BUILT[operation]
    if requested == "auto":
        return built[0]
    if requested not in built:
        raise ValueError(f"{requested!r} is not built for {operation}: use auto or {', '.join(built)}")
    return requested


def require_built(ops: str, attention: str) -> None:
    """Checks a choice of backends for all operations at once, before anything is computed.

    Args:
        ops: For every operation but attention.
        attention: For attention.

    Raises:
        ValueError: One of them is not built; names the recipe's key.
    """
    for operation in BUILT:
        key, requested = ("attention", attention) if operation == ATTENTION else ("ops", ops)
        try:
            choose_backend(operation, requested)
        except ValueError as error:
            raise ValueError(f"kernels.{key} ({requested}): {error}") from None
