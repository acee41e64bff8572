"""How a feature is stored: without the zeros after a prompt, and in half the bytes where that loses nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sama_mega.encoders.feature_cache.content import Kind


def pack(kind: Kind, feature: Tensor) -> Tensor:
    """Returns what is stored of a feature, on the CPU: bfloat16 where it gives back the same float32 numbers.

    Args:
        kind: Of a ``text`` feature ``[L, width]``, zero rows at its end are left out.
        feature: float32, of one sample.
    """
    feature = feature.cpu()
    if kind == "text":
        used = feature.any(dim=1).nonzero()
        feature = feature[: int(used[-1]) + 1 if len(used) else 0]
    halved = feature.bfloat16()
    return (halved if torch.equal(halved.float(), feature) else feature).contiguous()


def unpack(kind: Kind, stored: Tensor, text_length: int) -> Tensor:
    """Returns the feature that `pack` was given, to the last bit; a text is ``[text_length, width]`` again."""
    feature = stored.float()
    return F.pad(feature, (0, 0, 0, text_length - len(feature))) if kind == "text" else feature
