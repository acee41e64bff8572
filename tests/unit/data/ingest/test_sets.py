"""The traps of every set, on fixtures that have them: each asserts the rows, and that the clips are the right ones."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sama_data.errors import DataError
from sama_data.ingest import gpt_image_edit, pico_banana
from sama_data.ingest.csv_records import BROKEN
from sama_data.ingest.skips import EMPTY_TEXT, MISSING_MEDIA, NO_CLIP_NAME, NOT_UNICODE
from tests.support.ingest_sets import clip_bytes, ingested, tar_bytes, write_clips, write_files


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def pair(source: str, target: str) -> tuple[bytes, bytes]:
    return clip_bytes(source), clip_bytes(target)


def test_nhr_edit(tmp_path):
    record = {
        "sample_id": "s1",
        "source_file_name": "a.jpg",
        "edited_file_name": "b.jpg",
        "edit_instruction": " Make it red. ",
        "augmented_instructions": ["Redden it."],
        "img_width": 10,
        "img_height": 20,
        "category": "color",
        "style": "photo",
    }
    again = record | {"edited_file_name": "c.jpg"}  # a sample_id that comes twice
    source = write_clips(tmp_path / "nhr", "train/a.jpg", "train/b.jpg", "train/c.jpg")
    write_files(source, {"train/metadata.jsonl": lines(record, again)})
    result = ingested("nhr-edit", source)
    assert result.rows[0] == {
        "source": "../nhr/train/a.jpg",
        "target": "../nhr/train/b.jpg",
        "instruction": "Make it red.",
        "sample_id": "s1",
        "kind": "image",
        "task": "color",
        "dataset": "nhr_edit",
        "licence": "Apache-2.0",
    }
    assert [row["sample_id"] for row in result.rows] == ["s1", "s1#2"]
    assert result.clips() == [pair("train/a.jpg", "train/b.jpg"), pair("train/a.jpg", "train/c.jpg")]
    assert result.summary.kinds == {"image": 2}


def test_nhr_edit_as_parquet_is_refused(tmp_path):
    (tmp_path / "nhr" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"edit_instruction": ["x"]}), tmp_path / "nhr" / "data" / "0.parquet")
    with pytest.raises(DataError, match="pictures lie inside its columns"):
        ingested("nhr_edit", tmp_path / "nhr")


def gpt_record(number: int, instruction: str, instruction_type: str = "original") -> dict[str, object]:
    return {
        "id": f"{number:04}",
        "dataset_source": "hqedit",
        "task": "edit",
        "input": f"input/{number}.png",
        "output": f"output/{number}.png",
        "instruction": instruction,
        "instruction_type": instruction_type,
    }


def test_gpt_image_edit_pairs_are_kept_once(tmp_path):
    source = write_clips(
        tmp_path / "gpt",
        *(f"gpt-edit/hqedit/edit/{part}/{number}.png" for part in ("input", "output") for number in (1, 2)),
        *(f"gpt-edit/omniedit/complex-edit/{part}/1.png" for part in ("input", "output")),
    )
    write_files(
        source,
        {
            "gpt-edit/hqedit/edit/metadata/0.json": json.dumps(gpt_record(1, " ")),
            "gpt-edit/hqedit/edit/metadata/1.json": json.dumps(gpt_record(1, "First.")),
            "gpt-edit/hqedit/edit/metadata/1_rewrite.json": json.dumps(gpt_record(1, "Rewritten.", "rewrite")),
            "gpt-edit/hqedit/edit/metadata/2.json": json.dumps([gpt_record(2, "Second.")]),
            "gpt-edit/omniedit/complex-edit/metadata/all.json": json.dumps([gpt_record(1, "Third.")]),
        },
    )
    for workers in (1, 4):
        result = ingested("gpt_image_edit", source, workers=workers)
        assert [row["instruction"] for row in result.rows] == ["First.", "Second.", "Third."]
        assert result.skipped == {gpt_image_edit.REPEATED_PAIR: 1, EMPTY_TEXT: 1}
        assert result.clips() == [  # the same names in two tasks are two pairs
            pair(f"gpt-edit/{task}/input/{number}.png", f"gpt-edit/{task}/output/{number}.png")
            for task, number in (("hqedit/edit", 1), ("hqedit/edit", 2), ("omniedit/complex-edit", 1))
        ]
    assert result.rows[0]["sample_id"] == "gpt-edit/hqedit/edit/0001#2"  # the first has no words
    assert result.rows[0]["task"] == "edit"


def test_gpt_image_edit_as_training_json(tmp_path):
    def record(source: str, target: str, text: str) -> dict[str, object]:
        turns = [{"from": "human", "value": f"<image>\n{text}"}, {"from": "gpt", "value": "<image>"}]
        return {"image": [source, target], "conversations": turns}

    source = write_clips(tmp_path / "gpt", "gpt-edit/hqedit/edit/input/1.png", "gpt-edit/hqedit/edit/output/1.png")
    records = [record("input/1.png", "output/1.png", text) for text in ("Make it red.", "Redden it.")]
    write_files(source, {"training_json/hqedit_gpt_edit.json": json.dumps([*records, {"image": "input/1.png"}])})
    result = ingested("gpt_image_edit", source)
    assert [row["instruction"] for row in result.rows] == ["Make it red."]
    assert result.skipped == {gpt_image_edit.REPEATED_PAIR: 1, "`image` is not a pair of names": 1}
    assert result.clips() == [pair("gpt-edit/hqedit/edit/input/1.png", "gpt-edit/hqedit/edit/output/1.png")]


def pico_record(output: str, source: str | None, text: str = "Remove it.") -> dict[str, object]:
    return {
        "open_image_input_url": f"https://pictures.example/{source}",
        "text": text,
        "output_image": output,
        "edit_type": "Remove an existing object",
        "summarized_text": "Removed.",
        "local_input_image": source and f"openimages/train_0/{source}",
    }


def test_pico_banana_outputs_that_collide(tmp_path):
    """Two rows that differ cannot both be the row of one file; equal file names in two folders are two files."""
    source = write_clips(
        tmp_path / "pico",
        *(f"images/positive-edit/{name}.png" for name in ("1", "2")),
        "images/other/1.png",
        *(f"openimages/train_0/{name}.jpg" for name in "abc"),
    )
    records = [
        pico_record("images/positive-edit/1.png", "a.jpg"),
        pico_record("images/positive-edit/2.png", "b.jpg"),
        pico_record("images/other/1.png", "c.jpg"),
        pico_record("images/positive-edit/2.png", "c.jpg"),  # the file of the second row
        pico_record("images/positive-edit/1.png", "a.jpg"),  # wholly the first row
        pico_record("images/positive-edit/3.png", None),
    ]
    unmapped = [{key: value for key, value in record.items() if key != "local_input_image"} for record in records]
    write_files(source, {"jsonl/sft.jsonl": lines(*unmapped), "jsonl/sft_with_local.jsonl": lines(*records)})
    result = ingested("pico_banana", source)
    assert result.clips() == [
        pair("openimages/train_0/a.jpg", "images/positive-edit/1.png"),
        pair("openimages/train_0/c.jpg", "images/other/1.png"),
    ]
    assert result.skipped == {
        pico_banana.COLLIDING: 2,
        pico_banana.REPEATED: 1,
        "media missing: the source is only an address, map it (local_input_image)": 1,
    }
    assert [row["sample_id"] for row in result.rows] == ["jsonl/sft_with_local:1", "jsonl/sft_with_local:3"]
    assert result.rows[0]["licence"] == "CC-BY-NC-ND-4.0"
    assert result.rows[0]["task"] == "Remove an existing object"


DITTO_CLIPS = ("videos/source/a.mp4", "videos/global_style1/a.mp4", "videos/local/a.mp4")


def test_ditto_as_json(tmp_path):
    source = write_clips(tmp_path / "ditto", *DITTO_CLIPS)
    style = {"source_path": "source/a.mp4", "instruction": "Paint it.", "edited_path": "global_style1/a.mp4"}
    local = style | {"edited_path": "videos/local/a.mp4", "source_path": "videos/source/a.mp4"}
    turned = {"source_path": "global_style1/a.mp4", "instruction": "Make it real.", "edited_path": "source/a.mp4"}
    write_files(
        source,
        {
            "training_metadata/style.json": json.dumps([style]),
            "training_metadata/other.json": json.dumps([local]),
            "training_metadata/sim2real.json": json.dumps([turned]),
            "csvs_for_DiffSynth/style.csv": "video,prompt,vace_video\nglobal_style1/a.mp4,Paint it.,source/a.mp4\n",
        },
    )
    result = ingested("ditto", source)
    assert [(row["task"], row["sample_id"]) for row in result.rows] == [
        ("local", "training_metadata/other:1"),
        ("sim2real", "training_metadata/sim2real:1"),
        ("global_style1", "training_metadata/style:1"),
    ]
    assert result.clips() == [
        pair("videos/source/a.mp4", "videos/local/a.mp4"),
        pair("videos/global_style1/a.mp4", "videos/source/a.mp4"),
        pair("videos/source/a.mp4", "videos/global_style1/a.mp4"),
    ]
    assert {row["licence"] for row in result.rows} == {"CC-BY-NC-SA-4.0"}


def test_ditto_as_csv_names_the_target_video(tmp_path):
    source = write_clips(tmp_path / "ditto", *DITTO_CLIPS)
    text = '\ufeffvideo,prompt,vace_video\nglobal_style1/a.mp4,"Paint it, ""boldly"".\nNow.",source/a.mp4\n'
    write_files(source, {"csvs_for_DiffSynth/style.csv": text})
    result = ingested("ditto", source)
    assert result.clips() == [pair("videos/source/a.mp4", "videos/global_style1/a.mp4")]
    assert result.rows[0]["instruction"] == 'Paint it, "boldly".\nNow.'


def test_openve(tmp_path):
    source = write_clips(tmp_path / "openve", *(f"clips/{name}.mp4" for name in ("a", "a2", "b", "b2")))
    text = (
        "video;prompt;original_video\n"
        'clips/a2.mp4;"Turn it red; leave\nthe ""sky"", please.";clips/a.mp4\n'
        "clips/b2.mp4;Add a subtitle, in white;clips/b.mp4\n"
        'clips/b2.mp4;"not closed;clips/b.mp4\n'
        "clips/b2.mp4;The same target again;clips/a.mp4\n"
        "clips/a2.mp4;;clips/a.mp4\n"
        "clips/gone.mp4;Gone;clips/a.mp4\n"
        "clips/a2.mp4;A pair without its source is no raw clip;\n"
    )
    write_files(source, {"local_change.csv": text, "notes/readme.csv": "x;y\n1;2\n"})
    result = ingested("openve", source)
    assert result.rows[0] == {
        "source": "../openve/clips/a.mp4",
        "target": "../openve/clips/a2.mp4",
        "instruction": 'Turn it red; leave\nthe "sky", please.',
        "sample_id": "local_change:1",
        "kind": "video",
        "task": "local_change",
        "frame_start": 4,
        "dataset": "openve",
        "licence": "CC-BY-NC-4.0",
    }
    assert [row["sample_id"] for row in result.rows] == ["local_change:1", "local_change:2", "local_change:4"]
    assert result.clips() == [
        pair("clips/a.mp4", "clips/a2.mp4"),
        pair("clips/b.mp4", "clips/b2.mp4"),
        pair("clips/a.mp4", "clips/b2.mp4"),
    ]
    assert {row.frame_start for row in result.dataset} == {4}
    assert result.skipped == {BROKEN: 1, EMPTY_TEXT: 1, MISSING_MEDIA: 1, NO_CLIP_NAME: 1}


def test_openve_paths_that_start_above_what_was_downloaded(tmp_path):
    source = write_clips(tmp_path / "openve", "background/a.mp4", "background/b.mp4")
    text = "video;prompt;original_video\n/data/builder/background/b.mp4;Change it;/data/builder/background/a.mp4\n"
    write_files(source, {"background.csv": text})
    assert ingested("openve", source).clips() == [pair("background/a.mp4", "background/b.mp4")]


def reco_record(name: str, text: str = "Add a dog.") -> dict[str, object]:
    return {
        "src_video": f"add/src_videos/{name}.mp4",
        "tar_video": f"add/tar_videos/{name}.mp4",
        "instruction": "add dog",
        "instruction_final_refine": text,
    }


def test_reco_in_tars_stays_in_tars(tmp_path):
    """Source and edit have the same file name: only their folders tell them apart."""
    records = [reco_record(name) for name in ("x", "y", "z")]
    source = write_files(
        tmp_path / "reco",
        {
            "add/add_data_configs.json": json.dumps(records),
            "add/src_videos/add_src_video_00.tar": tar_bytes([("x.mp4", b"source x")]),
            "add/src_videos/add_src_video_01.tar": tar_bytes([("y.mp4", b"source y"), ("z.mp4", b"source z")]),
            "add/tar_videos/add_tar_video_00.tar": tar_bytes([("y.mp4", b"edit y"), ("x.mp4", b"edit x")]),
        },
    )
    result = ingested("reco", source)
    assert result.clips() == [(b"source x", b"edit x"), (b"source y", b"edit y")]
    assert result.skipped == {MISSING_MEDIA: 1}
    assert result.summary.examples[MISSING_MEDIA] == ["add/add_data_configs.json item 3: add/tar_videos/z.mp4"]
    assert result.rows[0]["kind"] == "video"
    assert result.rows[0]["target"] == "../reco/add/tar_videos/add_tar_video_00.tar"
    assert (result.rows[0]["task"], result.rows[0]["instruction"]) == ("add", "Add a dog.")


def test_reco_unpacked(tmp_path):
    source = write_clips(tmp_path / "reco", "add/src_videos/x.mp4", "add/tar_videos/x.mp4")
    write_files(source, {"add/add_data_configs.json": json.dumps([reco_record("x")])})
    result = ingested("reco", source)
    assert result.clips() == [pair("add/src_videos/x.mp4", "add/tar_videos/x.mp4")]
    assert "target_offset" not in result.rows[0]


KOALA_HEADER = (
    "videoID,url,timestamp,caption,clarity_score,aesthetic_score,motion_score,video_training_suitability_score\n"
)


def koala_row(video: str, caption: str) -> str:
    return f"{video},https://videos.example/{video},\"['0:00:01.000', '0:00:05.500']\",{caption},0.9,5.1,3.0,4.2\n"


def test_koala_takes_clips_that_are_cut(tmp_path):
    source = write_clips(
        tmp_path / "koala",
        "clips/00/abc-_DEF123_4.mp4",
        "clips/01/abc-_DEF123_5.webm",
        "clips/abc-_DEF123.mp4",  # the whole video: no row's clip
    )
    write_files(source, {"tars/0.tar": tar_bytes([("xyz_1.mp4", b"in a tar"), ("xyz_1.json", b"{}")])})
    rows = [
        ("abc-_DEF123_4", '"A cat, asleep."'),
        ("abc-_DEF123_5", "A dog."),
        ("abc-_DEF123_6", "Gone."),
        ("xyz_1", "A"),
        ("xyz_1", "A second caption."),
    ]
    write_files(source, {"Koala_36M_1.csv": KOALA_HEADER + "".join(koala_row(*row) for row in rows)})
    result = ingested("koala", source)
    assert result.rows[0] == {
        "video": "../koala/clips/00/abc-_DEF123_4.mp4",
        "caption": "A cat, asleep.",
        "sample_id": "abc-_DEF123_4",
        "kind": "video",
        "dataset": "koala",
        "licence": "non-commercial",
    }
    assert result.clips() == [
        (None, clip_bytes("clips/00/abc-_DEF123_4.mp4")),
        (None, clip_bytes("clips/01/abc-_DEF123_5.webm")),
        (None, b"in a tar"),
        (None, b"in a tar"),
    ]
    assert [row["sample_id"] for row in result.rows[2:]] == ["xyz_1", "xyz_1#2"]
    assert result.skipped == {MISSING_MEDIA: 1}


def test_motionbench(tmp_path):
    source = write_clips(tmp_path / "bench", "MotionBenchCaption-train/videos/a.mp4")
    records = [{"video_path": "a.mp4", "motion_caption": caption} for caption in ("It turns.", "It spins.", "")]
    write_files(source, {"MotionBenchCaption-train/train.jsonl": lines(*records)})
    result = ingested("motionbench", source)
    assert [(row["sample_id"], row["caption"]) for row in result.rows] == [
        ("a.mp4", "It turns."),
        ("a.mp4#2", "It spins."),
    ]
    assert result.clips() == 2 * [(None, clip_bytes("MotionBenchCaption-train/videos/a.mp4"))]
    assert result.skipped == {EMPTY_TEXT: 1}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_sama_edit_filtered(tmp_path, suffix):
    records = [
        {"source_video": "s/a.mp4", "video": "e/a.mp4", "prompt": "Red.", "dataset": "OpenVE-3M", "if_score": 9},
        {"source_video": "s/b.mp4", "video": "e/b.mp4", "prompt": "Blue.", "dataset": "Ditto-1M", "if_score": 8},
        {"source_video": "s/b.mp4", "video": "e/a.mp4", "prompt": "Grey.", "dataset": "", "if_score": 10},
    ]
    source = write_clips(tmp_path / "sama", "videos/s/a.mp4", "videos/e/a.mp4", "videos/s/b.mp4", "videos/e/b.mp4")
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), source / "train.parquet")
    elif suffix == "csv":
        header = ",".join(records[0])
        body = "".join(",".join(map(str, record.values())) + "\n" for record in records)
        write_files(source, {"train.csv": f"{header}\n{body}"})
    else:
        write_files(source, {f"train.{suffix}": lines(*records) if suffix == "jsonl" else json.dumps(records)})
    result = ingested("sama_edit_filtered", source)
    assert result.clips() == [
        pair("videos/s/a.mp4", "videos/e/a.mp4"),
        pair("videos/s/b.mp4", "videos/e/b.mp4"),
        pair("videos/s/b.mp4", "videos/e/a.mp4"),
    ]
    assert [row.get("licence") for row in result.rows] == ["CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", None]
    assert [row.frame_start for row in result.dataset] == [4, 0, 0]
    assert [row["if_score"] for row in result.rows] == [9, 8, 10]
    assert {row["dataset"] for row in result.rows} == {"sama_edit_filtered"}


def test_musubi_and_diffusion_pipe(tmp_path):
    source = write_clips(tmp_path / "mine", "a.mp4", "b.mp4", "c.png", "clips/d.mp4")
    records = [
        {"video_path": "b.mp4", "control_path": "a.mp4", "caption": "Make it red.", "fps": 16},
        {"video_path": str(source / "clips/d.mp4"), "caption": "A cat."},
        {"image_path": "c.png", "caption": "A dog."},
        {"video_path": "b.mp4", "control_path_0": "a.mp4", "control_path_1": "c.png", "caption": "Both."},
        {"caption": "Nothing."},
    ]
    write_files(source, {"train.jsonl": lines(*records)})
    result = ingested("musubi", source / "train.jsonl")
    assert result.clips() == [
        pair("a.mp4", "b.mp4"),
        (None, clip_bytes("clips/d.mp4")),
        (None, clip_bytes("c.png")),
    ]
    assert [row.get("video") or row.get("image") or row["target"] for row in result.rows] == [
        "../mine/b.mp4",
        "../mine/clips/d.mp4",
        "../mine/c.png",
    ]
    assert result.rows[0]["fps"] == 16
    assert result.skipped == {"more than one control": 1, "no clip named": 1}
    assert "licence" not in result.rows[0]


def test_musubi_toml_is_refused(tmp_path):
    write_files(tmp_path / "mine", {"dataset.toml": "[general]\n"})
    with pytest.raises(DataError, match="give the JSONL file that it names"):
        ingested("diffusion_pipe", tmp_path / "mine" / "dataset.toml")


def test_videox_fun(tmp_path):
    source = write_clips(tmp_path / "fun", "train/1.mp4", "train/1c.mp4", "train/2.jpg")
    records = [
        {"file_path": "train/1.mp4", "text": "Red.", "type": "video", "control_file_path": "train/1c.mp4"},
        {"file_path": "train/2.jpg", "text": "A dog.", "type": "image"},
        {"file_path": "train/3.jpg", "text": "Gone.", "type": "image"},
    ]
    write_files(source, {"metadata.json": json.dumps(records)})
    result = ingested("videox_fun", source / "metadata.json")
    assert result.clips() == [pair("train/1c.mp4", "train/1.mp4"), (None, clip_bytes("train/2.jpg"))]
    assert result.skipped == {MISSING_MEDIA: 1}


def test_diffsynth(tmp_path):
    source = write_clips(tmp_path / "synth", "a.mp4", "b.mp4")
    text = "video,prompt,vace_video,task\nb.mp4,Make it red.,a.mp4,colour\na.mp4,A cat.,,\n"
    write_files(source, {"metadata.csv": text})
    result = ingested("diffsynth", source)
    assert result.clips() == [pair("a.mp4", "b.mp4"), (None, clip_bytes("a.mp4"))]
    assert [row.get("task") for row in result.rows] == ["colour", None]


def test_text_that_is_not_utf8_costs_its_row(tmp_path):
    source = write_clips(tmp_path / "openve", "a.mp4", "b.mp4")
    text = b"video;prompt;original_video\nb.mp4;caf\xe9;a.mp4\nb.mp4;caf\xc3\xa9;a.mp4\n\xff.mp4;red;a.mp4\n"
    write_files(source, {"local_change.csv": text})
    result = ingested("openve", source)
    assert [row["instruction"] for row in result.rows] == ["café"]
    assert result.skipped == {NOT_UNICODE: 2}


SETS_WITHOUT_FILES = ("nhr_edit", "gpt_image_edit", "pico_banana", "ditto", "openve", "reco", "koala", "motionbench")


@pytest.mark.parametrize("name", [*SETS_WITHOUT_FILES, "sama_edit_filtered", "musubi", "videox_fun", "diffsynth"])
def test_another_layout_is_one_line_that_says_what_is_needed(tmp_path, name):
    source = write_files(tmp_path / "src", {"something/else.txt": "x"})
    with pytest.raises(DataError, match=r"src: found no .* there; it needs ") as caught:
        ingested(name, source)
    assert "\n" not in str(caught.value)
    assert not list(Path(tmp_path).glob("manifests/*"))
