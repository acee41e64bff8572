"""SigLIP: the last hidden state of the vision tower, pooled to local cells and one mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sama_mega.encoders.siglip_semantic import SiglipSemanticEncoder
from tests.support.pretrained_folders import SIGLIP, pretrained_weights, write_whole_siglip

PRECISIONS = (torch.float32, torch.bfloat16)
SIZE, SIDE, WIDTH = SIGLIP["image_size"], 5, SIGLIP["hidden_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_weights(tmp_path_factory) / "siglip"


def encoder(folder: Path, grid: int = 2, dtype: torch.dtype = torch.float32, global_token: bool = True) -> Any:
    return SiglipSemanticEncoder(folder, grid, global_token, "cpu", dtype)


def frames(batch: int = 2, anchors: int = 1, height: int = SIZE, width: int = SIZE) -> Tensor:
    return torch.rand(batch, anchors, 3, height, width, generator=torch.Generator().manual_seed(height)) * 2 - 1


@torch.no_grad()
def hidden_states(folder: Path, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """transformers' own loader, frame by frame; float32."""
    from transformers import SiglipVisionModel

    tower = SiglipVisionModel.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    return torch.cat([tower(pixel_values=one.to(dtype)).last_hidden_state for one in pixels.split(1)]).float()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_at_the_finest_grid_tokens_are_the_patches_and_their_mean(folder: Path, dtype: torch.dtype) -> None:
    pixels = frames()
    expected = hidden_states(folder, pixels[:, 0], dtype)
    tokens = encoder(folder, SIDE, dtype).encode(pixels)
    assert tokens.dtype == torch.float32 and tokens.shape == (2, SIDE**2 + 1, WIDTH)
    assert torch.equal(tokens[:, :-1], expected)
    assert torch.equal(tokens[:, -1], expected.mean(dim=1))


def test_cells_are_averages_of_patches_in_raster_order(folder: Path) -> None:
    pixels = frames()
    patches = hidden_states(folder, pixels[:, 0], torch.float32).reshape(2, SIDE, SIDE, WIDTH)
    tokens = encoder(folder, 2).encode(pixels)
    bins = [slice(0, 3), slice(2, 5)]  # of 5 patches in 2 cells the middle one is in both
    expected = torch.stack([patches[:, down, across].mean(dim=(1, 2)) for down in bins for across in bins], dim=1)
    torch.testing.assert_close(tokens[:, :4], expected)
    torch.testing.assert_close(tokens[:, 4], patches.mean(dim=(1, 2)))


def test_the_mean_can_be_left_out(folder: Path) -> None:
    pixels = frames(anchors=3)
    ours = encoder(folder, 2, global_token=False)
    assert ours.tokens_per_anchor == 4 and ours.semantic_dim == WIDTH
    tokens = ours.encode(pixels)
    assert tokens.shape == (2, 12, WIDTH)
    with_mean = encoder(folder, 2).encode(pixels).unflatten(1, (3, 5))
    assert torch.equal(tokens.unflatten(1, (3, 4)), with_mean[:, :, :4])


def test_anchors_follow_one_another(folder: Path) -> None:
    pixels, ours = frames(anchors=2), encoder(folder)
    both = ours.encode(pixels)
    assert torch.equal(both, torch.cat([ours.encode(pixels[:, :1]), ours.encode(pixels[:, 1:])], dim=1))


@pytest.mark.parametrize(("height", "width"), [(48, 80), (112, 64), (20, 20)])
def test_frames_are_scaled_as_the_published_preprocessing_scales_them(folder: Path, height: int, width: int) -> None:
    # Far from black and white: where a curve shoots over them Pillow cuts it off between its two passes.
    levels = np.random.default_rng(0).integers(64, 192, (height, width, 3), dtype=np.uint8)
    scaled = np.asarray(Image.fromarray(levels).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    by_pillow = torch.from_numpy(scaled.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    given = torch.from_numpy(levels).permute(2, 0, 1)[None, None].float() / 127.5 - 1
    seen: list[Tensor] = []
    ours = encoder(folder)
    ours._tower.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    ours.encode(given)
    # Pillow rounds to whole levels, after each of its two passes.
    assert (seen[0] - by_pillow).abs().max() <= 2.01 / 127.5
    assert seen[0].abs().max() <= 1


def test_frames_of_the_towers_size_are_not_touched(folder: Path) -> None:
    pixels = frames()
    torch.testing.assert_close(F.interpolate(pixels[:, 0], (SIZE, SIZE), mode="bicubic", antialias=True), pixels[:, 0])


def test_a_whole_siglip_gives_its_vision_tower(tmp_path: Path) -> None:
    folder, pixels = write_whole_siglip(tmp_path), frames()
    tokens = encoder(folder, SIDE).encode(pixels)
    assert torch.equal(tokens[:, :-1], hidden_states(folder, pixels[:, 0], torch.float32))


def test_nothing_is_differentiated(folder: Path) -> None:
    assert not encoder(folder).encode(frames().requires_grad_()).requires_grad
