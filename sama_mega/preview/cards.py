"""Samples as people look at them: a few small frames of source and target, the prompt, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sama_data.dataset import Dataset
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.rows import Kind, Row
from sama_data.samples import Sample
from sama_kernels.pretext import pretext

MOST_FRAMES = 6
_THUMBNAIL_WIDTH, _THUMBNAIL_HEIGHT = 200, 180


@dataclass(frozen=True)
class Strip:
    """Some frames of one side of a sample.

    Attributes:
        label: "source" or "target".
        pictures: Small pictures.
        frame_numbers: Their places in the side as the model sees it.
        num_frames: Its frames.
    """

    label: str
    pictures: tuple[Image.Image, ...]
    frame_numbers: tuple[int, ...]
    num_frames: int


@dataclass(frozen=True)
class Card:
    """One sample.

    Attributes:
        sample_id: Its name.
        facts: (what, value) pairs.
        prefix: The marker or token that goes before the text.
        text: The rest of the prompt.
        strips: Source, as perturbed, and target.
    """

    sample_id: str
    facts: tuple[tuple[str, str], ...]
    prefix: str
    text: str
    strips: tuple[Strip, Strip]


def draw_cards(dataset: Dataset, settings: LoaderSettings, num_samples: int, quarantine: Quarantine) -> Iterator[Card]:
    """Yields the first samples that a run would draw, images first: half of each kind where there are both.

    One sample at a time is in memory: a clip of 81 frames takes hundreds of MiB.

    Args:
        dataset: The rows.
        settings: The run's; its seed decides on order and perturbations.
        num_samples: At least 1.
        quarantine: Where bad clips are recorded.

    Raises:
        DataError: A kind that is wanted has no rows, or too many clips are bad.
    """
    for kind, count in _counts(dataset, settings, num_samples).items():
        one_a_step = replace(
            settings, images_per_step=int(kind == "image"), videos_per_step=int(kind == "video"), at_least_per_rank=0
        )
        with SampleLoader(dataset, one_a_step, 0, 1, quarantine) as loader:
            for step in range(count):
                for sample in loader.step(step).samples:
                    yield make_card(sample, dataset[sample.index])


def make_card(sample: Sample, row: Row) -> Card:
    """Returns the card of a sample that was made of a row; its source goes through the perturbation of training."""
    plan, num_frames = sample.plan, len(sample.target_frames)
    perturbed = pretext(torch.from_numpy(sample.source_frames), plan.frame_indices, plan.tube_order)
    shape = sample.shape
    lengths = f"{shape.num_frames}" + (f", source {shape.source_frames}" if shape.source_frames != num_frames else "")
    facts = (
        ("dataset", row.dataset or "unknown"),
        ("licence", row.licence or "unknown"),
        ("task", " / ".join(filter(None, (sample.task, row.task)))),
        ("bucket", f"{shape.width}x{shape.height}"),
        ("kind", shape.kind),
        ("frames", lengths),
        ("epoch", str(sample.epoch)),
    )
    source_numbers, target_numbers = _spaced(shape.source_frames), _spaced(num_frames)
    source = perturbed[:, source_numbers].add(1.0).mul(127.5).round().byte().permute(1, 2, 3, 0).numpy()
    return Card(
        sample_id=sample.sample_id,
        facts=facts,
        prefix=sample.prompt_prefix,
        text=sample.prompt.removeprefix(sample.prompt_prefix).strip(),
        strips=(
            _strip("source", source, source_numbers, shape.source_frames),
            _strip("target", sample.target_frames[target_numbers], target_numbers, num_frames),
        ),
    )


def _counts(dataset: Dataset, settings: LoaderSettings, num_samples: int) -> dict[Kind, int]:
    """How many samples of each kind to show."""
    per_step: dict[Kind, int] = {"image": settings.images_per_step, "video": settings.videos_per_step}
    kinds = [kind for kind, wanted in per_step.items() if wanted and len(dataset.indices_of(kind))]
    if not kinds:
        kinds = [kind for kind, wanted in per_step.items() if wanted]  # the loader says what is missing
    # An odd one goes to the last kind: a video shows more.
    return {kind: (num_samples + number) // len(kinds) for number, kind in enumerate(kinds)}


def _spaced(num_frames: int) -> list[int]:
    return np.unique(np.linspace(0, num_frames - 1, min(MOST_FRAMES, num_frames)).round().astype(int)).tolist()


def _strip(label: str, frames: NDArray[np.uint8], numbers: list[int], num_frames: int) -> Strip:
    return Strip(label, tuple(_thumbnail(frame) for frame in frames), tuple(numbers), num_frames)


def _thumbnail(frame: NDArray[np.uint8]) -> Image.Image:
    height, width = frame.shape[:2]
    scale = min(_THUMBNAIL_WIDTH / width, _THUMBNAIL_HEIGHT / height)
    # Tiny synthetic clips are enlarged without blur, real ones shrunk without aliasing.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return Image.fromarray(frame).resize((max(1, round(width * scale)), max(1, round(height * scale))), method)
