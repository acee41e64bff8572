"""Whole tensors of the released checkpoint into ours, and back: renamed, and attention's projections fused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sama_mega.config.errors import CheckpointError
from sama_mega.parameters.names import released_names


def fuse(parts: list[Tensor], num_heads: int) -> Tensor:
    """Interleaves projections ``[dim, ...]`` head by head into one ``[parts * dim, ...]``."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack([part.unflatten(0, (num_heads, -1)) for part in parts], dim=1).flatten(0, 2)


def unfuse(fused: Tensor, num_parts: int, num_heads: int) -> list[Tensor]:
    """Undoes `fuse`."""
    if num_parts == 1:
        return [fused]
    by_head = fused.unflatten(0, (num_heads, num_parts, -1))
    return [part.flatten(0, 1).contiguous() for part in by_head.unbind(1)]


def from_released(tensors: Mapping[str, Tensor], names: Iterable[str], num_heads: int) -> dict[str, Tensor]:
    """Renames and fuses whole tensors of the released checkpoint into ours.

    Args:
        tensors: Released name -> tensor.
        names: All parameter names of ours.
        num_heads: Attention heads.

    Returns:
        Our name -> whole tensor.

    Raises:
        CheckpointError: A tensor is missing, or one was not used.
    """
    wanted = {name: released_names(name) for name in names}
    used = {released for parts in wanted.values() for released in parts}
    missing, unused = sorted(used - tensors.keys()), sorted(tensors.keys() - used)
    if missing or unused:
        raise CheckpointError(
            f"released weights do not fit the recipe's model: missing {missing or 'none'}, unused {unused or 'none'}"
        )
    return {name: fuse([tensors[part] for part in parts], num_heads) for name, parts in wanted.items()}


def to_released(tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Splits and renames whole tensors of ours into the released checkpoint's; undoes `from_released`."""
    released: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = released_names(name)
        released.update(zip(parts, unfuse(tensor, len(parts), num_heads), strict=True))
    return released
