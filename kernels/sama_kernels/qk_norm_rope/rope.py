"""Rotary positions of a [source | semantic | target] sequence, or of the stretch of it that a rank holds.

Shape legend: S tokens of the stretch, D head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

Grid = tuple[int, int, int]


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Splits a head's features over the axes (time, height, width).

    Args:
        head_dim: Features of one head; even.

    Returns:
        Feature counts with h = w = 2 * (d // 6) and t = d - h - w (128 -> 44, 42, 42).

    Source: Wan2.1's rotary embedding, as SAMA's released code uses it (Cynthiazxy123/SAMA@5c6bb5b).
    """
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


class TokenPlaces(NamedTuple):
    """Segments of a sequence and their patch grids, in tokens, patches and entries of `RopeTables.flat_table`."""

    first_token: int
    num_source: int
    num_semantic: int
    num_target: int
    source_height: int
    source_width: int
    source_time_offset: int
    target_height: int
    target_width: int
    height_entry: int
    width_entry: int


@dataclass(frozen=True)
class RopeTables:
    """Everything a rotation needs: small per-axis tables and where each segment's tokens lie.

    Attributes:
        axis_factors: For (t, h, w), complex64 ``[positions, features / 2]``: cosine + i sine of each angle.
        source_grid: Patch grid (t, h, w) of the source segment, or None without one.
        num_semantic: Semantic tokens between source and target.
        target_grid: Patch grid (t, h, w) of the target segment.
        source_time_offset: Added to the source's time positions (the ``shifted_rope`` ablation).
        rotate_semantic_to_zero: True: semantic factors are complex zero, so their q and k vanish (the released
            weights' behaviour); False: they are not rotated.
        first_token: Position in the sequence of the first token to rotate.
        num_tokens: Tokens to rotate (S); those beyond the sequence's end are padding, and vanish.
    """

    axis_factors: tuple[Tensor, Tensor, Tensor]
    source_grid: Grid | None
    num_semantic: int
    target_grid: Grid
    source_time_offset: int
    rotate_semantic_to_zero: bool
    first_token: int
    num_tokens: int

    @cached_property
    def factors(self) -> Tensor:
        """Expanded factors, complex64 ``[S, D / 2]``; a fused kernel reads the axis tables instead."""
        held = self._sequence_factors()[self.first_token : self.first_token + self.num_tokens]
        return pad(held, (0, 0, 0, self.num_tokens - held.shape[0]))

    @cached_property
    def flat_table(self) -> Tensor:
        """The axis tables one after the other, float32 ``[positions x pairs of t, then h, then w, 2]``.

        A few thousand numbers whatever the number of tokens: what a fused kernel reads.
        """
        return torch.cat([torch.view_as_real(table).flatten(0, 1) for table in self.axis_factors]).contiguous()

    @cached_property
    def places(self) -> TokenPlaces:
        """Where the tokens lie, as the plain numbers that a fused kernel takes."""
        time, height, _ = (tuple(table.shape) for table in self.axis_factors)
        source, target = self.source_grid or (0, 1, 1), self.target_grid
        return TokenPlaces(
            first_token=self.first_token,
            num_source=prod(source),
            num_semantic=self.num_semantic,
            num_target=prod(target),
            source_height=source[1],
            source_width=source[2],
            source_time_offset=self.source_time_offset,
            target_height=target[1],
            target_width=target[2],
            height_entry=prod(time),
            width_entry=prod(time) + prod(height),
        )

    @property
    def pairs(self) -> tuple[int, int]:
        """Feature pairs of the time axis, and of the height and of the width axis (which have as many)."""
        return self.axis_factors[0].shape[1], self.axis_factors[1].shape[1]

    def _sequence_factors(self) -> Tensor:
        segments: list[Tensor] = []
        if self.source_grid is not None:
            segments.append(self._grid_factors(self.source_grid, self.source_time_offset))
        if self.num_semantic:
            segments.append(self._semantic_factors())
        segments.append(self._grid_factors(self.target_grid, 0))
        return torch.cat(segments)

    def _grid_factors(self, grid: Grid, time_offset: int) -> Tensor:
        frames, height, width = grid
        time_factors, height_factors, width_factors = self.axis_factors
        return torch.cat(
            [
                time_factors[time_offset : time_offset + frames, None, None].expand(frames, height, width, -1),
                height_factors[None, :height, None].expand(frames, height, width, -1),
                width_factors[None, None, :width].expand(frames, height, width, -1),
            ],
            dim=-1,
        ).flatten(0, 2)

    def _semantic_factors(self) -> Tensor:
        half = sum(table.shape[1] for table in self.axis_factors)
        factor = 0.0 if self.rotate_semantic_to_zero else 1.0
        shape, device = (self.num_semantic, half), self.axis_factors[0].device
        return torch.full(shape, factor, dtype=torch.complex64, device=device)


def build_rope_tables(
    head_dim: int,
    source_grid: Grid | None,
    num_semantic: int,
    target_grid: Grid,
    *,
    source_time_offset: int = 0,
    rotate_semantic_to_zero: bool = True,
    first_token: int = 0,
    num_tokens: int | None = None,
    theta: float = 10000.0,
    device: torch.device | str = "cpu",
) -> RopeTables:
    """Builds the per-axis tables for one sequence.

    Source and target use the same positions 0, 1, 2, ... on their own patch grids; the type embedding tells them
    apart. Factors are computed in float64 and rounded once to float32.

    Args:
        head_dim: Features of one head; even.
        source_grid: Patch grid (t, h, w) of the source, or None.
        num_semantic: Number of semantic tokens.
        target_grid: Patch grid (t, h, w) of the target.
        source_time_offset: Added to the source's time positions.
        rotate_semantic_to_zero: See `RopeTables`.
        first_token: See `RopeTables`.
        num_tokens: See `RopeTables`; the whole sequence by default.
        theta: Base of the frequencies.
        device: Where the tables live.

    Returns:
        The tables, ready for `qk_norm_rope`.

    Source: SAMA section 3.2 (type embeddings over shared positions); Cynthiazxy123/SAMA@5c6bb5b.
    """
    if num_tokens is None:
        num_tokens = (prod(source_grid) if source_grid else 0) + num_semantic + prod(target_grid)
    grids = [grid for grid in (source_grid, target_grid) if grid is not None]
    sizes = [max(grid[axis] for grid in grids) for axis in range(3)]
    sizes[0] += source_time_offset
    tables = []
    for size, width in zip(sizes, axis_widths(head_dim), strict=True):
        exponents = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
        positions = torch.arange(size, dtype=torch.float64, device=device)
        angles = torch.outer(positions, theta**-exponents)
        tables.append(torch.polar(torch.ones_like(angles), angles).to(torch.complex64))
    return RopeTables(
        axis_factors=(tables[0], tables[1], tables[2]),
        source_grid=source_grid,
        num_semantic=num_semantic,
        target_grid=target_grid,
        source_time_offset=source_time_offset,
        rotate_semantic_to_zero=rotate_semantic_to_zero,
        first_token=first_token,
        num_tokens=num_tokens,
    )
