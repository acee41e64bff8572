"""Rows of a manifest as columns: checked and made canonical many at once, without a Python object for each.

`check_columns` says of most batches that every row is right. Where it cannot, `check_batch` asks `parse_row` row by
row: only it decides what is wrong, and finds the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.errors import DataError
from sama_data.places import Places
from sama_data.rows import (
    COUNT_COLUMNS,
    FLAG_COLUMNS,
    IMAGE_ENDING,
    KNOWN_COLUMNS,
    NUMBER_COLUMNS,
    PATH_COLUMNS,
    TEXT_COLUMNS,
    parse_row,
)

# large_string: beyond 2 GiB of text.
_TEXT = pa.large_string()
_OPTIONAL = [
    *((name, _TEXT) for name in TEXT_COLUMNS),
    *((name, pa.int64()) for name in COUNT_COLUMNS),
    *((name, pa.bool_()) for name in FLAG_COLUMNS),
    *((name, pa.float64()) for name in NUMBER_COLUMNS),
]
# What `parse_row` returns. Paths stay as the manifest writes them, relative to its folder.
SCHEMA = pa.schema(
    [("sample_id", _TEXT), ("kind", _TEXT), ("source", _TEXT), ("target", _TEXT), ("text", _TEXT), *_OPTIONAL]
)
# What a manifest written as Parquet may hold.
FILE_SCHEMA = pa.schema(
    [*((name, _TEXT) for name in (*PATH_COLUMNS, "instruction", "caption", "sample_id", "kind")), *_OPTIONAL]
)

# As `kind_of` tells it, of many at once.
ENDS_AS_IMAGE = rf"(?i){IMAGE_ENDING}\z"
_SAME_TYPES = ({str}, {int}, {float}, {int, float}, {bool})

# So many are looked at one by one.
_FEW_ROWS = 256

Columns = Mapping[str, pa.Array]
Given: TypeAlias = pa.RecordBatch | Sequence[Mapping[str, Any]]


class _UnclearError(Exception):
    """Some row is wrong, or of a form that only the check of single rows knows."""


def check_batch(given: Given, places: Places, start: int) -> pa.RecordBatch:
    """Checks rows and returns them in canonical form.

    Args:
        given: The rows as their manifest has them; unknown columns are passed over.
        places: Names the rows in errors.
        start: How many rows of the manifest are before the batch.

    Returns:
        The columns of SCHEMA; those that no row has may be missing.

    Raises:
        DataError: A row is wrong; the first one is named.
    """
    try:
        columns = _columns_of_batch(given) if isinstance(given, pa.RecordBatch) else _columns_of_records(given)
        return check_columns(columns, len(given))
    except _UnclearError:
        if len(given) > _FEW_ROWS:  # most of them may be clear: they are parted from the others
            middle = len(given) // 2
            parts = ((_slice(given, 0, middle), start), (_slice(given, middle, len(given)), start + middle))
            return pa.concat_batches([whole_batch(check_batch(part, places, first)) for part, first in parts])
        records = (_record(given, number, places.full(start + number)) for number in range(len(given)))
        rows = [parse_row(record, places.full(start + number)) for number, record in enumerate(records)]
        return pa.RecordBatch.from_pylist(rows, SCHEMA)


def check_columns(given: Columns, num_rows: int) -> pa.RecordBatch:
    """As `check_batch`, of columns that each hold something.

    Raises:
        _UnclearError: Not every row can be said to be right.
    """
    columns = _paths_and_text(given, num_rows)
    for name in ("sample_id", *TEXT_COLUMNS):
        if name in given:
            columns[name] = _text(given[name])
    for name, least in COUNT_COLUMNS.items():
        if name in given:
            columns[name] = _count(given[name], least)
    for name in FLAG_COLUMNS:
        if name in given:
            _require(pa.types.is_boolean(given[name].type))
            columns[name] = given[name]
    for name in NUMBER_COLUMNS:
        if name in given:
            columns[name] = _number(given[name])
    _check_ranges(columns)
    _check_members(columns)
    columns["kind"] = _kind(given.get("kind"), given.get("image"), columns)
    return pa.RecordBatch.from_pydict(columns)


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    """Returns a column of a canonical batch, all null where the batch has none."""
    place = batch.schema.get_field_index(name)
    return batch.column(place) if place >= 0 else pa.nulls(batch.num_rows, SCHEMA.field(name).type)


def whole_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a canonical batch with every column of SCHEMA; frame_start is 0 where it was absent."""
    columns = {name: column_of(batch, name) for name in SCHEMA.names}
    columns["frame_start"] = columns["frame_start"].fill_null(0)
    return pa.RecordBatch.from_pydict(columns, SCHEMA)


