"""Patches and time features: the released code's orders, written out element by element."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sama_mega.model.embeddings import patch_grid, patchify, sinusoidal_features, unpatchify

SHAPES = [((2, 3, 2, 4, 6), (1, 2, 2)), ((1, 16, 1, 2, 2), (1, 2, 2)), ((3, 2, 4, 9, 5), (2, 3, 5))]


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_patch_features_read_channels_first(shape: tuple[int, ...], patch_size: tuple[int, int, int]) -> None:
    """Tokens by (t, h, w), a token's features by (c, pt, ph, pw): the patch convolution's weight order."""
    latents = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    patches = patchify(latents, patch_size)
    batch, channels = shape[:2]
    t, h, w = patch_grid(latents, patch_size)
    assert patches.shape == (t * h * w, batch, channels * math.prod(patch_size))
    for token, (i, j, k) in enumerate(itertools.product(range(t), range(h), range(w))):
        (pt, ph, pw) = patch_size
        cut = latents[:, :, i * pt : (i + 1) * pt, j * ph : (j + 1) * ph, k * pw : (k + 1) * pw]
        assert torch.equal(patches[token], cut.flatten(1))


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_patchify_then_linear_is_the_released_convolution(
    shape: tuple[int, ...], patch_size: tuple[int, int, int]
) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(7, shape[1], *patch_size, generator=torch.Generator().manual_seed(1))
    convolved = torch.nn.functional.conv3d(latents, weight, stride=patch_size).flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(patchify(latents, patch_size) @ weight.flatten(1).T, convolved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "patch_size"), SHAPES)
def test_head_features_are_written_channels_last(shape: tuple[int, ...], patch_size: tuple[int, int, int]) -> None:
    """A token's outputs by (pt, ph, pw, c): the head's order is not the embedding's."""
    batch, channels = shape[:2]
    grid = patch_grid(torch.empty(shape), patch_size)
    pt, ph, pw = patch_size
    patches = torch.arange(math.prod(shape), dtype=torch.float32).view(math.prod(grid), batch, -1)
    latents = unpatchify(patches, grid, patch_size)
    assert latents.shape == shape
    for token, (i, j, k) in enumerate(itertools.product(*map(range, grid))):
        for feature, (a, b, c, channel) in enumerate(itertools.product(*map(range, (*patch_size, channels)))):
            written = latents[:, channel, i * pt + a, j * ph + b, k * pw + c]
            assert torch.equal(written, patches[token, :, feature])


def test_time_features_are_cosines_then_sines() -> None:
    timesteps = torch.tensor([0.0, 1.5, 999.25, 1000.0])
    features = sinusoidal_features(timesteps, 8)
    assert features.dtype == torch.float32
    for row, timestep in zip(features.tolist(), timesteps.tolist(), strict=True):
        angles = [timestep / 10000 ** (i / 4) for i in range(4)]
        expected = [math.cos(angle) for angle in angles] + [math.sin(angle) for angle in angles]
        # 1e-7 at an angle of 1000 needs float64 inside: float32 would be off by 3e-5.
        assert row == pytest.approx(expected, abs=1e-7)
