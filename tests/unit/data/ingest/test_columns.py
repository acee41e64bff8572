"""Which column is which: in an edit set, `video` is the target."""

from __future__ import annotations

import pytest

from sama_data.errors import DataError
from sama_data.ingest.columns import carried_columns, edit_columns
from sama_data.ingest.names import UniqueNames


@pytest.mark.parametrize("source", ["source_video", "original_video", "src_video", "vace_video", "source_path"])
@pytest.mark.parametrize("target", ["video", "tar_video", "tgt_video", "edited_path"])
@pytest.mark.parametrize("text", ["prompt", "instruction", "instruction_final_refine", "text", "edit_instruction"])
def test_every_name_that_was_met(source, target, text):
    columns = edit_columns([text, target, source, "score"], "x.csv")
    assert (columns.source, columns.target, columns.text) == (source, target, text)


def test_refined_instructions_win():
    columns = edit_columns(["src_video", "tar_video", "instruction", "instruction_final_refine"], "x.json")
    assert columns.text == "instruction_final_refine"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["video", "prompt"], "no column for the source among prompt, video"),
        (["vace_video", "prompt"], "no column for the target"),
        (["vace_video", "video"], "no column for the instruction"),
        (["vace_video", "video", "edited_path", "prompt"], "video and edited_path could each be the target"),
        (["vace_video", "source_video", "video", "prompt"], "source_video and vace_video could each be the source"),
    ],
)
def test_what_is_absent_or_ambiguous_is_named(names, message):
    with pytest.raises(DataError, match=f"x.csv: .*{message}"):
        edit_columns(names, "x.csv")


def test_raw_clips_need_no_source():
    assert edit_columns(["video", "prompt"], "x.csv", needs_source=False).source is None


def test_columns_of_the_manifest_are_carried():
    values = {"task": " add ", "if_score": "9.5", "num_frames": "81", "fps": "", "width": 832, "colour": "red"}
    assert carried_columns(values) == {"task": "add", "if_score": 9.5, "num_frames": 81, "width": 832}
    assert carried_columns({"fps": "many"}) == {"fps": "many"}  # refused with the row, not dropped in silence


def test_names_stay_unique():
    names = UniqueNames()
    assert [names.name(name) for name in ("a", "a", "a#2", "a", "b")] == ["a", "a#2", "a#2#2", "a#3", "b"]
