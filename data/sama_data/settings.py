"""What the loader needs to know of a recipe, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

from sama_data.buckets import BUCKETS_480P
from sama_data.cost import CostModel
from sama_data.errors import DataError
from sama_data.pretext import Motion, MotionSettings
from sama_data.rows import Kind

MOST_TIMEOUT_SECONDS = 86_400.0


@dataclass(frozen=True)
class LoaderSettings:
    """How samples are drawn, read and prepared.

    Attributes:
        images_per_step: Images of one optimizer step, over all ranks.
        videos_per_step: Videos of one optimizer step, over all ranks.
        seed: Of order and perturbations.
        buckets: The (width, height) sizes that clips are brought to, in pixels.
        max_frames: The longest clip, in frames; it is cut to 4k+1.
        motion: Weights and parameters of the perturbations of raw clips.
        prefetch_steps: How many steps are prepared ahead of the one in use.
        decode_threads: How many clips are decoded at a time, each by a process of its own.
        decode_timeout_seconds: A sample whose files take longer to read and decode is bad.
        decoded_cache_mib: MiB of decoded frames that are kept in memory, 0 for none.
        at_least_per_rank: Samples of a step that every data rank gets, whatever they cost; 0 when it may get none.
        max_bad_share: The run stops when a larger share of the samples it tried is bad.
        micro_batch_images: The most images of a micro-batch; dealing keeps equal shapes together.
        micro_batch_videos: The most videos of a micro-batch.
        cost: Predicts the samples' times, by which they are dealt to ranks.
    """

    images_per_step: int
    videos_per_step: int
    seed: int = 0
    buckets: tuple[tuple[int, int], ...] = BUCKETS_480P
    max_frames: int = 81
    motion: MotionSettings = field(default_factory=Motion)
    prefetch_steps: int = 2
    decode_threads: int = 1
    decode_timeout_seconds: float = 60.0
    decoded_cache_mib: int = 0
    max_bad_share: float = 0.5
    at_least_per_rank: int = 0
    micro_batch_images: int = 1
    micro_batch_videos: int = 1
    cost: CostModel = field(default_factory=CostModel)

    @property
    def micro_batch_limits(self) -> dict[Kind, int]:
        """The most samples of a micro-batch, by kind."""
        return {"image": self.micro_batch_images, "video": self.micro_batch_videos}

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            DataError: A value is out of range.
        """
        at_least = {
            "images_per_step": 0,
            "videos_per_step": 0,
            "max_frames": 1,
            "prefetch_steps": 0,
            "decode_threads": 1,
            "decoded_cache_mib": 0,
            "at_least_per_rank": 0,
            "micro_batch_images": 1,
            "micro_batch_videos": 1,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise DataError(f"data.{name} ({getattr(self, name)}) must be at least {least}")
        if self.images_per_step + self.videos_per_step == 0:
            raise DataError("data.images_per_step and data.videos_per_step are both 0: a step needs samples")
        if not 0.0 < self.decode_timeout_seconds <= MOST_TIMEOUT_SECONDS:
            rule = f"must be greater than 0 and at most {MOST_TIMEOUT_SECONDS:g}, a day"
            raise DataError(f"data.decode_timeout_seconds ({self.decode_timeout_seconds:g}) {rule}")
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise DataError(f"data.max_bad_share ({self.max_bad_share}) must be between 0 and 1")
        if not self.buckets:
            raise DataError("data.buckets is empty: list at least one [width, height]")
