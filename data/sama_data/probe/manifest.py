"""Probes a manifest into a new one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sama_data.columns import FILE_SCHEMA
from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.filter.decide import headline
from sama_data.journal import journal_path
from sama_data.manifest import load_manifest
from sama_data.probe.findings import Findings
from sama_data.probe.row import Finding
from sama_data.probe.run import Probed, Report, probe_rows
from sama_data.rewrite import check_output, plain_text, rewrite_manifest

PROBE_COLUMNS = tuple(name for name in Finding._fields if name != "is_passing")

_BATCH_ROWS = 65_536


@dataclass
class ProbeReport:
    """What a manifest's rows turned out to be.

    Attributes:
        num_rows: All rows.
        num_left: Rows that were rejected before and left alone.
        num_decoded: Rows whose clips were decoded in this run.
        num_readable: Rows of which every file could be decoded, whether or not they can be trained on.
        groups: Good rows by (kind, codec, width, height, frames).
        num_variable: Good rows whose frames come at uneven times.
        rejected: Rejected rows by reason, without its numbers.
        examples: For each of these reasons the first row's name and its whole reason.
    """

    num_rows: int
    num_left: int
    num_decoded: int
    num_readable: int = 0
    groups: Counter[tuple[str, str, int, int, int | None]] = field(default_factory=Counter)
    num_variable: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def num_rejected(self) -> int:
        """Rows that were rejected in this run."""
        return sum(self.rejected.values())

    @property
    def num_good(self) -> int:
        """Rows that can be trained on."""
        return self.num_rows - self.num_left - self.num_rejected


def probe_manifest(
    manifest: Path,
    out: Path | None,
    workers: int,
    timeout_seconds: float,
    report: Callable[[int], Report] = lambda total: lambda done: None,
) -> ProbeReport:
    """Decodes every clip of a manifest once and writes what was found into a new one, whole or not at all.

    A run that was killed goes on where it was: findings are kept in a journal beside `out`, each with the time at which
    its files were last written. Rows that were rejected before stay so.

    Args:
        manifest: JSONL or Parquet.
        out: The Parquet file to write; None writes nothing and keeps no journal.
        workers: Processes that decode.
        timeout_seconds: The longest that one row may take.
        report: Given the number of rows, returns what is called with the number of those that are done.

    Raises:
        DataError: The manifest or the journal cannot be used, no row can be decoded, or `out` cannot be written.
    """
    if out is not None:
        check_output(manifest, out)
    dataset = load_manifest(manifest)
    with Findings(None if out is None else journal_path(out), timeout_seconds) as findings:
        probed = probe_rows(dataset, findings, workers, timeout_seconds, report(len(dataset)))
        counted = _count(dataset, findings, probed)
        if counted.num_left < counted.num_rows and not counted.num_readable:
            reason, count = counted.rejected.most_common(1)[0]
            raise DataError(
                f"{manifest}: no row can be decoded, {count} of {counted.num_rows} because the {reason}: nothing is "
                "written; check that its paths are relative to its folder"
            )
        if out is not None:
            _write(dataset, out, findings, probed, counted)
    return counted


def _count(dataset: Dataset, findings: Findings, probed: Probed) -> ProbeReport:
    counted = ProbeReport(len(dataset), dataset.num_rejected, probed.num_decoded)
    for index, key in enumerate(probed.keys.tolist()):
        if not key:
            continue
        finding = findings[key]
        is_raw = bool(dataset.traits.is_raw[index])
        counted.num_readable += finding.width is not None and (is_raw or finding.source_width is not None)
        if finding.rejected is not None:
            reason = headline(finding.rejected)
            counted.rejected[reason] += 1
            if reason not in counted.examples:
                counted.examples[reason] = (dataset[index].sample_id, finding.rejected)
        else:
            kind = "image" if dataset.traits.is_image[index] else "video"
            assert finding.codec is not None and finding.width is not None and finding.height is not None
            counted.groups[kind, finding.codec, finding.width, finding.height, finding.num_frames] += 1
            counted.num_variable += bool(finding.variable_fps)
    return counted


def _write(dataset: Dataset, out: Path, findings: Findings, probed: Probed, counted: ProbeReport) -> None:
    manifest = dataset.parts[0].manifest

    def transform(batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        keys = probed.keys[first_row : first_row + batch.num_rows].tolist()
        found = [findings[key] if key else None for key in keys]
        if len(found) < batch.num_rows:
            raise _changed(manifest)
        for name in PROBE_COLUMNS:
            kind = FILE_SCHEMA.field(name).type
            values = pa.array([None if one is None else getattr(one, name) for one in found], kind)
            batch = _with_column(batch, name, pc.coalesce(values, _old_column(batch, name, kind)))
        return batch

    def describe() -> dict[str, Any]:
        # Probing takes hours: a manifest that was written anew meanwhile must not get another one's findings.
        if _digest(manifest) != dataset.rows[0].stored.digest():
            raise _changed(manifest)
        counts = {"rows": counted.num_rows, "good": counted.num_good, "rejected_before": counted.num_left}
        return {"tool": "probe", **counts, "rejected": dict(counted.rejected.most_common())}

    rewrite_manifest(manifest, out, transform, describe)


def _old_column(batch: pa.RecordBatch, name: str, kind: pa.DataType) -> pa.Array:
    """What the manifest said: the measured value goes before it."""
    place = batch.schema.get_field_index(name)
    if place < 0:
        return pa.nulls(batch.num_rows, kind)
    column = plain_text(batch.column(place))
    if pa.types.is_floating(column.type):  # pandas writes NaN for a value that is absent
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(kind)


def _with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if place < 0 else batch.set_column(place, name, values)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _changed(manifest: Path) -> DataError:
    return DataError(
        f"{manifest}: its rows changed while they were probed: start this command again, what was found is kept"
    )
