"""Every clip of the zoo comes out as the table in docs/data.md says, from `data probe` and from what training reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_data.clips import load_clip
from sama_data.errors import ClipError
from sama_data.manifest import load_manifest, write_jsonl
from sama_data.probe.manifest import ProbeReport, probe_manifest
from sama_data.rows import Row
from tests.support.zoo import PAIRS, ZOO, write_zoo

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")

DOCUMENT = Path(__file__).resolve().parents[4] / "docs/data.md"
HEADING = "| clip | what it is | what `data probe` says |"


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeReport, list[Row]]:
    folder = tmp_path_factory.mktemp("zoo")
    write_jsonl(write_zoo(folder), folder / "zoo.jsonl")
    report = probe_manifest(folder / "zoo.jsonl", folder / "probed.parquet", workers=2, timeout_seconds=60)
    return report, list(load_manifest(folder / "probed.parquet"))


def outcome(row: Row) -> str:
    if row.rejected is not None:
        return f"rejected: {row.rejected}"
    parts = [f"{row.codec} {row.width}x{row.height}", f"{row.num_frames} frame" + ("s" if row.num_frames != 1 else "")]
    parts += [] if row.fps is None else [f"{row.fps:g} fps" + (", variable" if row.variable_fps else "")]
    parts += [f"{row.pixel_format} of {row.bit_depth} bits"]
    parts += [f"turned by {row.rotation} degrees"] if row.rotation else []
    if row.is_edit:
        parts.append(f"source {row.source_width}x{row.source_height}, {row.source_num_frames} frames")
    return ", ".join(parts)


def test_the_docs_say_what_becomes_of_each_clip(probed: tuple[ProbeReport, list[Row]]) -> None:
    """Where this fails, its left side is the table as it should be."""
    _, rows = probed
    meanings = [beast.meaning for beast in ZOO] + [pair.meaning for pair in PAIRS]
    table = [f"| `{row.sample_id}` | {what} | `{outcome(row)}` |" for row, what in zip(rows, meanings, strict=True)]
    lines = DOCUMENT.read_text("utf-8").splitlines()
    start = lines.index(HEADING) + 2
    end = next(number for number in range(start, len(lines) + 1) if not "".join(lines[number : number + 1]))
    assert "\n".join(table) == "\n".join(lines[start:end])


def test_training_reads_what_was_not_rejected_and_nothing_else_but_pairs_that_do_not_match(
    probed: tuple[ProbeReport, list[Row]],
) -> None:
    _, rows = probed
    for row in rows:
        try:
            clip = load_clip(row, [(32, 32)], max_frames=81)
        except ClipError as error:
            assert row.rejected is not None and error.reason in row.rejected, row.sample_id
            continue
        assert row.rejected is None or "differ" in row.rejected, row.sample_id
        if row.rejected is None:
            assert row.num_frames is not None and len(clip.target) == (row.num_frames - 1) // 4 * 4 + 1


def test_the_zoo_is_half_good(probed: tuple[ProbeReport, list[Row]]) -> None:
    report, rows = probed
    assert report.num_rows == len(rows) == len(ZOO) + len(PAIRS)
    assert report.num_rejected == sum(row.rejected is not None for row in rows)
    assert min(report.num_good, report.num_rejected) >= 12 and report.num_variable == 1
