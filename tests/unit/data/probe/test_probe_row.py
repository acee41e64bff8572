"""Which rows are rejected, and what is known of them all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sama_data.media import Media
from sama_data.probe.row import Finding, probe_row
from sama_data.rows import Row
from tests.support.zoo import encode, waves


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, shape in {"a": (9, 32, 48), "b": (9, 64, 96), "short": (8, 32, 48), "square": (9, 32, 32)}.items():
        encode(folder / f"{name}.mp4", waves(*shape))
    (folder / "bad.mp4").write_bytes(b"")
    return folder


def row_of(clips: Path, target: str, source: str | None = None, **columns: Any) -> Row:
    """A row whose clips are named without their extension."""
    paths = [None if name is None else Media(clips / f"{name}.mp4") for name in (source, target)]
    assert paths[1] is not None
    values = {"kind": "video"} | columns
    return Row(index=0, sample_id="x", source=paths[0], target=paths[1], text="t", **values)


def test_a_good_pair_has_the_facts_of_both(clips: Path) -> None:
    found = probe_row(row_of(clips, "a", "b"))
    assert found == Finding(
        "h264", "yuv420p", 8, 0, 48, 32, 9, 16.0, False, 9 / 16, source_width=96, source_height=64, source_num_frames=9
    )


@pytest.mark.parametrize(
    ("target", "source", "columns", "reason"),
    [
        ("a", "short", {}, "source and target differ in length: 8 and 9 frames"),
        ("a", "short", {"frame_end": 8}, None),
        ("a", "short", {"frame_start": 2, "frame_end": 6}, None),
        ("a", "short", {"frame_start": 2}, "source and target differ in length: 6 and 7 frames"),
        ("a", "short", {"frame_end": 9}, "source frame_end 9 is out of range: the clip has 8 frames"),
        ("a", "short", {"kind": "image"}, None),
        ("a", "square", {}, "source and target differ in aspect: 32x32 and 48x32"),
        ("square", "a", {"kind": "image"}, "source and target differ in aspect: 48x32 and 32x32"),
        ("bad", "a", {}, "target is empty (0 bytes)"),
        ("a", "bad", {}, "source is empty (0 bytes)"),
        ("bad", "gone", {}, "target is empty (0 bytes)"),
        ("gone", None, {}, "clip does not exist"),
        ("gone", None, {"kind": "image"}, "picture does not exist"),
        ("a", None, {"frame_start": 9}, "clip frame_start 9 is out of range: the clip has 9 frames"),
    ],
)
def test_reasons(clips: Path, target: str, source: str | None, columns: dict[str, Any], reason: str | None) -> None:
    found = probe_row(row_of(clips, target, source, **columns))
    assert found.rejected == reason and not found.is_passing
    assert (found.width is None) == (target in ("bad", "gone") or columns.get("frame_start") == 9)
    assert (found.source_width is None) == (source in ("bad", "gone", None) or columns.get("frame_end") == 9)


def test_the_least_difference_of_aspect_that_matters(tmp_path: Path) -> None:
    for name, width in (("target", 100), ("near", 102), ("far", 104)):
        encode(tmp_path / f"{name}.mp4", waves(1, 32, width))
    assert probe_row(row_of(tmp_path, "target", "near")).rejected is None
    assert probe_row(row_of(tmp_path, "near", "target")).rejected is None
    assert probe_row(row_of(tmp_path, "target", "far")).rejected is not None
    assert probe_row(row_of(tmp_path, "far", "target")).rejected is not None


def test_a_fault_of_the_disk_may_pass(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.stat", fail)
    found = probe_row(row_of(clips, "a"))
    assert found == Finding(rejected="clip cannot be read: Input/output error", is_passing=True)
