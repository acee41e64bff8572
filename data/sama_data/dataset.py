"""The samples of one or several manifests, held as columns: millions of rows cost hundreds of bytes each."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sama_data.errors import DataError
from sama_data.media import Media
from sama_data.rows import KNOWN_COLUMNS, Kind, Row

# Paths stay as the manifest writes them, relative to the part's folder. large_string: beyond 2 GiB of text.
SCHEMA = pa.schema(
    [
        ("sample_id", pa.large_string()),
        ("kind", pa.string()),
        ("source", pa.large_string()),
        ("target", pa.large_string()),
        ("text", pa.large_string()),
        ("task", pa.string()),
        ("frame_start", pa.int64()),
        ("frame_end", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("num_frames", pa.int64()),
        ("source_offset", pa.int64()),
        ("source_bytes", pa.int64()),
        ("target_offset", pa.int64()),
        ("target_bytes", pa.int64()),
        ("source_width", pa.int64()),
        ("source_height", pa.int64()),
        ("source_num_frames", pa.int64()),
        ("codec", pa.string()),
        ("variable_fps", pa.bool_()),
        ("rejected", pa.string()),
        ("unscored", pa.string()),
        ("dataset", pa.string()),
        ("licence", pa.string()),
        ("if_score", pa.float64()),
        ("vq_score", pa.float64()),
        ("cp_score", pa.float64()),
        ("mc_score", pa.float64()),
    ]
)


# What a Parquet manifest may hold.
FILE_SCHEMA = pa.schema(
    [(name, SCHEMA.field(name).type if name in SCHEMA.names else pa.large_string()) for name in KNOWN_COLUMNS]
)


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


class Dataset(Sequence[Row]):
    """Rows by index; made by `sama_data.manifest.load_manifest` and `load_blend`.

    Args:
        table: One column per name of SCHEMA.
        parts: The manifests it came from, in the order of their rows.
    """

    def __init__(self, table: pa.Table, parts: tuple[Part, ...]) -> None:
        self._table = table.combine_chunks()
        self._columns = {name: self._table.column(name) for name in SCHEMA.names}
        self.parts = parts
        self._starts = [part.start for part in parts]
        self._is_image = np.asarray(self._columns["kind"].to_numpy(zero_copy_only=False) == "image", dtype=bool)
        self._is_rejected = self._columns["rejected"].is_valid().to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return int(self._table.num_rows)

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
        values = {name: column[index].as_py() for name, column in self._columns.items()}
        folder = self.part_of(index).folder
        source, source_range = values.pop("source"), (values.pop("source_offset"), values.pop("source_bytes"))
        target, target_range = values.pop("target"), (values.pop("target_offset"), values.pop("target_bytes"))
        return Row(
            index=index,
            source=None if source is None else Media.in_folder(folder, source, *source_range),
            target=Media.in_folder(folder, target, *target_range),
            **values,
        )

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def part_of(self, index: int) -> Part:
        """Returns the part that a row came from."""
        return self.parts[bisect.bisect_right(self._starts, index) - 1]

    def indices_of(self, kind: Kind) -> NDArray[np.int64]:
        """Returns the indices of the image rows or of the video rows that are not rejected, ascending, int64."""
        return np.flatnonzero((self._is_image if kind == "image" else ~self._is_image) & ~self._is_rejected)

    @property
    def num_raw(self) -> int:
        """Rows without a source that are not rejected: raw clips and pictures with a caption."""
        is_raw = self._columns["source"].is_null().to_numpy(zero_copy_only=False)
        return int(np.count_nonzero(is_raw & ~self._is_rejected))

    @property
    def num_rejected(self) -> int:
        """Rows that must not be trained on."""
        return int(np.count_nonzero(self._is_rejected))

    def digest(self) -> str:
        """Returns a digest of all rows: equal where two processes opened the same manifests."""
        state = hashlib.blake2b(digest_size=16)
        for name in SCHEMA.names:
            for chunk in self._columns[name].chunks:
                for buffer in chunk.buffers():
                    state.update(b"-" if buffer is None else buffer)
        return state.hexdigest()

    @property
    def name(self) -> str:
        """The manifests, for messages."""
        return ", ".join(str(part.manifest) for part in self.parts)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Reads columns of all rows, for counting and filtering.

        Args:
            names: Of SCHEMA.
        """
        return self._table.select(names)

    @property
    def table(self) -> pa.Table:
        """The columns, for counting and filtering; not to be changed."""
        return self._table


def concatenate(datasets: Sequence[Dataset], weights: Sequence[float]) -> Dataset:
    """Joins datasets of one manifest each; sample ids get the part's number in front, to stay unique.

    Raises:
        DataError: There is no dataset, or a weight is not above 0.
    """
    if not datasets:
        raise DataError("data.blend is empty: list at least one manifest")
    if len(datasets) == 1:
        weights = [1.0]  # alone, a weight weighs against nothing
    tables: list[pa.Table] = []
    parts: list[Part] = []
    start = 0
    for number, (dataset, weight) in enumerate(zip(datasets, weights, strict=True)):
        if not weight > 0:
            raise DataError(f"data.blend: weight {weight} of {dataset.name} must be greater than 0")
        table = dataset.table
        if len(datasets) > 1:
            ids = pa.array([f"{number}:{name}" for name in table.column("sample_id").to_pylist()], pa.large_string())
            table = table.set_column(table.schema.get_field_index("sample_id"), SCHEMA.field("sample_id"), ids)
        tables.append(table)
        parts.append(Part(dataset.parts[0].manifest, start, len(dataset), float(weight)))
        start += len(dataset)
    return Dataset(pa.concat_tables(tables), tuple(parts))
