"""Which implementation of an operation runs: one rule for every operation."""

from __future__ import annotations

from collections.abc import Sequence


def choose_backend(operation: str, requested: str, built: Sequence[str] = ("reference",)) -> str:
    """Resolves a requested backend to one that exists, never silently to another one.

    Args:
        operation: The operation's name, for the message.
        requested: ``"auto"`` or a backend's name.
        built: The operation's backends, the preferred one first.

    Returns:
        One of ``built``.

    Raises:
        ValueError: The requested backend is not built for this operation.
    """
    if requested == "auto":
        return built[0]
    if requested not in built:
        raise ValueError(f"kernels: {operation} has no {requested!r} backend: use auto or {', '.join(built)}")
    return requested