def file_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns a canonical batch as a Parquet manifest holds it, with every column of FILE_SCHEMA."""
    columns = {name: column_of(batch, name) for name in SCHEMA.names}
    is_edit, target, text = columns["source"].is_valid(), columns["target"], columns.pop("text")
    is_raw, is_image = pc.invert(is_edit), pc.equal(columns["kind"], "image")
    columns |= {
        "target": _where(is_edit, target),
        "image": _where(pc.and_(is_raw, is_image), target),
        "video": _where(pc.and_not(is_raw, is_image), target),
        "instruction": _where(is_edit, text),
        "caption": _where(is_raw, text),
        "frame_start": _where(pc.not_equal(columns["frame_start"], 0), columns["frame_start"]),
    }
    return pa.RecordBatch.from_pydict(columns, FILE_SCHEMA)


def text_bytes(column: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns a text column's bytes and its offsets in them, one more than rows; views, not copies."""
    _, offsets, content = column.cast(_TEXT).buffers()
    places = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(content or b"", np.uint8), places


def _columns_of_batch(batch: pa.RecordBatch) -> Columns:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if name in KNOWN_COLUMNS:
            columns[name] = column
    return _present(columns)


def _columns_of_records(records: Sequence[Mapping[str, Any]]) -> Columns:
    columns = {}
    for name in KNOWN_COLUMNS:
        values = [record.get(name) for record in records]
        types = set(map(type, values)) - {type(None)}
        if not types:
            continue
        # Arrow would take a true for a 1.0.
        _require(types in _SAME_TYPES)
        try:
            columns[name] = pa.array(values)
        except (ValueError, OverflowError):  # text that is not Unicode, numbers beyond 64 bits
            raise _UnclearError from None
    return _present(columns)


def _present(columns: Columns) -> Columns:
    """Those that hold something; pandas writes NaN for a value that is absent, in columns of text too."""
    cleared = {
        name: _where(pc.invert(pc.is_nan(column)), column) if pa.types.is_floating(column.type) else column
        for name, column in columns.items()
    }
    return {name: column for name, column in cleared.items() if column.null_count < len(column)}


def _slice(given: Given, first: int, end: int) -> Given:
    return given.slice(first, end - first) if isinstance(given, pa.RecordBatch) else given[first:end]


def _record(given: Given, number: int, place: str) -> Mapping[str, Any]:
    if not isinstance(given, pa.RecordBatch):
        return given[number]
    try:
        record: dict[str, Any] = given.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: holds text that is not UTF-8") from error
    return record


def _paths_and_text(given: Columns, num_rows: int) -> dict[str, pa.Array]:
    """The columns source, target and text: those of an edit where a row has any of the first two."""
    _require(("source" in given) == ("target" in given))
    clip, caption = _either(given.get("image"), given.get("video")), given.get("caption")
    columns: dict[str, Any] = {}
    if "source" not in given:
        _require(clip is not None and caption is not None)
        columns = {"target": clip, "text": caption}
    elif given["source"].null_count == 0:
        _require("instruction" in given)
        columns = {name: given[name] for name in ("source", "target")} | {"text": given["instruction"]}
    else:
        _require("instruction" in given and clip is not None and caption is not None)
        is_edit = given["source"].is_valid()
        _require(pc.all(pc.equal(is_edit, given["target"].is_valid())).as_py())
        columns = {
            "source": given["source"],
            "target": pc.if_else(is_edit, _as_text(given["target"]), clip),
            "text": pc.if_else(is_edit, _as_text(given["instruction"]), _as_text(caption)),
        }
    _require(columns["target"].null_count == 0 and columns["text"].null_count == 0)
    return {name: _text(column) for name, column in columns.items()}


