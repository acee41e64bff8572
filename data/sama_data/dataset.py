"""The samples of one or several manifests: a few bytes of each are held, the rest is read when it is wanted."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.columns import SCHEMA, whole_batch
from sama_data.errors import DataError
from sama_data.media import Media
from sama_data.names import default_name, hash_names, names_of, number_copies, with_copies
from sama_data.rows import Kind, Row
from sama_data.stored_rows import StoredRows
from sama_data.traits import Traits, join_traits, traits_of


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that came from one manifest.

    Attributes:
        manifest: The file.
        start: Index of its first row in the dataset.
        count: Number of its rows.
        weight: How often its rows are drawn in an epoch, on average.
    """

    manifest: Path
    start: int
    count: int
    weight: float = 1.0

    @property
    def folder(self) -> Path:
        """What the manifest's relative paths are relative to."""
        return self.manifest.parent


@dataclass(frozen=True, slots=True)
class NamedRows:
    """The rows of one manifest, each with a name of its own.

    Attributes:
        stored: The rows.
        traits: What they are and how large.
        copies: For each row the number behind its name, 0 for none; None where no row has one.
        order_digest: Of what decides which row a step draws: the names in order, which rows are images, which rejected.
    """

    stored: StoredRows
    traits: Traits
    copies: NDArray[np.int32] | None
    order_digest: str

    def record(self, row: int) -> dict[str, Any]:
        """Returns one row's canonical columns with its name."""
        record = self.stored.record(row)
        copy = 0 if self.copies is None else int(self.copies[row])
        record["sample_id"] = (record["sample_id"] or default_name(record)) + (f"#{copy}" if copy else "")
        return record

    def names(self, rows: NDArray[np.int64]) -> pa.Array:
        """Returns the names of some rows, in the order asked for."""
        names = self.stored.names(rows)
        return names if self.copies is None else with_copies(names, self.copies[rows])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows as canonical batches with every column of SCHEMA and their names as sample_id."""
        start = 0
        for batch in self.stored.scan(whole_batch):
            names = names_of(batch)
            if self.copies is not None:
                names = with_copies(names, self.copies[start : start + len(names)])
            start += len(names)
            yield batch.set_column(batch.schema.get_field_index("sample_id"), "sample_id", names)


def name_rows(stored: StoredRows) -> NamedRows:
    """Looks at every row once and finds its name.

    Raises:
        DataError: A row is wrong, or two have the same `sample_id`.
    """
    seen = list(stored.scan(lambda batch: (traits_of(batch), hash_names(names_of(batch)))))
    hashes = np.concatenate([hashes for _, hashes in seen])
    copies = number_copies(hashes, lambda: stored.scan(lambda batch: batch), stored.places)
    traits = join_traits([traits for traits, _ in seen])
    state = hashlib.blake2b(hashes.astype("<u8").tobytes(), digest_size=16)
    for flags in (traits.is_image, traits.is_rejected):
        state.update(np.packbits(flags).tobytes())
    return NamedRows(stored, traits, copies, state.hexdigest())


class Dataset(Sequence[Row]):
    """Rows by index; made by `sama_data.manifest.load_manifest` and `load_blend`.

    Args:
        rows: Those of each part.
        parts: The manifests they came from, in the order of their rows.
    """

    def __init__(self, rows: Sequence[NamedRows], parts: Sequence[Part]) -> None:
        self.rows = tuple(rows)
        self.parts = tuple(parts)
        self._starts = [part.start for part in parts]
        self.traits = join_traits([one.traits for one in rows])

    def __len__(self) -> int:
        return len(self.traits.is_image)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Returns the row at an index; its paths are joined with the manifest's folder."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a dataset of {len(self)}")
        number = bisect.bisect_right(self._starts, index) - 1
        part = self.parts[number]
        values = self.rows[number].record(index - part.start)
        if len(self.parts) > 1:
            values["sample_id"] = f"{number}:{values['sample_id']}"  # it is unique in its own manifest only
        source, target = (_take_media(values, side, part.folder) for side in ("source", "target"))
        assert target is not None, "parse_row refuses a row without one"
        return Row(index=index, source=source, target=target, **values)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields columns of all rows, some rows at a time.

        Args:
            names: Of SCHEMA.
        """
        for number, rows in enumerate(self.rows):
            for batch in rows.batches():
                chosen = batch.select(names)
                if len(self.rows) > 1 and "sample_id" in names:
                    place = chosen.schema.get_field_index("sample_id")
                    chosen = chosen.set_column(place, SCHEMA.field("sample_id"), _prefixed(number, chosen["sample_id"]))
                yield chosen

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Reads columns of all rows at once, as `batches` does."""
        return pa.Table.from_batches(self.batches(names))

    def sample_ids(self, indices: NDArray[np.int64]) -> list[str]:
        """Returns the names of the rows at indices ``[N]``, without reading what else they hold."""
        found = np.empty(len(indices), object)
        part_of = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(part_of).tolist():
            here = part_of == number
            names = self.rows[number].names(indices[here] - self._starts[number])
            found[here] = (_prefixed(number, names) if len(self.rows) > 1 else names).to_pylist()
        return found.tolist()

    def indices_of(self, kind: Kind) -> NDArray[np.int64]:
        """Returns the indices of the image rows or of the video rows that are not rejected, ascending, int64."""
        is_image = self.traits.is_image
        return np.flatnonzero((is_image if kind == "image" else ~is_image) & ~self.traits.is_rejected)

    @property
    def num_raw(self) -> int:
        """Rows without a source that are not rejected: raw clips and pictures with a caption."""
        return int(np.count_nonzero(self.traits.is_raw & ~self.traits.is_rejected))

    @property
    def num_rejected(self) -> int:
        """Rows that must not be trained on."""
        return int(np.count_nonzero(self.traits.is_rejected))

    def digest(self) -> str:
        """Returns a digest of the manifests: equal where two processes opened the same ones.

        Raises:
            DataError: A manifest can no longer be read.
        """
        state = hashlib.blake2b(digest_size=16)
        for rows in self.rows:
            state.update(rows.stored.digest().encode())
        return state.hexdigest()

    def order_digest(self) -> str:
        """Returns a digest that is equal where a position in the data means the same row.

        Unlike `digest` it passes over columns that may be added to a manifest while it is trained on, such as scores.
        """
        return hashlib.blake2b("".join(rows.order_digest for rows in self.rows).encode(), digest_size=16).hexdigest()

    @property
    def name(self) -> str:
        """The manifests, for messages."""
        return ", ".join(str(part.manifest) for part in self.parts)


def concatenate(datasets: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """Joins datasets of one manifest each; sample ids get the part's number in front, to stay unique.

    Raises:
        DataError: There is no dataset, or a weight is not above 0.
    """
    if not datasets:
        raise DataError("data.blend is empty: list at least one manifest")
    if len(datasets) == 1:
        weights = [1.0]  # alone, a weight weighs against nothing
    parts: list[Part] = []
    start = 0
    for dataset, weight in zip(datasets, weights, strict=True):
        if not weight > 0:
            raise DataError(f"data.blend: weight {weight} of {dataset.name} must be greater than 0")
        parts.append(Part(dataset.parts[0].manifest, start, len(dataset), float(weight)))
        start += len(dataset)
    return Dataset([rows for dataset in datasets for rows in dataset.rows], parts)


def _prefixed(number: int, names: pa.Array) -> pa.Array:
    front, nothing = pa.scalar(f"{number}:", pa.large_string()), pa.scalar("", pa.large_string())
    return pc.binary_join_element_wise(front, names, nothing)


def _take_media(values: dict[str, Any], side: str, folder: Path) -> Media | None:
    path, offset, num_bytes = (values.pop(name) for name in (side, f"{side}_offset", f"{side}_bytes"))
    return None if path is None else Media.in_folder(folder, path, offset, num_bytes)
