"""Shapes of samples before their clips are read, from the manifest's columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.buckets import FRAMES_PER_LATENT, choose_buckets
from sama_data.dataset import Dataset
from sama_data.pretext import plan_source_frames
from sama_data.settings import LoaderSettings
from sama_data.shapes import Shape

_SIZE_COLUMNS = ("width", "height", "num_frames", "frame_start", "frame_end")


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
    table = dataset.table.select(["kind", *_SIZE_COLUMNS]).take(pa.array(rows))
    is_image: NDArray[np.bool_] = np.asarray(pc.equal(table.column("kind"), "image").to_numpy())
    bucket = _buckets(table, settings)
    num_frames = np.where(is_image, 1, _frames(table, settings.max_frames))
    source_frames = num_frames
    if epochs is not None:
        source_frames = _source_frames(dataset, rows, epochs, ~is_image, bucket, num_frames, settings)
    return _distinct(is_image, bucket, num_frames, source_frames, settings)


def _known(table: pa.Table, name: str) -> NDArray[np.int64]:
    """A column's numbers, 0 where there is none."""
    return np.asarray(pc.fill_null(table.column(name), 0).to_numpy())


def _buckets(table: pa.Table, settings: LoaderSettings) -> NDArray[np.int64]:
    width, height = _known(table, "width"), _known(table, "height")
    is_known = (width > 0) & (height > 0)
    first_width, first_height = settings.buckets[0]
    widths, heights = np.where(is_known, width, first_width), np.where(is_known, height, first_height)
    return np.where(is_known, choose_buckets(widths, heights, settings.buckets), 0)


def _frames(table: pa.Table, max_frames: int) -> NDArray[np.int64]:
    """Each clip's frames, cut to 4k+1."""
    end = _known(table, "frame_end")
    end = np.where(end > 0, end, _known(table, "num_frames"))
    available = np.maximum(1, end - _known(table, "frame_start"))
    frames = np.where(end > 0, np.minimum(available, max_frames), max_frames)
    return (frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def _source_frames(
    dataset: Dataset,
    rows: NDArray[np.int64],
    epochs: NDArray[np.int64],
    is_video: NDArray[np.bool_],
    bucket: NDArray[np.int64],
    num_frames: NDArray[np.int64],
    settings: LoaderSettings,
) -> NDArray[np.int64]:
    """The source's frames once raw clips are perturbed."""
    source_frames = num_frames.copy()
    if settings.motion.keep_length or settings.motion.speed == 0.0:
        return source_frames
    videos = np.flatnonzero(is_video)
    table = dataset.table.select(["source", "sample_id"]).take(pa.array(rows[videos]))
    sources, names = (table.column(name).to_pylist() for name in ("source", "sample_id"))
    for place, source, name in zip(videos.tolist(), sources, names, strict=True):
        if source is None:
            width, height = settings.buckets[int(bucket[place])]
            source_frames[place] = plan_source_frames(
                settings.motion, settings.seed, name, int(epochs[place]), int(num_frames[place]), height, width
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
