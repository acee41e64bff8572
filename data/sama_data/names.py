"""Every row's own name: the one that is given, else one made of its clip; millions are compared by their hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.columns import column_of, text_bytes
from sama_data.errors import DataError
from sama_data.places import Places

NAME_COLUMNS = ("sample_id", "target", "target_offset", "frame_start", "frame_end")
_WORD_BYTES = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_ALL_BITS = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_COPY = r"#[0-9]+\z"


def names_of(batch: pa.RecordBatch) -> pa.Array:
    """Returns the rows' names as far as they follow from the rows themselves; copies of a clip have the same.

    Args:
        batch: A canonical batch with at least the columns of NAME_COLUMNS that it has at all.
    """
    given = column_of(batch, "sample_id")
    if given.null_count == 0:
        return given
    clips = batch.column("target")
    offsets, starts, ends = (column_of(batch, name) for name in ("target_offset", "frame_start", "frame_end"))
    if offsets.null_count < len(offsets):
        clips = pc.coalesce(_joined(clips, ":", _words(offsets)), clips)
    starts = starts.fill_null(0)
    is_whole = pc.and_(pc.equal(starts, 0), ends.is_null())
    if not pc.all(is_whole).as_py():
        ranges = _joined(clips, "@", _words(starts), "-", _words(ends).fill_null(""))
        clips = pc.if_else(is_whole, clips, ranges)
    return pc.coalesce(given, clips)


def default_name(record: Mapping[str, Any]) -> str:
    """Returns the name that `names_of` makes of one canonical row without a given one."""
    target, offset, start, end = (record[name] for name in NAME_COLUMNS[1:])
    clip = target if offset is None else f"{target}:{offset}"
    return clip if start == 0 and end is None else f"{clip}@{start}-{'' if end is None else end}"


def hash_names(names: pa.Array) -> NDArray[np.uint64]:
    """Returns 64 bits of each name: equal for equal names, and hardly ever for others."""
    content, places = text_bytes(names)
    padded = np.concatenate([content[places[0] : places[-1]], np.zeros(_WORD_BYTES, np.uint8)])
    starts, lengths = places[:-1] - places[0], np.diff(places)
    # The eight bytes from every place on, without a copy of them.
    words = np.ndarray(len(padded) - _WORD_BYTES + 1, "<u8", buffer=padded, strides=(1,))
    hashes = np.empty(len(names), np.uint64)
    rows, left, mixed = np.arange(len(names)), lengths, lengths.astype(np.uint64) * _MULTIPLIER
    while len(rows):
        if left.min() <= 0:
            hashes[rows[left <= 0]] = mixed[left <= 0]
            more = left > 0
            rows, starts, mixed, left = rows[more], starts[more], mixed[more], left[more]
            continue
        unused_bits = np.maximum(_WORD_BYTES - left, 0).astype(np.uint64) * np.uint64(8)
        mixed = (mixed ^ (words[starts] & (_ALL_BITS >> unused_bits))) * _MULTIPLIER
        mixed ^= mixed >> np.uint64(32)
        starts, left = starts + _WORD_BYTES, left - _WORD_BYTES
    return hashes


def number_copies(
    hashes: NDArray[np.uint64], batches: Callable[[], Iterable[pa.RecordBatch]], places: Places
) -> NDArray[np.int32] | None:
    """Tells rows apart that have one name: those without a given one are numbered, in the manifest's order.

    Args:
        hashes: `hash_names` of all rows' `names_of`.
        batches: Reads the rows again, in canonical batches with the columns of NAME_COLUMNS; asked only where
            names may be equal.
        places: Names the rows in errors.

    Returns:
        For every row 0, or the number n that makes its name ``name#n``; None where no row needs one.

    Raises:
        DataError: A name that is given is another row's already.
    """
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return None
    copies = np.zeros(len(hashes), np.int32)
    first_rows: dict[str, int] = {}
    latest_copy: dict[str, int] = {}
    for row, name, is_given in _entangled(hashes, repeated, batches()):
        if name not in first_rows:
            first_rows[name] = row
            continue
        if is_given:
            first = places.short(first_rows[name])
            raise DataError(f"{places.full(row)}: sample_id {name!r} is that of {first} already")
        # One clip may be the target of several rows; their order in the manifest tells them apart.
        copy = latest_copy.get(name, 1) + 1
        while f"{name}#{copy}" in first_rows:
            copy += 1
        latest_copy[name] = copies[row] = copy
        first_rows[f"{name}#{copy}"] = row
    return copies


def with_copies(names: pa.Array, copies: NDArray[np.int32]) -> pa.Array:
    """Returns names with their numbers from `number_copies` behind them."""
    numbers = pa.array(copies)
    return pc.if_else(pc.greater(numbers, 0), _joined(names, "#", _words(numbers)), names)


def _entangled(
    hashes: NDArray[np.uint64], repeated: NDArray[np.uint64], batches: Iterable[pa.RecordBatch]
) -> Iterator[tuple[int, str, bool]]:
    """Yields (row, name, whether it is given) of the rows that may share a name, also one with a number."""
    start = 0
    for batch in batches:
        names = names_of(batch)
        places = np.searchsorted(repeated, hashes[start : start + len(names)])
        is_repeated = repeated[np.minimum(places, len(repeated) - 1)] == hashes[start : start + len(names)]
        chosen = np.flatnonzero(is_repeated | pc.match_substring_regex(names, _COPY).to_numpy(zero_copy_only=False))
        is_given = column_of(batch, "sample_id").is_valid().take(pa.array(chosen)).to_pylist()
        yield from zip((chosen + start).tolist(), names.take(pa.array(chosen)).to_pylist(), is_given, strict=True)
        start += len(names)


def _words(numbers: pa.Array) -> pa.Array:
    return numbers.cast(pa.large_string())


def _joined(*parts: pa.Array | str) -> pa.Array:
    """Joins texts element by element; null where one is null."""
    texts = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar("", pa.large_string()))
