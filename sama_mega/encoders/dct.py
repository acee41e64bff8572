r"""The embedded video codec: the 16 strongest coefficients of an orthonormal 4x8x8 cosine transform.

Nothing is learned and nothing is downloaded. A frame block of 4x8x8 pixels becomes 16 channels, as a Wan latent has:
brightness keeps nine coefficients and the two colour axes four and three. The first frame is repeated four times, so
that T = 4k+1 frames give k+1 latents, as Wan's causal VAE does.

The channel statistics below were measured once on 256 clips of the synthetic world with
    python -c "import torch; from sama_data.synth import make_pair; from sama_mega.encoders.dct import \
    measure_statistics as measure; clips = [torch.from_numpy(make_pair(0, i).source) for i in range(256)]; \
    print(measure(torch.stack(clips)))"
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from sama_mega.encoders.interface import Identity, arithmetic

# (colour axis, frequency in time, height, width) of the 16 channels, in order.
COEFFICIENTS: tuple[tuple[int, int, int, int], ...] = (
    (0, 0, 0, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 1),
    (0, 0, 2, 0),
    (0, 0, 0, 2),
    (0, 1, 0, 0),
    (0, 1, 0, 1),
    (0, 1, 1, 0),
    (1, 0, 0, 0),
    (1, 0, 0, 1),
    (1, 0, 1, 0),
    (1, 0, 1, 1),
    (2, 0, 0, 0),
    (2, 0, 0, 1),
    (2, 0, 1, 0),
)
BLOCK = (4, 8, 8)
_WHITENING_EXPONENT = 0.25
COLOUR_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))

CHANNEL_MEAN: tuple[float, ...] = (
    -3.1546,
    -0.0005,
    -0.0038,
    -0.0003,
    -0.0217,
    -0.0243,
    0.0029,
    -0.0001,
    0.0003,
    0.6749,
    -0.0027,
    0.0019,
    0.0001,
    -0.1398,
    0.003,
    0.0016,
)
CHANNEL_STD: tuple[float, ...] = (
    6.6435,
    1.503,
    1.5086,
    0.5578,
    0.5426,
    0.54,
    1.1537,
    0.3145,
    0.3256,
    3.9474,
    0.9369,
    0.9337,
    0.4183,
    2.5711,
    0.6411,
    0.6342,
)


def cosine_basis(length: int) -> Tensor:
    """Returns the orthonormal DCT-II basis [frequency, position] float64."""
    position = torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi * (position + 0.5) * torch.arange(length, dtype=torch.float64)[:, None] / length)
    basis *= math.sqrt(2.0 / length)
    basis[0] /= math.sqrt(2.0)
    return basis


def block_basis() -> Tensor:
    """Returns the 16 orthonormal basis blocks [16, 3*4*8*8] float32, flattened as (colour, t, h, w)."""
    colours = torch.tensor(COLOUR_AXES, dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    bases = [cosine_basis(length) for length in BLOCK]
    rows = [
        torch.einsum("c,t,h,w->cthw", colours[axis], bases[0][time], bases[1][down], bases[2][across]).flatten()
        for axis, time, down, across in COEFFICIENTS
    ]
    return torch.stack(rows).float()


class DctCodec:
    """Cosine-transform codec behind the VideoCodec interface."""

    latent_channels = len(COEFFICIENTS)
    temporal_stride = BLOCK[0]
    spatial_stride = BLOCK[1]

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Prepares the basis and the channel scales on `device`."""
        self._basis = block_basis().to(device)
        self._mean = torch.tensor(CHANNEL_MEAN, device=device)
        self._scale = whitening_scale(torch.tensor(CHANNEL_STD)).to(device)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encodes pixels [B,3,T,H,W] in [-1,1] to latents [B,16,1+(T-1)/4,H/8,W/8] float32.

        Raises:
            ValueError: T is not 4k+1, or H or W is not a multiple of 8.
        """
        return (self.coefficients(pixels) - _per_channel(self._mean)) * _per_channel(self._scale)

    def coefficients(self, pixels: Tensor) -> Tensor:
        """Returns the bare coefficients [B,16,T',H/8,W/8] of pixels [B,3,T,H,W]; raises as `encode` does."""
        batch, channels, frames, height, width = pixels.shape
        if channels != 3 or frames % 4 != 1 or height % 8 or width % 8:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: the dct codec needs [B,3,4k+1,H,W] with H and W multiples of 8"
            )
        first = pixels[:, :, :1].expand(-1, -1, 3, -1, -1)
        padded = torch.cat([first, pixels], dim=2).float()
        blocks = padded.reshape(batch, 3, (frames + 3) // 4, 4, height // 8, 8, width // 8, 8)
        blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B,T',H/8,W/8,768]
        return (blocks @ self._basis.t()).movedim(-1, 1).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [B,16,T',H/8,W/8] to pixels [B,3,4*(T'-1)+1,H,W] float32, clamped to [-1,1].

        Raises:
            ValueError: the number of channels is not 16.
        """
        batch, channels, times, rows, columns = latents.shape
        if channels != self.latent_channels:
            raise ValueError(f"latents with {channels} channels: the dct codec has {self.latent_channels}")
        coefficients = latents.float() / _per_channel(self._scale) + _per_channel(self._mean)
        blocks = (coefficients.movedim(1, -1) @ self._basis).reshape(batch, times, rows, columns, 3, 4, 8, 8)
        pixels = blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(batch, 3, times * 4, rows * 8, columns * 8)
        # The first latent holds one frame four times: their mean is that frame.
        first = pixels[:, :, :4].mean(dim=2, keepdim=True)
        return torch.cat([first, pixels[:, :, 4:]], dim=2).clamp(-1, 1)

    def identity(self) -> Identity:
        """Coefficients and scales."""
        made_of = (COEFFICIENTS, BLOCK, COLOUR_AXES, CHANNEL_MEAN, CHANNEL_STD, _WHITENING_EXPONENT)
        constants = hashlib.blake2b(repr(made_of).encode(), digest_size=16).hexdigest()
        return {"encoder": "dct", "constants": constants, "arithmetic": arithmetic()}


def whitening_scale(std: Tensor) -> Tensor:
    """Returns the factor per channel that divides by std^0.25 and brings the mean variance to 1.

    Full whitening (1/std) would make the weak coefficients as loud as the strong ones: the model then spends itself
    on what the eye hardly sees. In short runs std^0.25 gave about 1 dB more than std^0.5.
    """
    softened = std.double() ** -_WHITENING_EXPONENT
    return (softened / (std.double() * softened).square().mean().sqrt()).float()


def measure_statistics(frames: Tensor) -> tuple[list[float], list[float]]:
    """Measures (mean, standard deviation) per channel of the bare coefficients of clips [N,T,H,W,3] uint8."""
    codec = DctCodec()
    pixels = frames.movedim(-1, 1).float() / 127.5 - 1.0
    values = codec.coefficients(pixels).movedim(1, 0).flatten(1).double()
    return ([round(v, 4) for v in values.mean(1).tolist()], [round(v, 4) for v in values.std(1).tolist()])


def _per_channel(values: Tensor) -> Tensor:
    """Shapes [16] to broadcast over [B,16,T,H,W]."""
    return values[:, None, None, None]
