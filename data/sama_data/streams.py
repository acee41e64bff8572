"""The image stream and the video stream: which row stands in which slot of a step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.order import RANDOM_ATTEMPTS, EpochOrder, replacement_index
from sama_data.rows import Kind
from sama_data.settings import LoaderSettings

_LOGGER = logging.getLogger("sama_data")
# Part of every draw: changing a number changes what all runs see.
_STREAM_NUMBERS: dict[Kind, int] = {"image": 0, "video": 1}


@dataclass(frozen=True, slots=True)
class Draw:
    """One slot of a step.

    Attributes:
        slot: Its position in the global step.
        stream: Where it was drawn.
        place: The sample's place in the stream, which the parts' weights may make larger than its rows.
        epoch: The stream's epoch.
        index: The row that stands there.
    """

    slot: int
    stream: Stream
    place: int
    epoch: int
    index: int


class Stream:
    """The rows of one kind, as an endless sequence.

    A part of weight w fills round(w * rows) places of an epoch. Its own passes count separately, so that a
    row drawn twice in an epoch of the stream gets two epochs of its own: other noise, another perturbation.
    """

    def __init__(self, dataset: Dataset, kind: Kind, per_step: int, seed: int) -> None:
        self.kind = kind
        self.per_step = per_step
        self._seed = seed
        self._number = _STREAM_NUMBERS[kind]
        self._rows = dataset.indices_of(kind)
        firsts, counts, sizes = [], [], []
        for part in dataset.parts:
            first, last = np.searchsorted(self._rows, [part.start, part.start + part.count]).tolist()
            if last > first:
                firsts.append(first)
                counts.append(last - first)
                sizes.append(max(1, round(part.weight * (last - first))))
        # Of each part: its first row, its rows, its places, and where they end.
        self._firsts, self._counts, self._sizes = np.array(firsts), np.array(counts), np.array(sizes)
        self._ends = np.cumsum(self._sizes)
        self.num_rows = len(self._rows)
        self.num_places = int(sum(sizes))
        self._order = EpochOrder(self.num_places, seed, self._number) if sizes else None

    def draw(self, step: int, first_slot: int) -> list[Draw]:
        """Returns a step's draws, over all ranks; their slots count from first_slot."""
        assert self._order is not None, "a stream without rows is dropped"
        places, epochs = self._order.draws(step, self.per_step)
        rows, _ = self._rows_at(places, epochs)
        drawn = zip(places.tolist(), epochs.tolist(), rows.tolist(), strict=True)
        return [Draw(slot, self, *values) for slot, values in enumerate(drawn, start=first_slot)]

    def candidates(self, draw: Draw) -> Iterator[tuple[int, int]]:
        """Yields (row index, the row's own epoch): the drawn row, then stand-ins, until all were named."""
        yield self._row_of(draw.place, draw.epoch)
        for attempt in range(RANDOM_ATTEMPTS + self.num_places):
            place = replacement_index(self.num_places, self._seed, draw.epoch, draw.place, attempt, self._number)
            yield self._row_of(place, draw.epoch)

    def _row_of(self, place: int, epoch: int) -> tuple[int, int]:
        rows, row_epochs = self._rows_at(np.array([place]), np.array([epoch]))
        return int(rows[0]), int(row_epochs[0])

    def _rows_at(
        self, places: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the rows that stand at places, and the rows' own epochs."""
        parts = np.searchsorted(self._ends, places, side="right")
        sizes = self._sizes[parts]
        passed = epochs * sizes + places - (self._ends[parts] - sizes)
        row_epochs, rows = np.divmod(passed, self._counts[parts])
        return self._rows[self._firsts[parts] + rows], row_epochs


def make_streams(dataset: Dataset, settings: LoaderSettings) -> list[Stream]:
    """Returns the streams that have rows and slots, images first; one without rows is dropped with a warning.

    Raises:
        DataError: No stream is left.
    """
    wanted: list[tuple[Kind, int]] = [
        ("image", settings.images_per_step),
        ("video", settings.videos_per_step),
    ]
    streams = []
    for kind, per_step in wanted:
        if per_step == 0:
            continue
        stream = Stream(dataset, kind, per_step, settings.seed)
        if stream.num_rows:
            streams.append(stream)
        else:
            _LOGGER.warning(
                "%s: no %s rows: the %s stream is dropped (data.%ss_per_step %d)",
                dataset.name,
                kind,
                kind,
                kind,
                per_step,
            )
    rejected = f"{dataset.num_rejected} of {len(dataset)} rows are rejected" if dataset.num_rejected else ""
    if not streams:
        kinds = " and ".join(f"{kind}s ({per_step} per step)" for kind, per_step in wanted if per_step)
        fix = "set data.images_per_step or videos_per_step" + (f"; {rejected}" if rejected else "")
        raise DataError(f"{dataset.name}: no row for the wanted {kinds}: {fix}")
    if rejected:
        _LOGGER.warning("%s: %s and left out: their column `rejected` says why", dataset.name, rejected)
    return streams
