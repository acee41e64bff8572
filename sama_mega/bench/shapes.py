"""The shapes that benchmarks run at: those of training at 480p.

Source: SAMA (arXiv 2603.19228); Wan2.1 14B and 1.3B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from sama_mega.config.errors import ConfigError

Shape = TypeVar("Shape")

SEMANTIC_TOKENS = 65
"""One anchor frame: 64 local tokens and the global one."""
_PATCHES_480P = (30, 52)


@dataclass(frozen=True)
class ModelSize:
    """Widths of one block.

    Attributes:
        name: What tables call it.
        dim: Hidden width.
        ffn_dim: Width inside the feed-forward.
        num_heads: Attention heads.
        text_length: Tokens of text that cross-attention reads.
    """

    name: str
    dim: int
    ffn_dim: int
    num_heads: int
    text_length: int = 512

    @property
    def head_dim(self) -> int:
        """Features of a head."""
        return self.dim // self.num_heads


@dataclass(frozen=True)
class Workload:
    """One micro-batch.

    Attributes:
        grid: Frames, lines and columns of patches, of the source and again of the target.
        num_semantic: Semantic tokens between the two.
        batch: Samples.
    """

    grid: tuple[int, int, int]
    num_semantic: int = SEMANTIC_TOKENS
    batch: int = 1

    @property
    def num_tokens(self) -> int:
        """Tokens of one sample."""
        frames, lines, columns = self.grid
        return 2 * frames * lines * columns + self.num_semantic

    @property
    def label(self) -> str:
        """Such as ``65,585`` or ``3,185 x 8``."""
        return f"{self.num_tokens:,}" + (f" x {self.batch}" if self.batch > 1 else "")


MODELS = {
    "14b": ModelSize("14b", 5120, 13824, 40),
    "1.3b": ModelSize("1.3b", 1536, 8960, 12),
    "toy": ModelSize("toy", 128, 352, 2, text_length=16),
}
WORKLOADS = {
    "81-frames": Workload((21, *_PATCHES_480P)),
    "49-frames": Workload((13, *_PATCHES_480P)),
    "images": Workload((1, *_PATCHES_480P), batch=8),
    "toy": Workload((2, 5, 7), num_semantic=5),
}
"""At 480p 65,585, 40,625 and 8 times 3,185 tokens."""
PARITY_WORKLOAD = Workload((1, 10, 13), batch=2)
"""What float64 can hold beside the rest, of odd sizes."""


def one_rank_recipe(num_layers: int = 1) -> dict[str, Any]:
    """The recipe by which a benchmark starts its one rank; its contenders have recipes of their own."""
    return {
        "model": {"dim": 128, "ffn_dim": 256, "num_heads": 2, "num_layers": num_layers},
        "train": {"stage": 1, "steps": 1, "run_folder": "unused"},
    }


def named(option: str, name: str, registry: Mapping[str, Shape]) -> Shape:
    """One entry of a registry.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in registry:
        raise ConfigError(f"{option} ({name}) must be one of {', '.join(registry)}")
    return registry[name]
