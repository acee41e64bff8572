"""Filtering: the columns against a plain reading of each row, and the files that come out."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sama_data.errors import DataError
from sama_data.filter.criteria import Criteria, parse_min_scores, parse_tasks
from sama_data.filter.decide import KEPT, Decider, headline, image_rows
from sama_data.filter.manifest import filter_manifest
from sama_data.manifest import load_manifest
from sama_data.rewrite import read_history
from sama_data.rows import kind_of
from sama_mega.__main__ import main

EDIT = {"source": "a.mp4", "target": "b.mp4", "instruction": "Do."}
IMAGE_EDIT = {"source": "a.png", "target": "b.JPG", "instruction": "Do."}
GOOD = {"if_score": 9.0, "vq_score": 9.0, "cp_score": 9.0, "mc_score": 9.0}


def outcome(row: dict, criteria: Criteria | None = None) -> str:
    decider = Decider(criteria or Criteria())
    kept = decider.keep(pa.RecordBatch.from_pylist([row]))
    ((_, _, reason), count), *others = decider.counts.items()
    assert count == 1 and not others and kept.tolist() == [reason == KEPT]
    return reason


PAPER = parse_tasks(["paper"])
NC = {"licence": "CC-BY-NC-4.0"}
OUTCOMES = [
    (EDIT | GOOD, {}, KEPT),
    (EDIT | GOOD | {"if_score": 8, "cp_score": 8.0, "mc_score": 8.0}, {}, KEPT),
    (EDIT | GOOD | {"if_score": 7.999}, {}, "if_score < 8"),
    (EDIT | GOOD | {"vq_score": 8.667}, {}, "vq_score < 9"),
    # Equal, but for how it was stored or added up.
    (EDIT | GOOD | {"vq_score": sum((8.7, 9.1, 9.2)) / 3}, {}, KEPT),
    (EDIT | GOOD | {"if_score": float(np.float32(8.7))}, {"min_scores": parse_min_scores(["if_score=8.7"])}, KEPT),
    (EDIT | GOOD | {"cp_score": 7.0, "mc_score": 1.0}, {}, "cp_score < 8"),
    (EDIT | GOOD | {"mc_score": 7.0}, {}, "mc_score < 8"),
    (EDIT | GOOD | {"mc_score": None}, {}, "no mc_score"),
    (EDIT | GOOD | {"mc_score": math.nan, "if_score": 1.0}, {}, "no mc_score"),
    (EDIT | GOOD | {"mc_score": None}, {"keep_unscored": True}, KEPT),
    (EDIT | GOOD | {"mc_score": None, "if_score": 1.0}, {"keep_unscored": True}, "if_score < 8"),
    (EDIT, {}, "no if_score"),
    (EDIT, {"keep_unscored": True}, KEPT),
    (EDIT, {"min_scores": {"image": {}, "video": {}}}, KEPT),
    (IMAGE_EDIT | GOOD | {"mc_score": None}, {}, KEPT),
    (IMAGE_EDIT | GOOD | {"if_score": 8.9}, {}, "if_score < 9"),
    (EDIT | GOOD | {"if_score": 8.9}, {"min_scores": parse_min_scores(["video.if_score=9"])}, "if_score < 9"),
    # A raw clip has nothing to be judged by.
    ({"video": "c.mp4", "caption": "A cat."}, {}, KEPT),
    ({"video": "c.mp4", "caption": "A cat.", "rejected": "is empty (0 bytes)"}, {}, "rejected: is empty"),
    (EDIT | GOOD | {"rejected": "is truncated: 3 of its 81 frames"} | NC, {}, "rejected: is truncated"),
    (EDIT | GOOD | {"rejected": None}, {}, KEPT),
    (EDIT | GOOD | NC, {}, KEPT),
    (EDIT | GOOD | NC, {"commercial_only": True}, "licence CC-BY-NC-4.0: not known to allow commercial use"),
    (EDIT | GOOD, {"commercial_only": True}, "licence unknown: not known to allow commercial use"),
    (EDIT | GOOD | {"licence": "Apache-2.0"}, {"commercial_only": True}, KEPT),
    (EDIT | GOOD | NC, {"licences": ("apache-2.0",)}, "licence CC-BY-NC-4.0: not asked for"),
    (EDIT | GOOD | {"licence": "apache 2.0"}, {"licences": ("apache-2.0",)}, KEPT),
    (EDIT | GOOD | {"task": "Add"}, {"task_rules": parse_tasks(["add", "swap"])}, KEPT),
    (EDIT | GOOD | {"task": "style"}, {"task_rules": parse_tasks(["add", "swap"])}, "task style: not asked for"),
    (EDIT | GOOD, {"task_rules": parse_tasks(["add"])}, "no task"),
    (EDIT | GOOD | {"task": "add", "dataset": "OpenVE-3M"}, {"task_rules": PAPER}, "task add: not asked for"),
    (EDIT | GOOD | {"task": "add", "dataset": "ReCo-Data"}, {"task_rules": PAPER}, KEPT),
]


@pytest.mark.parametrize(("row", "criteria", "reason"), OUTCOMES)
def test_each_rule(row, criteria, reason):
    assert outcome(row, Criteria(**criteria)) == reason


def test_the_columns_decide_as_each_row_alone_would():
    rows = [row for row, _, _ in OUTCOMES]
    decider = Decider(Criteria(commercial_only=True))
    alone = [outcome(row, Criteria(commercial_only=True)) for row in rows]
    names = sorted({name for row in rows for name in row})
    kept = decider.keep(pa.RecordBatch.from_pylist([{name: row.get(name) for name in names} for row in rows]))
    assert kept.tolist() == [reason == KEPT for reason in alone]
    assert Counter(reason for _, _, reason in decider.counts.elements()) == Counter(alone)


SCORE = st.one_of(st.none(), st.just(math.nan), st.integers(3, 30).map(lambda thirds: thirds / 3))
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "source": st.sampled_from([None, "s.mp4"]),
            "target": st.sampled_from(["t.mp4", "t.png"]),
            "dataset": st.sampled_from([None, "Ditto-1M", "other"]),
            "task": st.sampled_from([None, "style", "add"]),
            "licence": st.sampled_from([None, "MIT", "CC-BY-NC-4.0"]),
            "rejected": st.sampled_from([None, None, "is empty"]),
            **dict.fromkeys(GOOD, SCORE),
        }
    ),
    min_size=1,
    max_size=40,
)


def plainly_kept(row: dict, least: dict, tasks: tuple[str, ...], commercial_only: bool, keep_unscored: bool) -> bool:
    if row["rejected"] or (commercial_only and row["licence"] != "MIT"):
        return False
    if tasks and row["dataset"] == "Ditto-1M" and row["task"] != "style":
        return False
    if row["source"] is None:
        return True
    for name, value in least["image" if row["target"].endswith("png") else "video"].items():
        absent = row[name] is None or math.isnan(row[name])
        if (absent and not keep_unscored) or (not absent and row[name] < value):
            return False
    return True


@given(
    rows=ROWS,
    least=st.sampled_from([parse_min_scores([text]) for text in ("if_score=5", "image.vq_score=none", "mc_score=3")]),
    tasks=st.sampled_from([(), ("ditto=style",)]),
    commercial_only=st.booleans(),
    keep_unscored=st.booleans(),
)
def test_what_is_kept_is_what_a_plain_reading_keeps(rows, least, tasks, commercial_only, keep_unscored):
    criteria = Criteria(least, parse_tasks(tasks), (), commercial_only, keep_unscored)
    schema = pa.schema([(name, pa.float64() if name in GOOD else pa.string()) for name in rows[0]])
    decider = Decider(criteria)
    kept = decider.keep(pa.RecordBatch.from_pylist(rows, schema))
    assert kept.tolist() == [plainly_kept(row, least, tasks, commercial_only, keep_unscored) for row in rows]
    assert decider.counts.total() == len(rows)
    assert sum(count for key, count in decider.counts.items() if key[2] == KEPT) == kept.sum()


@example("/", ".png")
@given(st.text(max_size=4), st.sampled_from(["", ".png", ".JPEG", ".webp", ".mp4", ".pngs", ".jpg\n"]))
def test_the_kind_is_told_by_name_as_the_manifest_tells_it(stem, suffix):
    name = f"x{stem}{suffix}".replace("\0", "")
    batch = pa.RecordBatch.from_pylist([{"target": name}], pa.schema([("target", pa.string())]))
    assert image_rows(batch)[0] == (kind_of(name) == "image")


def test_the_kind_column_goes_before_the_name():
    batch = pa.RecordBatch.from_pylist(
        [
            {"target": "shard.tar", "kind": "image"},
            {"target": "shard.tar", "kind": "video"},
            {"target": "a.png", "kind": None},
        ]
    )
    assert image_rows(batch).tolist() == [True, False, True]


def test_rejections_are_counted_by_what_they_have_in_common():
    assert headline("is truncated: 3 of its 81 frames") == headline("is truncated: 9 of its 17 frames")
    assert headline("frames differ (81 and 80)") == "frames differ"
    assert headline("81") == "81"


def write_jsonl_lines(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_paths_are_those_of_the_same_files_in_another_folder(tmp_path):
    rows = [EDIT | GOOD, EDIT | GOOD | {"source": "/far/a.mp4", "target": "s3://bucket/b.mp4"}]
    manifest = write_jsonl_lines(tmp_path / "in" / "m.jsonl", *rows)
    filter_manifest(manifest, tmp_path / "out" / "deep" / "m.parquet", Criteria())
    table = pq.read_table(tmp_path / "out" / "deep" / "m.parquet")
    assert table["source"].to_pylist() == ["../../in/a.mp4", "/far/a.mp4"]
    assert table["target"].to_pylist() == ["../../in/b.mp4", "s3://bucket/b.mp4"]
    filter_manifest(manifest, tmp_path / "in" / "n.parquet", Criteria())
    assert pq.read_table(tmp_path / "in" / "n.parquet")["target"][0].as_py() == "b.mp4"
    assert load_manifest(tmp_path / "out" / "deep" / "m.parquet")[0].target.path.resolve() == tmp_path / "in" / "b.mp4"


def test_a_parquet_manifest_keeps_its_columns_its_order_and_its_history(tmp_path, monkeypatch):
    monkeypatch.setattr("sama_data.rewrite._BATCH_ROWS", 3)
    rows = [
        EDIT | GOOD | {"target": f"{i}.mp4", "if_score": float(1 + i % 10), "thumbnail": bytes([i])} for i in range(40)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.set_column(0, "source", table["source"].dictionary_encode())  # as pandas writes categories
    (tmp_path / "a").mkdir()
    pq.write_table(table, tmp_path / "a" / "m.parquet")
    report = filter_manifest(tmp_path / "a" / "m.parquet", tmp_path / "n.parquet", Criteria())
    made = pq.read_table(tmp_path / "n.parquet")
    assert made["thumbnail"].to_pylist() == [bytes([i]) for i in range(40) if i % 10 >= 7]
    assert made["source"].to_pylist() == ["a/a.mp4"] * 12
    assert (report.num_rows, report.num_kept, report.dropped()) == (40, 12, {"if_score < 8": 28})
    filter_manifest(tmp_path / "n.parquet", tmp_path / "o.parquet", Criteria(parse_min_scores(["if_score=9"])))
    first, second = read_history(tmp_path / "o.parquet")
    assert (first["tool"], first["manifest"], first["rows"], first["kept"]) == ("filter", "m.parquet", 40, 12)
    assert first["criteria"]["min_scores"]["video"]["if_score"] == 8
    assert (second["manifest"], second["kept"]) == ("n.parquet", 8)
    assert second["criteria"]["min_scores"]["video"]["if_score"] == 9


def test_what_is_written_stays_in_its_file_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("sama_data.rewrite.ROWS_PER_GROUP", 16)
    pq.write_table(pa.Table.from_pylist([EDIT | GOOD] * 100), tmp_path / "m.parquet")
    filter_manifest(tmp_path / "m.parquet", tmp_path / "n.parquet", Criteria())
    metadata = pq.read_metadata(tmp_path / "n.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [16] * 6 + [4]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("m.jsonl", "must end in .parquet"),
        ("m.parquet", "is the manifest itself"),
        ("folder.parquet", "is a folder"),
        ("m.parquet/n.parquet", "cannot write the manifest: "),
    ],
)
def test_outputs_that_cannot_be(tmp_path, out, message):
    (tmp_path / "folder.parquet").mkdir()
    pq.write_table(pa.Table.from_pylist([EDIT | GOOD]), tmp_path / "m.parquet")
    with pytest.raises(DataError, match=message):
        filter_manifest(tmp_path / "m.parquet", tmp_path / out, Criteria())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.parquet", "m.parquet"]


BAD_MANIFESTS = [
    (b"", r"m\.jsonl: the manifest is empty"),
    (b"{}\n", r"m\.jsonl line 1: needs source, target, instruction"),
    (b'{"video": "a.mp4", "caption": "x"}\n[]\n', r"m\.jsonl line 2: must be a JSON object, not list"),
    (b"PAR1 and then junk", r"m\.jsonl: is not readable Parquet"),
]


@pytest.mark.parametrize(("content", "message"), BAD_MANIFESTS)
def test_a_bad_manifest_leaves_nothing_behind(tmp_path, content, message):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        filter_manifest(tmp_path / "m.jsonl", tmp_path / "out.parquet", Criteria())
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]


def test_a_damaged_second_row_group_leaves_the_old_output(tmp_path, monkeypatch):
    monkeypatch.setattr("sama_data.rewrite._BATCH_ROWS", 500)
    path = tmp_path / "m.parquet"
    rows = [EDIT | GOOD | {"target": f"{i:05}.mp4"} for i in range(4000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, compression="none", use_dictionary=False)
    filter_manifest(path, tmp_path / "out.parquet", Criteria())
    before = (tmp_path / "out.parquet").read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(2)
    content = bytearray(path.read_bytes())
    start = group.column(1).data_page_offset
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not readable Parquet"):
        filter_manifest(path, tmp_path / "out.parquet", Criteria())
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert sorted(name.name for name in tmp_path.iterdir()) == ["m.parquet", "out.parquet"]


def test_columns_of_the_wrong_type_are_named(tmp_path):
    for column, value, message in (("if_score", "9", "must hold numbers"), ("licence", 3, "must hold text")):
        pq.write_table(pa.Table.from_pylist([EDIT | GOOD | {column: value}]), tmp_path / "m.parquet")
        with pytest.raises(DataError, match=rf"m\.parquet: column {column} {message}"):
            filter_manifest(tmp_path / "m.parquet", tmp_path / "out.parquet", Criteria())


def run_command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in ("data", "filter", *arguments)])
    return int(caught.value.code or 0)


def test_the_command_prints_a_table_and_counts(tmp_path, capsys):
    manifest = write_jsonl_lines(
        tmp_path / "m.jsonl",
        EDIT | GOOD | {"dataset": "[red]set", "task": "style", "licence": "MIT"},
        EDIT | GOOD | {"dataset": "[red]set", "task": "style", "licence": "MIT", "if_score": 8.0},
        IMAGE_EDIT | GOOD | {"dataset": "other", "task": "add", "licence": "CC-BY-NC-4.0"},
        {"video": "c.mp4", "caption": "A cat.", "task": "style", "licence": "MIT"},
    )
    out = tmp_path / "out.parquet"
    options = [
        "--min",
        "video.if_score=9",
        "--task",
        "style",
        "--task",
        "swpa",
        "--licence",
        "mit",
        "--commercial-only",
    ]
    assert run_command(manifest, "--out", out, *options, "--json") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert "[red]set" in text and "dropped: if_score < 9" in text and "licence CC-BY-NC-4.0: not asked for" in text
    assert "--task swpa matched no row" in text
    report = json.loads(last)
    assert (report["rows"], report["kept"], report["unmatched"]) == (4, 2, ["--task swpa"])
    assert report["dropped"] == {"if_score < 9": 1, "licence CC-BY-NC-4.0: not asked for": 1}
    assert [group["dataset"] for group in report["groups"]] == ["-", "[red]set", "other"]
    assert len(load_manifest(out)) == 2


def test_the_command_writes_nothing_when_nothing_is_left(tmp_path, capsys):
    manifest = write_jsonl_lines(tmp_path / "m.jsonl", EDIT, EDIT)
    assert run_command(manifest, "--out", tmp_path / "out.parquet") == 2
    captured = capsys.readouterr()
    assert "no if_score" in captured.out
    assert "no row is left, 2 of 2 for 'no if_score': nothing is written; score the manifest first" in captured.err
    assert run_command(manifest, "--out", tmp_path / "out.parquet", "--task", "gone", "--keep-unscored") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("nothing is written; loosen the options, or filter another manifest")  # scores would not help
    assert not (tmp_path / "out.parquet").exists()


def test_nan_stands_for_nothing_in_jsonl(tmp_path):
    """As Python writes what pandas gave it: text, whole numbers and scores alike."""
    absent = {"task": math.nan, "width": math.nan, "caption": math.nan, "fps": math.nan}
    (tmp_path / "m.jsonl").write_text(json.dumps(EDIT | GOOD | absent) + "\n")
    assert filter_manifest(tmp_path / "m.jsonl", tmp_path / "out.parquet", Criteria()).num_kept == 1
    (row,) = load_manifest(tmp_path / "out.parquet")
    assert (row.task, row.width, row.fps) == (None, None, None)


def test_whole_numbers_of_any_length_are_numbers_in_jsonl(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps(EDIT | GOOD | {"fps": 10**30, "if_score": 2**64}) + "\n")
    filter_manifest(tmp_path / "m.jsonl", tmp_path / "out.parquet", Criteria())
    (row,) = load_manifest(tmp_path / "out.parquet")
    assert (row.fps, row.if_score) == (1e30, 2.0**64)


def test_columns_of_text_may_be_all_nan(tmp_path):
    """As pandas writes them to Parquet."""
    table = pa.table({name: [value] for name, value in (EDIT | GOOD).items()})
    for name in ("licence", "task", "video", "image"):
        table = table.append_column(name, pa.array([math.nan]))
    pq.write_table(table, tmp_path / "m.parquet")
    out = tmp_path / "other" / "out.parquet"
    report = filter_manifest(tmp_path / "m.parquet", out, Criteria(commercial_only=True))
    assert list(report.dropped()) == ["licence unknown: not known to allow commercial use"]
    assert filter_manifest(tmp_path / "m.parquet", out, Criteria()).num_kept == 1
    assert load_manifest(out)[0].target.path == out.parent / "../b.mp4"


def test_a_column_of_images_is_counted_as_such():
    batch = pa.RecordBatch.from_pylist([{"image": "a.bmp", "video": None}, {"image": None, "video": "b.mp4"}])
    assert image_rows(batch).tolist() == [True, False]
