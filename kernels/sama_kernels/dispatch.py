"""Which implementation of an operation runs: one table and one rule for every operation. Imports no torch."""

from __future__ import annotations

import os

BUILT: dict[str, tuple[str, ...]] = {
    "adaln": ("triton", "reference"),
    "attention": ("torch", "reference"),
    "flow_matching": ("triton", "reference"),
    "gate_residual": ("triton", "reference"),
    "pretext": ("triton", "reference"),
    "qk_norm_rope": ("triton", "reference"),
    "semantic_loss": ("triton", "reference"),
}
"""The backends of every operation, the preferred one first."""

ATTENTION = "attention"
"""The operation whose backend is chosen on its own (`kernels.attention`)."""

_ANY_DEVICE = frozenset({"reference", "torch"})
_TRUE = frozenset({"1", "true", "yes", "on", "y"})


def interpreting() -> bool:
    """Whether triton runs its kernels on the CPU; read by triton when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE


def choose_backend(operation: str, requested: str, device_type: str) -> str:
    """Resolves a requested backend to one that exists and runs here, never silently to another one.

    ``auto`` is triton on CUDA and the reference elsewhere. For attention it is torch's: the faster libraries differ
    by shape and by what is installed, so whoever holds the shapes measures them and asks by name
    (`sama_kernels.attention.measure`).

    Args:
        operation: A key of BUILT.
        requested: ``"auto"`` or a backend's name.
        device_type: Where the tensors are: ``"cuda"``, ``"cpu"``.

    Returns:
        One of the operation's backends.

    Raises:
        ValueError: The requested backend is not built for this operation, or cannot run on this kind of device.
    """
    require_named(operation, requested)
    if requested == "auto":
        if operation == ATTENTION:
            return "torch"
        return "triton" if device_type == "cuda" and "triton" in BUILT[operation] else "reference"
    if requested in _ANY_DEVICE or device_type == "cuda" or (requested == "triton" and interpreting()):
        return requested
    elsewhere = "TRITON_INTERPRET=1 or " if requested == "triton" else ""
    others = ", ".join(name for name in BUILT[operation] if name in _ANY_DEVICE)
    raise ValueError(
        f"{requested!r} needs {elsewhere}a CUDA device and the tensors are on {device_type}: use auto or {others}"
    )


def require_named(operation: str, requested: str) -> None:
    """Checks the name of a backend alone, whatever the device.

    Raises:
        ValueError: The operation has no such backend.
    """
    built = BUILT[operation]
    if requested not in ("auto", *built):
        raise ValueError(f"{requested!r} is not built for {operation}: use auto or {', '.join(built)}")


def require_built(ops: str, attention: str, device_type: str | None = None) -> None:
    """Checks a choice of backends for all operations at once, before anything is computed.

    Args:
        ops: For every operation but attention.
        attention: For attention.
        device_type: Where the run computes; None: not known yet, so the names alone are checked.

    Raises:
        ValueError: One of them is not built, or cannot run there; names the recipe's key.
    """
    for operation in BUILT:
        key, requested = ("attention", attention) if operation == ATTENTION else ("ops", ops)
        try:
            if device_type is None:
                require_named(operation, requested)
            else:
                choose_backend(operation, requested, device_type)
        except ValueError as error:
            raise ValueError(f"kernels.{key} ({requested}): {error}") from None
