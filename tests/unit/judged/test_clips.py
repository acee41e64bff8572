"""Lists of clips: users' own, and as the benchmarks write them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.judged.clips import read_clips
from sama_mega.judged.suite import load_suite

OPENVE, RECO, VIE = (load_suite(name) for name in ("openve-bench", "reco-bench", "vie-bench"))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def lines(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def found(clips: Sequence) -> list[tuple[str, str, str]]:
    return [(clip.path.name, clip.instruction, clip.category) for clip in clips]


def test_a_plain_list(tmp_path: Path) -> None:
    touch(tmp_path, "clips/a.mp4", "clips/b.mp4")
    rows = [
        {"source": "clips/a.mp4", "target": "x.mp4", "instruction": "Add a cat.", "task": "add"},
        {"source": "clips/a.mp4", "instruction": "Make it snow.", "category": "Style/Tone/Weather Change", "task": "x"},
        {"source": str(tmp_path / "clips/b.mp4"), "instruction": " Swap it. ", "category": "SWAP", "sample_id": "7/b"},
        {"source": "clips/a.mp4", "instruction": "As in the picture.", "category": "ref-based swap"},
    ]
    listed = read_clips(lines(tmp_path / "m.jsonl", *rows), VIE)
    assert found(listed.clips) == [
        ("a.mp4", "Add a cat.", "add"),
        ("a.mp4", "Make it snow.", "style"),
        ("b.mp4", "Swap it.", "swap"),
    ]
    assert listed.left_out == {"needs a reference picture, which this model does not take": 1}
    names = [clip.name for clip in listed.clips]
    assert names[0].startswith("a-") and names[2].startswith("7_b-") and len(set(names)) == 3
    assert listed.clips[2].given_id == "7/b"
    # A name stands for what is asked: rows may move, but another instruction is another edit.
    rows[0]["instruction"] = "Add a dog."
    moved = [clip.name for clip in read_clips(lines(tmp_path / "m.jsonl", *reversed(rows)), VIE).clips]
    assert moved[:2] == names[:0:-1] and moved[2] not in names


def test_two_clips_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    touch(tmp_path, "videos/1.mp4")
    one, other = ({"source": f"/theirs/{folder}/1.mp4", "instruction": "Add a cat.", "task": "add"} for folder in "ab")
    path = lines(tmp_path / "m.jsonl", one, other)
    with pytest.raises(
        ConfigError, match=r"/theirs/b/1\.mp4 and /theirs/a/1\.mp4 of a row before were both found"
    ) as said:
        read_clips(path, VIE)
    assert str(said.value).startswith(f"{path} line 2: ")
    # Also where only one of them is edited.
    with pytest.raises(ConfigError, match="were both found"):
        read_clips(path, VIE, limit=1)
    lines(path, one | {"task": "ref_add"}, other)
    with pytest.raises(ConfigError, match="were both found"):
        read_clips(path, VIE)
    # The same clip, under names that it has.
    touch(tmp_path, "1.mp4")
    same = [one | {"source": name} for name in ("1.mp4", str(tmp_path / "1.mp4"), "./1.mp4")]
    same = [row | {"instruction": str(number)} for number, row in enumerate(same)]
    assert len(read_clips(lines(path, *same), VIE).clips) == 3
    assert len(read_clips(lines(path, one, one | {"instruction": "Add a dog."}), VIE).clips) == 2


def test_a_clip_that_is_not_edited_need_not_be_there(tmp_path: Path) -> None:
    touch(tmp_path, "1.mp4")
    rows = [{"source": f"{name}.mp4", "instruction": "Add a cat.", "task": "add"} for name in "123"]
    rows[2]["task"] = "ref_add"
    assert len(read_clips(lines(tmp_path / "m.jsonl", *rows), VIE, limit=1).clips) == 1


def test_openve_bench_as_it_comes(tmp_path: Path) -> None:
    touch(tmp_path, "videos/0_global_style.mp4", "videos/1_camera.mp4")
    (tmp_path / "benchmark_videos.csv").write_text(
        "edited_type,prompt,original_video\n"
        'global_style,"Ink, please",videos/0_global_style.mp4\ncamera_edit,Zoom,videos/1_camera.mp4\n'
    )
    listed = read_clips(tmp_path, OPENVE)
    assert found(listed.clips) == [("0_global_style.mp4", "Ink, please", "global_style")]
    assert sum(listed.left_out.values()) == 1


def test_reco_bench_as_it_comes(tmp_path: Path) -> None:
    touch(tmp_path, "add/src_videos/a.mp4", "style/b.mp4")
    (tmp_path / "add_test.txt").write_text("a.mp4: Add a cat: a white one. | refs/cat.png\n\n")
    (tmp_path / "style_test.txt").write_text("b.mp4: Van Gogh\nb.mp4: Ukiyo-e\n")
    (tmp_path / "requirements.txt").write_text("numpy\n")
    expected = [
        ("a.mp4", "Add a cat: a white one.", "add"),
        ("b.mp4", "Van Gogh", "style"),
        ("b.mp4", "Ukiyo-e", "style"),
    ]
    assert found(read_clips(tmp_path, RECO).clips) == expected
    assert found(read_clips(tmp_path, RECO, limit=1).clips) == expected[:2]


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "add.txt"])
def test_separators_of_unicode_end_no_line(tmp_path: Path, name: str) -> None:
    instruction = "Add a cat,\u2028a white\x0bone\u0085there."
    touch(tmp_path, "ä b.mp4")
    row = {"source": "ä b.mp4", "instruction": instruction, "category": "add"}
    texts = {
        "m.jsonl": json.dumps(row, ensure_ascii=False) + "\r\n\r\n",
        "m.csv": f"source;instruction;category\r\nä b.mp4;{instruction};add\r\n",
        "add.txt": f"ä b.mp4: {instruction}\n",
    }
    (tmp_path / name).write_text(texts[name], encoding="utf-8", newline="")
    assert found(read_clips(tmp_path / name, RECO).clips) == [("ä b.mp4", instruction, "add")]


def test_a_list_for_each_category_needs_no_column(tmp_path: Path) -> None:
    touch(tmp_path, "remove/videos/a.mp4")
    (tmp_path / "remove.json").write_text(json.dumps({"k1": {"source_video": "a.mp4", "prompt": "Remove it."}}))
    (tmp_path / "add.json").write_text("[]")
    (clip,) = read_clips(tmp_path, VIE).clips
    assert (clip.category, clip.given_id) == ("remove", "k1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"source": "a.mp4", "instruction": "x"},
            r"m.jsonl line 1: has no category: add a column `category` .*add, swap",
        ),
        ({"source": "a.mp4", "instruction": "x", "category": "zoom"}, r"line 1: category \(zoom\) must be one of: add"),
        ({"source": "a.mp4", "category": "add"}, "line 1: has no instruction: add a column `instruction`"),
        ({"instruction": "x", "category": "add"}, "line 1: has no source: add a column `source`"),
        ({"source": "z.mp4", "instruction": "x", "category": "add"}, "z.mp4 does not exist"),
        ([], "line 1: is no object"),
    ],
)
def test_a_row_that_lacks_something_is_one_line(tmp_path: Path, row: dict, message: str) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(ConfigError, match=message):
        read_clips(lines(tmp_path / "m.jsonl", row), VIE)


def test_what_cannot_be_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_clips(tmp_path / "none.jsonl", VIE)
    with pytest.raises(ConfigError, match="holds no list of clips"):
        read_clips(tmp_path, VIE)
    touch(tmp_path, "a.mp4", "one.csv", "two.csv")
    with pytest.raises(ConfigError, match=r"several lists \(one.csv, two.csv\)"):
        read_clips(tmp_path, VIE)
    with pytest.raises(ConfigError, match="must be a folder, or end in"):
        read_clips(tmp_path / "a.mp4", VIE)
    (tmp_path / "m.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds no clip that VIE-Bench style asks about"):
        read_clips(tmp_path / "m.jsonl", VIE)
    row = {"source": "a.mp4", "instruction": "x", "category": "add"}
    for limit in (None, 1):
        with pytest.raises(ConfigError, match="line 2: the same clip, instruction and category"):
            read_clips(lines(tmp_path / "m.jsonl", row, row), VIE, limit)
