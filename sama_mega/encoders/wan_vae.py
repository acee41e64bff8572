"""Wan2.1's video VAE, as diffusers builds it, behind the VideoCodec interface."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import FRAMES_PER_LATENT, LATENT_STRIDE
from sama_mega.encoders.interface import Identity, Tiling, arithmetic
from sama_mega.encoders.weights_folder import WeightNames, import_class, load_frozen, open_weights_folder

KEY = "encoders.video_path"
# Pixels of a tile's side, and from one tile to the next: what overlaps is blended.
TILE_PIXELS, TILE_STRIDE_PIXELS = 256, 192
# The 480p buckets have at most 408,576 pixels; 720p has 921,600.
AUTO_TILING_PIXELS = 600_000


class WanVideoCodec:
    """The posterior's mean, normalised per channel with the config's constants: (mean - latents_mean) / latents_std.

    Clips are encoded one by one: a clip's latents do not depend on what else is in the batch.

    Untiled, memory grows with a picture's size. Tiles bound it: the network never sees more than one. Its attention
    then looks at a tile instead of the picture, so the result is close and not the same; training uses none.

    Source: Wan2.1; Cynthiazxy123/SAMA@5c6bb5b takes the mean, without sampling.
    """

    def __init__(self, path: Path, device: torch.device | str, dtype: torch.dtype, tiling: Tiling = "off") -> None:
        """Loads the weights.

        Args:
            path: Folder of an AutoencoderKLWan, or of a pipeline that holds it as `vae`.
            device: Where the weights live and the results appear.
            dtype: Of the weights and of the arithmetic.
            tiling: Whether pictures are worked through in tiles.

        Raises:
            ConfigError: The folder does not hold a Wan2.1 VAE, or diffusers is not installed.
        """
        folder = open_weights_folder(KEY, path, "vae")
        kind = folder.config.get("_class_name")
        if kind != "AutoencoderKLWan":
            raise ConfigError(f"{folder.label} holds a {kind or 'model without a name'}: it must be AutoencoderKLWan")
        vae_class = import_class("diffusers", "AutoencoderKLWan", "encoders.video (wan)")
        vae = load_frozen(lambda: vae_class.from_config(dict(folder.config)), folder, WeightNames(), device, dtype)
        self._vae = vae
        self._tiling = tiling
        vae.enable_tiling(TILE_PIXELS, TILE_PIXELS, TILE_STRIDE_PIXELS, TILE_STRIDE_PIXELS)
        self._folder = folder
        self._device = torch.device(device)
        self._dtype = dtype
        config = vae.config
        self.latent_channels: int = config.z_dim
        self.temporal_stride: int = 2 ** sum(config.temperal_downsample)
        self.spatial_stride: int = 2 ** (len(config.dim_mult) - 1)
        strides = (self.temporal_stride, self.spatial_stride)
        if strides != (FRAMES_PER_LATENT, LATENT_STRIDE) or config.patch_size is not None:
            raise ConfigError(
                f"{folder.label} makes a latent of {strides[0]} frames and {strides[1]} pixels"
                f"{'' if config.patch_size is None else ' of patches'}: it must be {FRAMES_PER_LATENT} and"
                f" {LATENT_STRIDE}, as Wan2.1's VAE does"
            )
        if not len(config.latents_mean) == len(config.latents_std) == config.z_dim:
            raise ConfigError(
                f"{folder.label}: latents_mean and latents_std must hold z_dim ({config.z_dim}) numbers each"
            )
        self._mean = _per_channel(config.latents_mean, device)
        self._std = _per_channel(config.latents_std, device)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encodes pixels [B,3,T,H,W] in [-1,1] to latents [B,C,1+(T-1)/4,H/8,W/8] float32.

        Raises:
            ValueError: T is not 4k+1, or H or W is not a multiple of 8.
        """
        _, channels, frames, height, width = pixels.shape
        if channels != 3 or frames % FRAMES_PER_LATENT != 1 or height % LATENT_STRIDE or width % LATENT_STRIDE:
            raise ValueError(
                f"pixels of shape {tuple(pixels.shape)}: the Wan VAE needs [B,3,4k+1,H,W] with H and W multiples of 8"
            )
        return torch.cat([self._encode_clip(clip) for clip in pixels.split(1)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [B,C,T',H/8,W/8] to pixels [B,3,4*(T'-1)+1,H,W] float32, clamped to [-1,1].

        Raises:
            ValueError: The number of channels is not the VAE's.
        """
        if latents.shape[1] != self.latent_channels:
            raise ValueError(f"latents with {latents.shape[1]} channels: the VAE has {self.latent_channels}")
        return torch.cat([self._decode_clip(clip) for clip in latents.split(1)])

    def identity(self) -> Identity:
        """Weights, config, precision, and tiles where there may be any."""
        tiles = {} if self._tiling == "off" else {"tiling": self._tiling}
        return {"encoder": "wan", "weights": self._folder.digest(), "arithmetic": arithmetic(self._dtype)} | tiles

    def _encode_clip(self, pixels: Tensor) -> Tensor:
        self._choose_tiles(*pixels.shape[-2:])
        posterior = self._vae.encode(pixels.to(self._device, self._dtype)).latent_dist
        return (posterior.mode().float() - self._mean) / self._std

    def _decode_clip(self, latents: Tensor) -> Tensor:
        self._choose_tiles(*(LATENT_STRIDE * side for side in latents.shape[-2:]))
        stored = latents.to(self._device).float() * self._std + self._mean
        pixels: Tensor = self._vae.decode(stored.to(self._dtype)).sample
        return pixels.float().clamp(-1, 1)

    def _choose_tiles(self, height: int, width: int) -> None:
        is_large = height * width > AUTO_TILING_PIXELS
        self._vae.use_tiling = self._tiling == "on" or (self._tiling == "auto" and is_large)


def _per_channel(values: list[float], device: torch.device | str) -> Tensor:
    """Shapes [C] to broadcast over [B,C,T,H,W]."""
    return torch.tensor(values, device=device)[:, None, None, None]
