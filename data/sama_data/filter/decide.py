"""Why each row of a batch is kept or dropped, column by column."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.columns import ENDS_AS_IMAGE
from sama_data.errors import DataError
from sama_data.filter.criteria import (
    Criteria,
    TaskRule,
    allows_commercial_use,
    matches_task,
    simplified,
    simplified_licence,
)
from sama_data.rewrite import target_names, text_column
from sama_data.rows import Kind

KEPT = "kept"
UNKNOWN = "-"
_SCORE_DIGITS = 6

Counts = Counter[tuple[str, Kind, str]]

_KINDS: tuple[Kind, Kind] = ("video", "image")


class Decider:
    """Judges batches of one manifest, and counts what became of their rows.

    The first of these that applies is a row's reason: it is rejected, its licence, its task, a score that is
    absent, a score that is too low.

    Args:
        criteria: What a row must have.

    Attributes:
        counts: Rows by (dataset, kind, reason); the reason of those that stay is `KEPT`.
    """

    def __init__(self, criteria: Criteria) -> None:
        self._criteria = criteria
        self._reasons = [KEPT]
        self._codes = {KEPT: 0}
        self._seen_tasks: set[tuple[str | None, str | None]] = set()
        self._seen_licences: set[str] = set()
        self.counts: Counts = Counter()

    def keep(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Returns which rows of a batch stay, bool ``[rows]``; adds all of them to `counts`.

        Raises:
            DataError: A column that is looked at has the wrong type.
        """
        is_image = image_rows(batch)
        reasons = np.zeros(batch.num_rows, np.int32)
        datasets = text_column(batch, "dataset")
        for found in (
            self._rejected(batch),
            self._licences(batch),
            self._tasks(batch, datasets),
            *self._scores(batch, is_image),
        ):
            reasons = np.where(reasons == 0, found, reasons)
        self._count(datasets, is_image, reasons)
        return np.asarray(reasons == 0)

    def unmatched(self) -> list[str]:
        """Returns the tasks and licences that were asked for and that no row had: probably misspelt."""
        missing = [f"--task {rule}" for rule in self._criteria.task_rules if not self._was_met(rule)]
        seen = {simplified_licence(name) for name in self._seen_licences}
        return missing + [f"--licence {name}" for name in self._criteria.licences if name not in seen]

    def _was_met(self, rule: TaskRule) -> bool:
        if rule.is_preset and not any(rule.names_dataset(simplified(dataset or "")) for dataset, _ in self._seen_tasks):
            return True
        return any(
            task is not None and rule in self._criteria.rules_for(dataset) and matches_task(rule, task)
            for dataset, task in self._seen_tasks
        )

    def _rejected(self, batch: pa.RecordBatch) -> NDArray[np.int32]:
        return _by_value(
            (text_column(batch, "rejected"),), lambda text: self._code(f"rejected: {headline(text)}" if text else KEPT)
        )

    def _licences(self, batch: pa.RecordBatch) -> NDArray[np.int32]:
        def code(licence: str | None) -> int:
            if licence is not None:
                self._seen_licences.add(licence)
            return self._code(self._licence_reason(licence))

        return _by_value((text_column(batch, "licence"),), code)

    def _licence_reason(self, licence: str | None) -> str:
        criteria = self._criteria
        if criteria.licences and (licence is None or simplified_licence(licence) not in criteria.licences):
            return f"licence {licence or 'unknown'}: not asked for"
        if criteria.commercial_only and (licence is None or not allows_commercial_use(licence)):
            return f"licence {licence or 'unknown'}: not known to allow commercial use"
        return KEPT

    def _tasks(self, batch: pa.RecordBatch, datasets: pa.Array) -> NDArray[np.int32]:
        def code(dataset: str | None, task: str | None) -> int:
            self._seen_tasks.add((dataset, task))
            rules = self._criteria.rules_for(dataset)
            if not rules or (task is not None and any(matches_task(rule, task) for rule in rules)):
                return self._code(KEPT)
            return self._code("no task" if task is None else f"task {task}: not asked for")

        if not self._criteria.task_rules:
            return np.zeros(batch.num_rows, np.int32)
        return _by_value((datasets, text_column(batch, "task")), code)

    def _scores(self, batch: pa.RecordBatch, is_image: NDArray[np.bool_]) -> Iterable[NDArray[np.int32]]:
        """Yields first which rows lack a score, then which have one that is too low."""
        is_edit = ~_is_null(text_column(batch, "source"))
        wanted = [
            (name, least, is_edit & (is_image == (kind == "image")))
            for kind, scores in self._criteria.min_scores.items()
            for name, least in scores.items()
        ]
        columns = {name: _numbers(batch, name) for name, _, _ in wanted}
        if not self._criteria.keep_unscored:
            for name, _, rows in wanted:
                yield np.where(rows & np.isnan(columns[name]), self._code(f"no {name}"), 0).astype(np.int32)
        for name, least, rows in wanted:
            # NaN is not below anything: an absent score was looked at above.
            yield np.where(rows & (columns[name] < least), self._code(f"{name} < {least:g}"), 0).astype(np.int32)

    def _code(self, reason: str) -> int:
        if reason not in self._codes:
            self._codes[reason] = len(self._reasons)
            self._reasons.append(reason)
        return self._codes[reason]

    def _count(self, datasets: pa.Array, is_image: NDArray[np.bool_], reasons: NDArray[np.int32]) -> None:
        table = pa.table({"dataset": datasets, "image": is_image, "reason": reasons})
        groups = table.group_by(["dataset", "image", "reason"]).aggregate([([], "count_all")])
        for group in groups.to_pylist():
            dataset = group["dataset"] or UNKNOWN
            self.counts[dataset, _KINDS[group["image"]], self._reasons[group["reason"]]] += group["count_all"]


