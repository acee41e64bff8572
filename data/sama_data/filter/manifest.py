"""Filters a manifest into a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sama_data.errors import DataError
from sama_data.filter.criteria import Criteria
from sama_data.filter.decide import KEPT, Decider
from sama_data.rewrite import rewrite_manifest
from sama_data.rows import Kind


@dataclass(frozen=True)
class FilterReport:
    """What became of the rows of a manifest.

    Attributes:
        counts: Rows by (dataset, kind, reason); the reason of those that stay is `KEPT`. A row is counted once.
        unmatched: What was asked for and no row had.
    """

    counts: Mapping[tuple[str, Kind, str], int]
    unmatched: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """All rows."""
        return sum(self.counts.values())

    @property
    def num_kept(self) -> int:
        """The rows that stay."""
        return sum(count for (_, _, reason), count in self.counts.items() if reason == KEPT)

    def dropped(self) -> dict[str, int]:
        """Returns how many rows went for which reason, the most frequent first."""
        return _by_count(
            {
                reason: sum(count for (_, _, other), count in self.counts.items() if other == reason)
                for _, _, reason in self.counts
                if reason != KEPT
            }
        )

    def groups(self) -> list[dict[str, Any]]:
        """Returns the counts of each dataset and kind, with their reasons, in the order of their names."""
        groups = []
        for dataset, kind in sorted({(dataset, kind) for dataset, kind, _ in self.counts}):
            found = {key[2]: count for key, count in self.counts.items() if key[:2] == (dataset, kind)}
            kept = found.pop(KEPT, 0)
            groups.append(
                {
                    "dataset": dataset,
                    "kind": kind,
                    "rows": kept + sum(found.values()),
                    "kept": kept,
                    "dropped": _by_count(found),
                }
            )
        return groups


def filter_manifest(manifest: Path, out: Path, criteria: Criteria) -> FilterReport:
    """Writes the rows of a manifest that meet the criteria as Parquet, in their order, whole or not at all.

    Nothing is written when no row stays.

    Raises:
        DataError: The manifest cannot be read or is empty, a column has the wrong type, or `out` cannot be
            written.
    """
    decider = Decider(criteria)

    def transform(batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        try:
            return batch.filter(pa.array(decider.keep(batch)))
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from None

    def report() -> FilterReport:
        return FilterReport(dict(decider.counts), tuple(decider.unmatched()))

    def describe() -> dict[str, Any]:
        found = report()
        counts = {"rows": found.num_rows, "kept": found.num_kept, "dropped": found.dropped()}
        return {"tool": "filter", "criteria": criteria.as_dict(), **counts}

    rewrite_manifest(manifest, out, transform, describe)
    found = report()
    if not found.num_rows:
        raise DataError(f"{manifest}: the manifest is empty: it needs at least one row")
    return found


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
