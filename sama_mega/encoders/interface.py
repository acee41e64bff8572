"""What an encoder offers: the same three interfaces for the embedded encoders and for the pretrained ones.

None has anything to train. What a clip, a prompt or a frame is encoded to does not depend on the others of the call, to
the last bit: it may be encoded elsewhere, with others, or be read from a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Identity = dict[str, Any]
"""What an encoder's results follow from besides what it is given, as JSON: where it is equal, so are they."""

Tiling = Literal["auto", "on", "off"]
"""Whether a codec works through large pictures in overlapping tiles: always, for those above 480p, or never."""


class VideoCodec(Protocol):
    """Pixels to latents and back; frames are 4k+1, the first frame has its own latent."""

    latent_channels: int
    temporal_stride: int
    spatial_stride: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Encodes pixels [B,3,T,H,W] in [-1,1] to latents [B,C,1+(T-1)/4,H/8,W/8] float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents [B,C,T',H/8,W/8] to pixels [B,3,4*(T'-1)+1,H,W] float32, clamped to [-1,1]."""
        ...

    def identity(self) -> Identity:
        """Tells it from codecs that encode otherwise; reads the weights' files where there are any."""
        ...


class TextEncoder(Protocol):
    """Prompts to a fixed number of embeddings."""

    max_tokens: int
    text_dim: int

    def encode(self, prompts: list[str]) -> Tensor:
        """Encodes prompts to [B,max_tokens,text_dim] float32; rows after a prompt's last token are zero."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's tokens before any truncation."""
        ...

    def identity(self) -> Identity:
        """Tells it from encoders that encode otherwise; reads the weights' files where there are any."""
        ...


class SemanticEncoder(Protocol):
    """Anchor frames to semantic tokens."""

    tokens_per_anchor: int
    semantic_dim: int

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames [B,N,3,H,W] in [-1,1] to [B,N*tokens_per_anchor,semantic_dim] float32."""
        ...

    def identity(self) -> Identity:
        """Tells it from encoders that encode otherwise; reads the weights' files where there are any."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The three encoders of a run; none of them is trained."""

    video: VideoCodec
    text: TextEncoder
    semantic: SemanticEncoder

    def identity(self) -> dict[str, Identity]:
        """The identity of each."""
        return {"video": self.video.identity(), "text": self.text.identity(), "semantic": self.semantic.identity()}


def arithmetic(dtype: torch.dtype = torch.float32) -> str:
    """Names how an encoder of a precision computes at present, for its identity."""
    if dtype == torch.float32:
        return f"float32, matrices {torch.get_float32_matmul_precision()}"
    return str(dtype).removeprefix("torch.")
