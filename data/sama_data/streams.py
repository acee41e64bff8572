"""The image stream and the video stream: which row stands in which slot of a step."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sama_data.dataset import Dataset, Part
from sama_data.errors import DataError
from sama_data.order import RANDOM_ATTEMPTS, EpochOrder, epoch_permutation, replacement_index
from sama_data.rows import Kind
from sama_data.settings import LoaderSettings

_LOGGER = logging.getLogger("sama_data")
# Part of every draw: changing a number changes what all runs see.
_STREAM_NUMBERS: dict[Kind, int] = {"image": 0, "video": 1}
_FIRST_PART_STREAM = 2  # orders inside the parts of a blend
# An order of so many places takes 8 GiB while it is made.
_MOST_PLACES = 1 << 28
# Beyond this, relative to the share that was asked for, rounding to whole places is told.
_MOST_ROUNDING = 0.1


@dataclass(frozen=True, slots=True)
class Draw:
    """One slot of a step.

    Attributes:
        slot: Its position in the global step.
        stream: Where it was drawn.
        place: The sample's place in the stream, which the parts' weights may make larger than its rows.
        epoch: The stream's epoch.
    """

    slot: int
    stream: Stream
    place: int
    epoch: int


class Stream:
    """The rows of one kind, as an endless sequence.

    A part of weight w fills round(w * rows) places of an epoch. Its own passes count separately, so that a
    row drawn twice in an epoch of the stream gets two epochs of its own: other noise, another perturbation.
    Where that is no whole number of passes, its rows are mixed first, or an epoch would see one end of the manifest.
    """

    def __init__(self, dataset: Dataset, kind: Kind, per_step: int, seed: int) -> None:
        self.kind = kind
        self.per_step = per_step
        self._seed = seed
        self._number = _STREAM_NUMBERS[kind]
        rows = dataset.indices_of(kind)
        bounds = np.searchsorted(rows, [(part.start, part.start + part.count) for part in dataset.parts])
        self.part_rows: tuple[int, ...] = tuple((bounds[:, 1] - bounds[:, 0]).tolist())
        self.part_places: tuple[int, ...] = _places(dataset.parts, self.part_rows)
        self._counts = np.array(self.part_rows, np.int64)
        self._first_rows = bounds[:, 0]
        self._sizes = np.array(self.part_places, np.int64)
        self._ends = np.cumsum(self._sizes)
        self._rows = self._mixed(rows)
        self.num_rows = len(rows)
        self.num_places = sum(self.part_places)
        self._order = EpochOrder(self.num_places, seed, self._number) if self.num_places else None

    def draw(self, step: int, first_slot: int) -> list[Draw]:
        """Returns a step's draws, over all ranks; their slots count from first_slot."""
        places, epochs = self._drawn(step)
        pairs = zip(places.tolist(), epochs.tolist(), strict=True)
        return [Draw(first_slot + number, self, place, epoch) for number, (place, epoch) in enumerate(pairs)]

    def rows(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns a step's row indices and the rows' own epochs, both ``[per_step]`` int64, in the order of `draw`."""
        return self._rows_of(*self._drawn(step))

    def candidates(self, draw: Draw) -> Iterator[tuple[int, int]]:
        """Yields (row index, the row's own epoch): the drawn row, then stand-ins, until all were named."""
        yield self._row_of(draw.place, draw.epoch)
        for attempt in range(RANDOM_ATTEMPTS + self.num_places):
            place = replacement_index(self.num_places, self._seed, draw.epoch, draw.place, attempt, self._number)
            yield self._row_of(place, draw.epoch)

    def _mixed(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows, each part's own in a random order where its weight cuts its passes."""
        mixed = rows
        for number, (count, places) in enumerate(zip(self.part_rows, self.part_places, strict=True)):
            if count and places % count:
                mixed = mixed.copy() if mixed is rows else mixed
                first = int(self._first_rows[number])
                order = epoch_permutation(
                    count, self._seed, 0, _FIRST_PART_STREAM + self._number + len(_STREAM_NUMBERS) * number
                )
                mixed[first : first + count] = rows[first : first + count][order]
        return mixed

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self._order is not None, "a stream without rows is dropped"
        return self._order.draws(step, self.per_step)

    def _row_of(self, place: int, epoch: int) -> tuple[int, int]:
        rows, epochs = self._rows_of(np.array([place]), np.array([epoch]))
        return int(rows[0]), int(epochs[0])

    def _rows_of(
        self, places: NDArray[np.int64], epochs: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        part = np.searchsorted(self._ends, places, side="right")
        # How often the part had been drawn from before, in all epochs of the stream.
        drawn = epochs * self._sizes[part] + places - (self._ends[part] - self._sizes[part])
        row_epochs, row = np.divmod(drawn, self._counts[part])
        return self._rows[self._first_rows[part] + row], row_epochs


def _places(parts: Sequence[Part], rows: Sequence[int]) -> tuple[int, ...]:
    """How many places of an epoch each part's rows of one kind fill.

    Raises:
        DataError: They are too many to be put in order.
    """
    wanted = [part.weight * count for part, count in zip(parts, rows, strict=True)]
    if sum(wanted) > _MOST_PLACES:
        raise DataError(
            f"data.blend: its weights make an epoch of {sum(wanted):.3g} samples, of which {_MOST_PLACES} can be put in"
            " order: divide all weights by the same number"
        )
    places = tuple(max(1, round(count)) if count else 0 for count in wanted)
    for part, given, asked in zip(parts, places, wanted, strict=True):
        if not given:
            continue
        share, asked_share = given / sum(places), asked / sum(wanted)
        if abs(share - asked_share) > _MOST_ROUNDING * asked_share:
            _LOGGER.warning(
                "data.blend: weight %g of %s gives it %.3g %% of the samples instead of %.3g %%, since places are "
                "rounded to whole ones: multiply all weights by the same number",
                part.weight,
                part.manifest,
                100 * share,
                100 * asked_share,
            )
    return places


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
