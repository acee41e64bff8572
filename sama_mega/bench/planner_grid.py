"""The configurations on which the planner's step times are calibrated: small models, real training steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sama_mega.config import build_recipe
from sama_mega.config.schema import Recipe

_HEAD_DIM = {"cpu": 64, "cuda": 128}


@dataclass(frozen=True)
class Configuration:
    """One training step.

    Attributes:
        dim: Width.
        num_layers: Blocks.
        ffn_dim: Inside the feed-forward.
        width: Pixels.
        height: Lines.
        num_frames: Of a video.
        images: Of a step, over all data ranks.
        videos: The same.
        micro_images: The most of a micro-batch.
        micro_videos: The same.
        recompute: `train.recompute`.
        tensor: Degree.
        data: Degree.
    """

    dim: int
    num_layers: int
    ffn_dim: int
    width: int
    height: int
    num_frames: int
    images: int
    videos: int
    micro_images: int = 8
    micro_videos: int = 8
    recompute: str = "none"
    tensor: int = 1
    data: int = 1

    @property
    def num_ranks(self) -> int:
        """That it takes."""
        return self.tensor * self.data

    @property
    def label(self) -> str:
        """In words."""
        ranks = f", tensor {self.tensor}" if self.tensor > 1 else ""
        ranks += f", data {self.data}" if self.data > 1 else ""
        images = f"{self.images} images by {min(self.images, self.micro_images)}" if self.images else ""
        clips = f"{self.videos} clips of {self.num_frames} by {min(self.videos, self.micro_videos)}"
        samples = " + ".join(part for part in (images, clips if self.videos else "") if part)
        return (
            f"{self.num_layers} x {self.dim} ({self.ffn_dim}), {self.width}x{self.height}, {samples}, "
            f"{self.recompute}{ranks}"
        )

    def recipe(self, device_type: str) -> Recipe:
        """The recipe that makes the step, on `cpu` in float32 or on `cuda` in bfloat16."""
        values: dict[str, Any] = asdict(self)
        model = {key: values[key] for key in ("dim", "num_layers", "ffn_dim")}
        return build_recipe(
            {
                "model": model | _ENDS[device_type] | {"num_heads": self.dim // _HEAD_DIM[device_type]},
                "parallel": {"tensor": self.tensor},
                "anchor": {"local_grid": 2 if device_type == "cpu" else 8},
                "data": {
                    "images_per_step": self.images,
                    "videos_per_step": self.videos,
                    "micro_batch_images": self.micro_images,
                    "micro_batch_videos": self.micro_videos,
                    "buckets": [[self.width, self.height]],
                    "max_frames": self.num_frames,
                },
                "train": {
                    "stage": 1,
                    "steps": 1,
                    "run_folder": "unused",
                    "precision": "float32" if device_type == "cpu" else "bfloat16",
                    "recompute": self.recompute,
                },
            },
            "bench planner",
        )


_ENDS: dict[str, dict[str, int]] = {
    "cpu": {"text_dim": 64, "text_length": 32, "semantic_dim": 48, "semantic_hidden_dim": 64},
    "cuda": {"text_dim": 4096, "text_length": 512, "semantic_dim": 1152, "semantic_hidden_dim": 1024},
}


# Neighbours are alike, and every second one is held out: both halves see every kind of configuration.
CPU = (
    Configuration(192, 2, 512, 96, 64, 9, 4, 2),
    Configuration(192, 3, 640, 80, 64, 13, 4, 2),
    Configuration(256, 4, 768, 96, 96, 9, 8, 4),
    Configuration(320, 3, 832, 112, 96, 9, 6, 4),
    Configuration(256, 2, 704, 128, 96, 17, 0, 2),
    Configuration(256, 3, 640, 128, 112, 17, 0, 1),
    Configuration(128, 2, 320, 160, 128, 17, 0, 2),
    Configuration(128, 3, 384, 160, 112, 21, 0, 1),
    Configuration(384, 2, 1024, 128, 128, 1, 8, 0),
    Configuration(384, 3, 896, 112, 112, 1, 8, 0),
    Configuration(256, 4, 768, 64, 64, 5, 8, 4, micro_images=1, micro_videos=1),
    Configuration(192, 4, 512, 64, 64, 5, 6, 6, micro_images=1, micro_videos=1),
    Configuration(256, 3, 768, 96, 96, 13, 4, 2, recompute="full"),
    Configuration(320, 2, 960, 96, 80, 13, 4, 3, recompute="full"),
    Configuration(256, 3, 832, 128, 96, 13, 0, 2, micro_videos=1, recompute="selective"),
    Configuration(320, 2, 832, 112, 96, 13, 0, 3, micro_videos=1, recompute="selective"),
    Configuration(320, 3, 896, 96, 80, 9, 4, 2, micro_images=2, recompute="selective_ffn"),
    Configuration(256, 4, 640, 96, 96, 9, 6, 2, micro_images=2, recompute="selective_ffn"),
    Configuration(512, 2, 1408, 64, 64, 5, 2, 1),
    Configuration(448, 2, 1216, 64, 64, 5, 2, 1),
    Configuration(256, 3, 768, 96, 96, 9, 8, 4, data=2),
    Configuration(320, 3, 832, 96, 80, 9, 8, 4, data=2),
    Configuration(512, 2, 1280, 64, 64, 5, 4, 2, data=2),
    Configuration(448, 3, 1152, 64, 64, 5, 4, 2, data=2),
    Configuration(256, 3, 768, 96, 96, 9, 4, 2, tensor=2),
    Configuration(384, 2, 896, 96, 80, 9, 4, 2, tensor=2),
    Configuration(256, 2, 768, 128, 96, 17, 0, 2, tensor=2, recompute="full"),
    Configuration(384, 2, 640, 96, 96, 17, 0, 2, tensor=2, recompute="full"),
)
"""Of one rank or two, half a second or less a step on one core."""
CUDA = (
    Configuration(1536, 4, 8960, 832, 480, 21, 8, 1),
    Configuration(1536, 6, 8960, 832, 480, 17, 8, 1),
    Configuration(2560, 4, 6912, 832, 480, 33, 8, 1),
    Configuration(2048, 4, 5632, 832, 480, 37, 8, 1),
    Configuration(5120, 2, 13824, 832, 480, 1, 16, 0),
    Configuration(4096, 2, 11008, 832, 480, 1, 16, 0),
    Configuration(5120, 2, 13824, 832, 480, 49, 0, 1, recompute="selective"),
    Configuration(4096, 2, 11008, 832, 480, 53, 0, 1, recompute="selective"),
    Configuration(2560, 3, 6912, 832, 480, 81, 0, 1, recompute="full"),
    Configuration(2048, 3, 5632, 832, 480, 77, 0, 1, recompute="full"),
    Configuration(3072, 3, 8192, 832, 480, 25, 8, 1, recompute="selective_ffn"),
    Configuration(3584, 3, 9728, 832, 480, 25, 8, 1, recompute="selective_ffn"),
    Configuration(1024, 6, 2816, 256, 256, 5, 16, 8, micro_images=1, micro_videos=1),
    Configuration(1024, 8, 2816, 256, 256, 5, 12, 8, micro_images=1, micro_videos=1),
)
"""Of one rank, on a GPU of 40 GiB or more."""


def configurations(device_type: str) -> tuple[Configuration, ...]:
    """The grid of a kind of device."""
    return CUDA if device_type == "cuda" else CPU