def _either(first: pa.Array | None, second: pa.Array | None) -> pa.Array | None:
    if first is None or second is None:
        return None if first is second else _as_text(second if first is None else first)
    return pc.coalesce(_as_text(first), _as_text(second))


def _as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    _require(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    return column.cast(_TEXT)


def _text(column: pa.Array) -> pa.Array:
    """A column of text of which none is empty, blank or damaged."""
    column = _as_text(column)
    try:
        column.validate(full=True)  # UTF-8
    except pa.ArrowInvalid:
        raise _UnclearError from None
    _require(pc.min(pc.binary_length(column)).as_py() > 0)
    _require(not pc.any(pc.utf8_is_space(column)).as_py())
    content, places = text_bytes(column)
    _require(content[places[0] : places[-1]].min() > 0)
    return column


def _count(column: pa.Array, least: int) -> pa.Array:
    _require(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
    try:
        whole = column.cast(pa.int64())
    except pa.ArrowInvalid:  # not whole, or beyond 64 bits
        raise _UnclearError from None
    _require(pc.min(whole).as_py() >= least)
    return whole


def _number(column: pa.Array) -> pa.Array:
    _require(pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
    numbers = column.cast(pa.float64(), safe=False)
    _require(pc.all(pc.is_finite(numbers)).as_py())
    return numbers


def _check_ranges(columns: Columns) -> None:
    if "frame_end" in columns:
        ends = columns["frame_end"]
        starts = columns["frame_start"].fill_null(0) if "frame_start" in columns else 0
        _require(pc.all(pc.greater(ends, starts)).as_py())
    if "fps" in columns:
        _require(pc.min(columns["fps"]).as_py() > 0)


def _check_members(columns: Columns) -> None:
    for side in ("source", "target"):
        offsets, lengths = (columns.get(f"{side}_{what}") for what in ("offset", "bytes"))
        _require((offsets is None) == (lengths is None))
        if offsets is not None and lengths is not None:
            _require(offsets.is_valid().equals(lengths.is_valid()))
    if "source_offset" in columns:
        _require("source" in columns)
        _require(not pc.any(pc.and_(columns["source"].is_null(), columns["source_offset"].is_valid())).as_py())


def _kind(given: pa.Array | None, images: pa.Array | None, columns: Columns) -> pa.Array:
    """The kinds that are given, else those of raw clips in a column of images, else what whole files' names tell."""
    if given is not None:
        given = _as_text(given)
        known = pc.or_(pc.equal(given, "image"), pc.equal(given, "video"))
        _require(pc.all(known).as_py())
        if given.null_count == 0:
            return given
    if images is not None:
        is_picture = (
            pc.and_(images.is_valid(), columns["source"].is_null()) if "source" in columns else images.is_valid()
        )
        known = pc.if_else(is_picture, pa.scalar("image", _TEXT), pa.scalar(None, _TEXT))
        given = known if given is None else pc.coalesce(given, known)
    untold = given.is_null() if given is not None else pa.array(np.ones(len(columns["target"]), bool))
    for name in ("source_offset", "target_offset"):
        _require(name not in columns or not pc.any(pc.and_(untold, columns[name].is_valid())).as_py())
    is_image = pc.match_substring_regex(columns["target"], ENDS_AS_IMAGE)
    if "source" in columns:
        other = pc.xor(pc.match_substring_regex(columns["source"], ENDS_AS_IMAGE), is_image)
        _require(not pc.any(pc.and_(untold, other)).as_py())
    told = pc.if_else(is_image, pa.scalar("image", _TEXT), pa.scalar("video", _TEXT))
    return told if given is None else pc.coalesce(given, told)


def _where(mask: pa.Array, column: pa.Array) -> pa.Array:
    """The column, null where the mask does not hold."""
    return pc.if_else(mask, column, pa.scalar(None, column.type))


def _require(is_clear: bool) -> None:
    if not is_clear:
        raise _UnclearError
