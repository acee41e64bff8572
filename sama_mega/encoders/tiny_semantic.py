"""The embedded semantic encoder: fixed pseudo-random features of a frame's average-pooled cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sama_mega.encoders.hash_text import hashed_unit_vector
from sama_mega.encoders.interface import Identity, arithmetic

_CELL = 4  # every grid cell is pooled to 4x4 colours
_GAIN = 3.0


class TinySemanticEncoder:
    """A seeded two-layer random network behind the SemanticEncoder interface; nothing is trained.

    A frame is pooled to grid x grid cells of 4x4 colours; each cell's 48 numbers pass a fixed random projection and a
    tanh. Local tokens come in raster order, then (with `global_token`) their mean.
    """

    def __init__(
        self, grid: int, semantic_dim: int, global_token: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        """Builds the projection [semantic_dim, 48] from hashed directions, the same on every machine."""
        self.semantic_dim = semantic_dim
        self.tokens_per_anchor = grid * grid + int(global_token)
        self._grid = grid
        self._global_token = global_token
        width = 3 * _CELL * _CELL
        rows = [hashed_unit_vector(f"semantic:{row}", width) for row in range(semantic_dim)]
        self._projection = torch.stack(rows).to(device)

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames [B,N,3,H,W] in [-1,1] to [B,N*tokens_per_anchor,semantic_dim] float32 of about unit size."""
        batch, anchors, channels, height, width = frames.shape
        side = self._grid * _CELL
        pooled = F.adaptive_avg_pool2d(frames.reshape(-1, channels, height, width).float(), (side, side))
        cells = pooled.reshape(-1, channels, self._grid, _CELL, self._grid, _CELL)
        cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch * anchors, self._grid**2, -1)
        local = torch.tanh(cells @ self._projection.t()) * _GAIN
        tokens = torch.cat([local, local.mean(dim=1, keepdim=True)], dim=1) if self._global_token else local
        return tokens.reshape(batch, anchors * self.tokens_per_anchor, self.semantic_dim)

    def identity(self) -> Identity:
        """Its sizes: the rest is in the name."""
        return {
            "encoder": "tiny",
            "grid": self._grid,
            "global_token": self._global_token,
            "width": self.semantic_dim,
            "arithmetic": arithmetic(),
        }
