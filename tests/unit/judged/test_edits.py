"""Which file is the edit of which clip."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sama_mega.judged.clips import ClipList, SourceClip, given_names, read_clips
from sama_mega.judged.edits import find_edits
from sama_mega.judged.suite import load_suite


def clip(name: str, given_id: str | None, source: str, category: str) -> SourceClip:
    return SourceClip(name, given_id, Path(source), "Do it.", category)


def found(folder: Path, *clips: SourceClip) -> dict[str, str]:
    names = Counter((clip.category, name) for clip in clips for name in given_names(clip.given_id, clip.path))
    edits = find_edits(ClipList(clips, {}, names), folder)
    return {name: str(path.relative_to(folder)) for name, path in edits.items()}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_own_names_win_over_the_lists_and_those_over_the_sources(tmp_path: Path) -> None:
    one = clip("a-1f", "7", "videos/a.mp4", "add")
    for name in ("add/a.mp4", "a.mp4", "add/7.mp4", "7.mp4", "add/a-1f.mp4", "a-1f.mp4"):
        touch(tmp_path, name)
        assert found(tmp_path, one) == {"a-1f": name}


def test_a_name_that_two_clips_have_is_nobodys(tmp_path: Path) -> None:
    """Benchmarks count anew in each category: `1.mp4` beside the folders is the edit of one of them at most."""
    clips = [clip("x", "1", "a.mp4", "add"), clip("y", "1", "b.mp4", "remove"), clip("z", "2", "1.mp4", "remove")]
    touch(tmp_path, "1.mp4")
    assert found(tmp_path, *clips) == {}
    touch(tmp_path, "add/1.mp4", "remove/1.mp4", "remove/b.mp4", "2.mp4")
    assert found(tmp_path, *clips) == {"x": "add/1.mp4", "y": "remove/b.mp4", "z": "2.mp4"}


def test_instructions_for_one_source_do_not_share_an_edit(tmp_path: Path) -> None:
    clips = [clip("a-1", None, "a.mp4", "add"), clip("a-2", None, "a.mp4", "add"), clip("a-3", None, "a.mp4", "style")]
    touch(tmp_path, "a.mp4", "add/a.mp4", "style/a.mp4", "a-2.mp4")
    assert found(tmp_path, *clips) == {"a-2": "a-2.mp4", "a-3": "style/a.mp4"}


@pytest.mark.parametrize("category", ["add", "ref_add"])
def test_a_row_that_is_not_edited_still_has_its_names(tmp_path: Path, category: str) -> None:
    """Of two rows of one source only the first is edited: the edit that both could have is not its own for that."""
    touch(tmp_path, "lake.mp4", "made/lake.mp4")
    rows = [{"source": "lake.mp4", "instruction": "Add a cat.", "category": "add"}]
    rows.append(rows[0] | {"instruction": "Add a dog.", "category": category})
    path = tmp_path / "m.jsonl"
    for number, edits in ((2, 0), (1, 1)):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:number]))
        listed = read_clips(path, load_suite("vie-bench"), limit=1)
        assert len(listed.clips) == 1 and len(find_edits(listed, tmp_path / "made")) == edits
    # In a folder of its category only its category's rows count.
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    touch(tmp_path, "made/add/lake.mp4")
    listed = read_clips(path, load_suite("vie-bench"), limit=1)
    assert len(find_edits(listed, tmp_path / "made")) == (category == "ref_add")