def headline(text: str) -> str:
    """Returns what many rejected rows have in common: the text up to its first number, quote or colon."""
    return re.split(r"\s*[\d:;('\"]", text.strip(), maxsplit=1)[0] or text.strip()


def image_rows(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    """Returns which rows are images, bool ``[rows]``: as `sama_data.rows.parse_row` tells it."""
    by_name = pc.match_substring_regex(target_names(batch), ENDS_AS_IMAGE)
    is_raw = pc.and_(text_column(batch, "source").is_null(), text_column(batch, "target").is_null())
    by_column = pc.or_(by_name, pc.and_(is_raw, text_column(batch, "image").is_valid()))
    by_kind = pc.equal(text_column(batch, "kind"), "image")
    is_image = pc.fill_null(pc.coalesce(by_kind, by_column), False)
    return np.asarray(is_image.to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(batch: pa.RecordBatch, name: str) -> NDArray[np.float64]:
    """Returns a column as float64, NaN where it is null or there is no such column.

    To a millionth: 8.7 as float32, or a mean whose sum was rounded, is not below 8.7.
    """
    if name not in batch.schema.names:
        return np.full(batch.num_rows, np.nan)
    column = batch.column(name)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"column {name} must hold numbers, not {column.type}")
    return np.round(np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False)), _SCORE_DIGITS)


def _is_null(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=bool)


def _by_value(columns: tuple[pa.Array, ...], code: Callable[..., int]) -> NDArray[np.int32]:
    """Returns `code` of each row's values, int32 ``[rows]``, asking once for each distinct combination."""
    if not len(columns[0]):
        return np.zeros(0, np.int32)
    combined = np.zeros(len(columns[0]), np.int64)
    values: list[list[Any]] = []
    for column in columns:
        encoded = column.dictionary_encode(null_encoding="encode")
        values.append(encoded.dictionary.to_pylist())
        combined = combined * len(values[-1]) + np.asarray(encoded.indices)
    distinct, places = np.unique(combined, return_inverse=True)
    codes = [code(*_unpacked(int(number), values)) for number in distinct]
    return np.asarray(codes, np.int32)[places]


def _unpacked(number: int, values: list[list[Any]]) -> tuple[Hashable, ...]:
    found: list[Hashable] = []
    for choices in reversed(values):
        number, place = divmod(number, len(choices))
        found.append(choices[place])
    return tuple(reversed(found))
