"""What an encoder offers: the same three interfaces for the embedded encoders and for the pretrained ones.

None has anything to train. What a clip, a prompt or a frame is encoded to does not depend on the others of the call, to
the last bit: it may be encoded elsewhere, with others, or be read from a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


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


class SemanticEncoder(Protocol):
    """Anchor frames to semantic tokens."""

    tokens_per_anchor: int
    semantic_dim: int

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames [B,N,3,H,W] in [-1,1] to [B,N*tokens_per_anchor,semantic_dim] float32."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The three encoders of a run; none of them is trained."""

    video: VideoCodec
    text: TextEncoder
    semantic: SemanticEncoder
