"""The cosine codec: orthonormal, causal in its first frame, and as good on real motion as its basis allows."""

from __future__ import annotations

import pytest
import torch

from sama_data.synth import make_pair
from sama_mega.encoders.dct import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    DctCodec,
    block_basis,
    measure_statistics,
    whitening_scale,
)


def clip(index: int = 0) -> torch.Tensor:
    """A synthetic clip [1,3,17,64,64] in [-1,1]."""
    frames = torch.from_numpy(make_pair(4, index).source)
    return frames.movedim(-1, 0)[None].float() / 127.5 - 1


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    """Peak signal to noise of pixels in [-1,1], dB."""
    return float(-10 * ((first - second) / 2).square().mean().log10())


def test_basis_is_orthonormal() -> None:
    """The 16 blocks are unit vectors at right angles."""
    basis = block_basis()
    assert basis.shape == (16, 768)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(16), atol=5e-6, rtol=0)


@pytest.mark.parametrize("frames, height, width", [(1, 64, 64), (5, 32, 48), (17, 64, 64)])
def test_shapes(frames: int, height: int, width: int) -> None:
    """Frames, height and width shrink by 4 (after the first), 8 and 8, and come back."""
    codec = DctCodec()
    latents = codec.encode(torch.zeros(2, 3, frames, height, width))
    assert latents.shape == (2, 16, 1 + (frames - 1) // 4, height // 8, width // 8)
    assert latents.dtype == torch.float32
    assert codec.decode(latents).shape == (2, 3, frames, height, width)


def test_decode_inverts_encode_on_its_own_range() -> None:
    """What the basis can show survives a second round trip unchanged."""
    codec = DctCodec()
    # Dimmed, so that no pixel is clamped on the way.
    once = codec.decode(codec.encode(clip() * 0.4))
    torch.testing.assert_close(codec.decode(codec.encode(once)), once, atol=1e-4, rtol=0)


def test_synthetic_clips_survive() -> None:
    """The reconstruction of a synthetic clip is worth looking at."""
    codec = DctCodec()
    assert min(psnr(codec.decode(codec.encode(clip(i))), clip(i)) for i in range(4)) > 23


def test_every_channel_can_be_seen() -> None:
    """Silencing any one channel costs picture quality: none is dead or stored twice."""
    codec = DctCodec()
    pixels = torch.cat([clip(index) for index in range(8)])
    latents = codec.encode(pixels)
    full = psnr(codec.decode(latents), pixels)
    for channel in range(16):
        silent = latents.clone()
        silent[:, channel] = silent[:, channel].mean()
        assert psnr(codec.decode(silent), pixels) < full


def test_first_latent_sees_the_first_frame_only() -> None:
    """Later frames change later latents only: an image is the first frame of a video."""
    codec = DctCodec()
    video = clip()
    image = codec.encode(video[:, :, :1])
    torch.testing.assert_close(codec.encode(video)[:, :, :1], image)
    changed = video.clone()
    changed[:, :, 5:] = 0
    difference = (codec.encode(changed) - codec.encode(video)).abs().amax((0, 1, 3, 4))
    assert difference[:2].max() == 0 and difference[2:].min() > 0


def test_channel_statistics_are_those_of_the_world() -> None:
    """The stored constants are what the documented command measures."""
    frames = torch.stack([torch.from_numpy(make_pair(0, i).source) for i in range(256)])
    mean, std = measure_statistics(frames)
    torch.testing.assert_close(torch.tensor(CHANNEL_MEAN), torch.tensor(mean), atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(CHANNEL_STD), torch.tensor(std), atol=2e-3, rtol=0)


def test_latents_have_unit_variance_on_average() -> None:
    """Noise of unit variance is as loud as the latents, over all channels together."""
    std = torch.tensor(CHANNEL_STD)
    variance = (std * whitening_scale(std)).square()
    assert abs(float(variance.mean()) - 1.0) < 1e-4
    # Between no whitening (the ratio of variances) and full whitening (1).
    assert 1.0 < variance.max() / variance.min() < float((std.max() / std.min()).square())


def test_wrong_shapes_are_refused() -> None:
    """A length that is not 4k+1, odd sizes and a wrong number of channels are errors."""
    codec = DctCodec()
    with pytest.raises(ValueError, match="4k\\+1"):
        codec.encode(torch.zeros(1, 3, 4, 64, 64))
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 3, 5, 60, 64))
    with pytest.raises(ValueError, match="12 channels"):
        codec.decode(torch.zeros(1, 12, 1, 8, 8))
