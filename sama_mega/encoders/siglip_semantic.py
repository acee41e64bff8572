"""SigLIP's vision tower, as transformers builds it, behind the SemanticEncoder interface."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.interface import Identity, arithmetic
from sama_mega.encoders.weights_folder import (
    WeightNames,
    WeightsFolder,
    import_class,
    load_frozen,
    open_weights_folder,
    read_json,
)

KEY = "encoders.semantic_path"
NEEDED_BY = "encoders.semantic (siglip)"
_PREPROCESSOR_FILE = "preprocessor_config.json"
# The text tower, what ties it to images, and the pooling head, whose result is not a feature here.
_NAMES = WeightNames(strip="vision_model.", unread=("text_model.", "logit_", "head."))


class SiglipSemanticEncoder:
    """Average-pooled cells of the last hidden state's grid in raster order, then the whole grid's mean; unscaled.

    Frames are encoded one by one: a frame's features do not depend on what else is in the batch.
    """

    def __init__(
        self, path: Path, grid: int, global_token: bool, device: torch.device | str, dtype: torch.dtype
    ) -> None:
        """Loads the weights.

        Args:
            path: Folder of a SigLIP vision tower, or of a whole SigLIP model.
            grid: Local tokens in height and in width.
            global_token: Whether the mean follows them.
            device: Where the weights live and the results appear.
            dtype: Of the weights and of the arithmetic; pooling is float32.

        Raises:
            ConfigError: The folder does not hold a SigLIP vision tower with at least `grid` x `grid` patches, or
                transformers is not installed.
        """
        folder = open_weights_folder(KEY, path, "image_encoder")
        _require_plain_scaling(folder)
        settings = _vision_settings(folder) | {"vision_use_head": False}
        config_class = import_class("transformers", "SiglipVisionConfig", NEEDED_BY)
        tower_class = import_class("transformers", "SiglipVisionModel", NEEDED_BY)
        self._tower = load_frozen(lambda: tower_class(config_class.from_dict(settings)), folder, _NAMES, device, dtype)
        _number_positions(self._tower, device)
        self._folder = folder
        self._device = torch.device(device)
        self._dtype = dtype
        self._grid = grid
        self._global_token = global_token
        config = self._tower.config
        self._image_size: int = config.image_size
        self._patches = config.image_size // config.patch_size
        self.semantic_dim: int = config.hidden_size
        self.tokens_per_anchor = grid * grid + int(global_token)
        if grid > self._patches:
            raise ConfigError(
                f"anchor.local_grid ({grid}) must be at most the {self._patches} patches a side of {folder.label}"
            )

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames [B,N,3,H,W] in [-1,1] to [B,N*tokens_per_anchor,semantic_dim] float32."""
        batch, anchors = frames.shape[:2]
        tokens = torch.cat([self._encode_frame(frame) for frame in frames.flatten(0, 1).split(1)])
        return tokens.reshape(batch, anchors * self.tokens_per_anchor, self.semantic_dim)

    def identity(self) -> Identity:
        """Weights, config, pooling and precision."""
        return {
            "encoder": "siglip",
            "weights": self._folder.digest(),
            "grid": self._grid,
            "global_token": self._global_token,
            "arithmetic": arithmetic(self._dtype),
        }

    def _encode_frame(self, frame: Tensor) -> Tensor:
        """[1,3,H,W] -> [1,tokens_per_anchor,semantic_dim]."""
        size = (self._image_size, self._image_size)
        scaled = F.interpolate(frame.to(self._device).float(), size, mode="bicubic", antialias=True).clamp(-1, 1)
        hidden = self._tower(pixel_values=scaled.to(self._dtype)).last_hidden_state.float()
        patches = hidden.transpose(1, 2).unflatten(2, (self._patches, self._patches))
        local = F.adaptive_avg_pool2d(patches, (self._grid, self._grid)).flatten(2).transpose(1, 2)
        if not self._global_token:
            return local
        return torch.cat([local, hidden.mean(dim=1, keepdim=True)], dim=1)


def _vision_settings(folder: WeightsFolder) -> dict[str, object]:
    """The vision tower's part of the config, of a tower or of a whole model."""
    kind = folder.config.get("model_type")
    if kind not in ("siglip", "siglip_vision_model"):
        raise ConfigError(f"{folder.label} holds a model of type {kind}: it must be siglip or siglip_vision_model")
    settings = folder.config.get("vision_config") if kind == "siglip" else folder.config
    if not isinstance(settings, dict):
        raise ConfigError(f"{folder.label}: the config of a whole SigLIP model must hold a vision_config")
    return dict(settings)


def _require_plain_scaling(folder: WeightsFolder) -> None:
    """The tower must want pixels in [-1,1], which is what it is given."""
    file = folder.path / _PREPROCESSOR_FILE
    if not file.is_file():
        return
    given = read_json(folder.key, file)
    for name in ("image_mean", "image_std"):
        values = given.get(name, [0.5] * 3)
        if not all(math.isclose(value, 0.5) for value in values):
            raise ConfigError(f"{folder.label}: {name} in {_PREPROCESSOR_FILE} ({values}) must be 0.5 for each colour")


def _number_positions(tower: nn.Module, device: torch.device | str) -> None:
    """Fills the one buffer that is not saved: the numbers of the patches."""
    for module in tower.modules():
        positions = module._buffers.get("position_ids")
        if positions is not None:
            numbers = torch.arange(positions.shape[-1], device=device)
            module._buffers["position_ids"] = numbers.expand(positions.shape)
    left = [name for name, buffer in tower.named_buffers() if buffer.is_meta]
    assert not left, left
