"""Wan's VAE: what diffusers computes, the posterior's mean, normalised per channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_mega.encoders import wan_vae as module
from sama_mega.encoders.wan_vae import TILE_PIXELS, WanVideoCodec
from tests.support.pretrained_folders import WAN_VAE, pretrained_weights, write_wan_vae

PRECISIONS = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained_weights(tmp_path_factory)


def reference(root: Path, dtype: torch.dtype) -> Any:
    """diffusers' own loader."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(root / "vae", torch_dtype=dtype, local_files_only=True).eval()


def clips(count: int, frames: int, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def constants(vae: Any) -> tuple[Tensor, Tensor]:
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.no_grad()
def test_latents_are_the_normalised_mean_of_the_posterior(root: Path, dtype: torch.dtype) -> None:
    vae, pixels = reference(root, dtype), clips(2, 5)
    mean, std = constants(vae)
    moments = [vae.encode(clip.to(dtype)).latent_dist.parameters for clip in pixels.split(1)]
    expected = (torch.cat(moments)[:, :16].float() - mean) / std
    latents = WanVideoCodec(root, "cpu", dtype).encode(pixels)
    assert latents.dtype == torch.float32 and latents.shape == (2, 16, 2, 2, 3)
    assert torch.equal(latents, expected)


@pytest.mark.parametrize("dtype", PRECISIONS)
@torch.no_grad()
def test_pixels_are_what_diffusers_decodes(root: Path, dtype: torch.dtype) -> None:
    vae, latents = reference(root, dtype), torch.randn(2, 16, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, std = constants(vae)
    expected = [vae.decode((one * std + mean).to(dtype)).sample.float() for one in latents.split(1)]
    pixels = WanVideoCodec(root, "cpu", dtype).decode(latents)
    assert pixels.dtype == torch.float32 and pixels.shape == (2, 3, 9, 16, 24)
    assert torch.equal(pixels, torch.cat(expected)) and pixels.abs().max() <= 1


def test_constants_come_from_the_config(tmp_path: Path) -> None:
    mean, std = [0.5 * channel for channel in range(16)], [1.0 + channel for channel in range(16)]
    write_wan_vae(tmp_path / "a")
    write_wan_vae(tmp_path / "b", latents_mean=mean, latents_std=std)
    plain, changed = (WanVideoCodec(tmp_path / name, "cpu", torch.float32) for name in "ab")
    assert [plain._mean[0].item(), plain._std[15].item()] == pytest.approx([-0.7571, 1.9160])  # Wan2.1's
    pixels = clips(1, 1)
    raw = plain.encode(pixels) * plain._std + plain._mean
    expected = (raw - torch.tensor(mean).view(-1, 1, 1, 1)) / torch.tensor(std).view(-1, 1, 1, 1)
    torch.testing.assert_close(changed.encode(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 5, 9, 13])
def test_clips_of_4k_plus_1_frames_go_there_and_back(root: Path, frames: int) -> None:
    codec = WanVideoCodec(root, "cpu", torch.float32)
    assert (codec.latent_channels, codec.temporal_stride, codec.spatial_stride) == (16, 4, 8)
    latents = codec.encode(clips(1, frames))
    assert latents.shape == (1, 16, 1 + (frames - 1) // 4, 2, 3)
    assert codec.decode(latents).shape == (1, 3, frames, 16, 24)


def test_the_first_frame_has_its_own_latent(root: Path) -> None:
    codec, clip = WanVideoCodec(root, "cpu", torch.float32), clips(1, 9)
    later = clip.clone()
    later[:, :, 1:] = 0
    assert torch.equal(codec.encode(clip)[:, :, 0], codec.encode(later)[:, :, 0])
    torch.testing.assert_close(codec.encode(clip[:, :, :1])[:, :, 0], codec.encode(clip)[:, :, 0])


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20), (1, 1, 5, 16, 16)])
def test_other_shapes_are_refused(root: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="needs"):
        WanVideoCodec(root, "cpu", torch.float32).encode(torch.zeros(shape))


def test_latents_of_other_channels_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="15 channels"):
        WanVideoCodec(root, "cpu", torch.float32).decode(torch.zeros(1, 15, 1, 2, 2))


def test_nothing_is_differentiated(root: Path) -> None:
    codec = WanVideoCodec(root, "cpu", torch.float32)
    latents = codec.encode(clips(1, 1).requires_grad_())
    assert not latents.requires_grad and not codec.decode(latents.requires_grad_()).requires_grad


def test_a_vae_of_other_channels_says_so(tmp_path: Path) -> None:
    write_wan_vae(tmp_path, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    assert WanVideoCodec(tmp_path, "cpu", torch.float32).latent_channels == 4 != WAN_VAE["z_dim"]


# --- tiles ----------------------------------------------------------------------------------------


def smooth_clip(height: int, width: int, frames: int = 5) -> Tensor:
    small = torch.rand(1, 3, frames, 4, 4, generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(small, size=(frames, height, width), mode="trilinear")


class Sizes:
    """Notes the largest picture that a network is given."""

    def __init__(self, codec: WanVideoCodec) -> None:
        self.seen = {"encoder": 0, "decoder": 0}
        for name in self.seen:
            getattr(codec._vae, name).register_forward_pre_hook(self._note(name))

    def _note(self, name: str) -> Any:
        def note(_: Any, arguments: tuple[Tensor, ...]) -> None:
            height, width = arguments[0].shape[-2:]
            self.seen[name] = max(self.seen[name], height * width)

        return note


@torch.no_grad()
def test_tiles_bound_what_the_network_sees_and_change_little(root: Path) -> None:
    """Seams may show in attention alone, which looks at a tile: 5% of the latents' spread, 10% of the pixels'."""
    whole, tiled = (WanVideoCodec(root, "cpu", torch.float32, tiling) for tiling in ("off", "on"))
    sizes, pixels = Sizes(tiled), smooth_clip(320, 400)
    truth, latents = whole.encode(pixels), tiled.encode(pixels)
    assert latents.shape == truth.shape == (1, 16, 2, 40, 50)
    assert (latents - truth).abs().mean() < 0.05 * truth.std()
    expected, decoded = whole.decode(truth), tiled.decode(truth)
    assert decoded.shape == expected.shape == pixels.shape
    assert (decoded - expected).abs().mean() < 0.1 * expected.std()
    assert sizes.seen == {"encoder": TILE_PIXELS**2, "decoder": (TILE_PIXELS // 8) ** 2}


@torch.no_grad()
def test_large_pictures_are_tiled_by_themselves(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = WanVideoCodec(root, "cpu", torch.float32, "auto")
    monkeypatch.setattr(module, "AUTO_TILING_PIXELS", 272 * 272)
    sizes = Sizes(codec)
    codec.encode(smooth_clip(272, 272, 1))
    assert sizes.seen["encoder"] == 272 * 272
    sizes.seen["encoder"] = 0
    codec.encode(smooth_clip(272, 280, 1))
    assert sizes.seen["encoder"] <= TILE_PIXELS**2


def test_features_of_tiles_are_not_taken_for_those_of_whole_pictures(root: Path) -> None:
    whole, tiled = (WanVideoCodec(root, "cpu", torch.float32, tiling) for tiling in ("off", "on"))
    assert "tiling" not in whole.identity() and whole.identity() != tiled.identity()
