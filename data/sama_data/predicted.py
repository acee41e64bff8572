"""Shapes of samples before their clips are read, from the manifest's columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.buckets import FRAMES_PER_LATENT, choose_buckets
from sama_data.dataset import Dataset
from sama_data.pretext import plan_source_frames
from sama_data.settings import LoaderSettings
from sama_data.shapes import Shape


@dataclass(frozen=True)
class PredictedShapes:
    """The shapes of some samples.

    Attributes:
        shapes: The shapes that occur, each once.
        shape_of: ``[N]`` int64, each sample's place in `shapes`.
    """

    shapes: tuple[Shape, ...]
    shape_of: NDArray[np.int64]

    def of_slots(self) -> list[Shape]:
        """Returns each sample's shape."""
        return [self.shapes[number] for number in self.shape_of.tolist()]

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Returns width, height, target frames and source frames of `shapes`, int64."""
        width, height, num_frames, source_frames = np.array([shape[1:] for shape in self.shapes], np.int64).T
        return width, height, num_frames, source_frames


def predict_shapes(
    dataset: Dataset, rows: NDArray[np.int64], epochs: NDArray[np.int64] | None, settings: LoaderSettings
) -> PredictedShapes:
    """Returns the shapes that rows will have, as far as the manifest tells.

    A clip whose length is not known counts as `max_frames`, one whose size is not known as the first bucket's.

    Args:
        dataset: The rows.
        rows: ``[N]`` int64, indices into it.
        epochs: ``[N]`` int64, the epoch of each of them, which decides whether a raw clip is sped up; None leaves
            that out.
        settings: Buckets, the longest clip, and how clips are perturbed.
    """
    known = _known_of(dataset, rows)
    bucket = _buckets(known, settings)
    num_frames = np.where(known.is_image, 1, _frames(known, settings.max_frames))
    source_frames = num_frames
    if epochs is not None:
        source_frames = _source_frames(dataset, known, epochs, bucket, num_frames, settings)
    return _distinct(known.is_image, bucket, num_frames, source_frames, settings)


def num_unknown(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[int, int]:
    """Returns of how many rows the manifest does not tell the size, and of how many videos the length."""
    known = _known_of(dataset, rows)
    sizes = (known.width == 0) | (known.height == 0)
    lengths = (known.num_frames == 0) & ~known.is_image
    return int(np.count_nonzero(sizes)), int(np.count_nonzero(lengths))


@dataclass(frozen=True, slots=True)
class _Known:
    """What the manifest tells of some rows; numbers are 0 where it does not tell.

    Attributes:
        rows: Their indices.
        is_image: Whether each is drawn as an image.
        is_raw: Whether it has no source.
        width: The target's width in pixels.
        height: The target's height.
        num_frames: The frames between frame_start and the end.
    """

    rows: NDArray[np.int64]
    is_image: NDArray[np.bool_]
    is_raw: NDArray[np.bool_]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    num_frames: NDArray[np.int64]


def _known_of(dataset: Dataset, rows: NDArray[np.int64]) -> _Known:
    traits = dataset.traits
    return _Known(
        rows=rows,
        is_image=traits.is_image[rows],
        is_raw=traits.is_raw[rows],
        width=traits.width[rows].astype(np.int64),
        height=traits.height[rows].astype(np.int64),
        num_frames=traits.num_frames[rows].astype(np.int64),
    )


def _buckets(known: _Known, settings: LoaderSettings) -> NDArray[np.int64]:
    has_size = (known.width > 0) & (known.height > 0)
    width, height = settings.buckets[0]
    return choose_buckets(
        np.where(has_size, known.width, width), np.where(has_size, known.height, height), settings.buckets
    )


def _frames(known: _Known, max_frames: int) -> NDArray[np.int64]:
    """Each clip's frames, cut to 4k+1."""
    frames = np.where(known.num_frames > 0, np.minimum(known.num_frames, max_frames), max_frames)
    return (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def _source_frames(
    dataset: Dataset,
    known: _Known,
    epochs: NDArray[np.int64],
    bucket: NDArray[np.int64],
    num_frames: NDArray[np.int64],
    settings: LoaderSettings,
) -> NDArray[np.int64]:
    """The source's frames once raw clips are perturbed."""
    source_frames = num_frames.copy()
    if settings.motion.keep_length or settings.motion.speed == 0.0:
        return source_frames
    raw = np.flatnonzero(known.is_raw & ~known.is_image)
    for place, sample_id in zip(raw.tolist(), dataset.sample_ids(known.rows[raw]), strict=True):
        width, height = settings.buckets[int(bucket[place])]
        source_frames[place] = plan_source_frames(
            settings.motion, settings.seed, sample_id, int(epochs[place]), int(num_frames[place]), height, width
        )
    return source_frames


def _distinct(
    is_image: NDArray[np.bool_],
    bucket: NDArray[np.int64],
    num_frames: NDArray[np.int64],
    source_frames: NDArray[np.int64],
    settings: LoaderSettings,
) -> PredictedShapes:
    frames, buckets = settings.max_frames + 1, len(settings.buckets)
    keys = ((is_image * buckets + bucket) * frames + num_frames) * frames + source_frames
    distinct, shape_of = np.unique(keys, return_inverse=True)
    shapes = []
    for key in distinct.tolist():
        rest, source = divmod(key, frames)
        rest, target = divmod(rest, frames)
        image, number = divmod(rest, buckets)
        width, height = settings.buckets[number]
        shapes.append(Shape("image" if image else "video", width, height, target, source))
    return PredictedShapes(tuple(shapes), shape_of.astype(np.int64, copy=False))
