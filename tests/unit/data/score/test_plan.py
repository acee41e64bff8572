"""What is asked about, once, and what that is said to cost."""

from __future__ import annotations

import os
import shutil

import pytest

from sama_data.manifest import load_manifest
from sama_data.score.journal import Answers
from sama_data.score.plan import Estimate, make_plan, picture_tokens, text_tokens
from sama_data.score.prompts import make_messages, text_bytes
from sama_data.score.settings import JudgeSettings

VIDEO = {"source": "s.mp4", "target": "t.mp4", "instruction": "Do."}
IMAGE = {"source": "s.png", "target": "t.png", "instruction": "Do."}
NINE = {"if_score": 9, "vq_score": 9, "cp_score": 9}
JUDGE = JudgeSettings()


def plan(write_manifest, *rows, answers=None, settings=JUDGE, **options):
    return make_plan(load_manifest(write_manifest(*rows)), settings, answers or Answers(), **options)


def test_rows_that_need_no_judge_are_left_alone(write_manifest):
    rows = [
        VIDEO,
        VIDEO | NINE,  # the motion is still to be judged
        IMAGE | NINE,
        VIDEO | NINE | {"mc_score": 9, "target": "u.mp4"},
        {"video": "c.mp4", "caption": "A cat."},
        VIDEO | {"rejected": "is empty"},
        IMAGE,
    ]
    found = plan(write_manifest, *rows)
    assert [question.index for question in found.questions] == [0, 6]
    assert found.keys[0] == found.keys[1] is not None
    assert [key is None for key in found.keys] == [False, False, True, True, True, True, False]
    assert found.left_alone == {"has its scores": 2, "raw clip": 1, "rejected": 1, "equal to another row": 1}
    again = plan(write_manifest, *rows, rescore=True)
    assert [question.index for question in again.questions] == [0, 2, 3]
    assert again.left_alone == {"raw clip": 1, "rejected": 1, "equal to another row": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Do it."},
        {"source": "u.mp4"},
        {"target": "u.mp4"},
        {"frame_start": 1},
        {"frame_end": 5},
        {"target_offset": 512, "target_bytes": 9, "kind": "video"},
        {"kind": "image"},
    ],
)
def test_questions_differ_where_the_judge_sees_a_difference(write_manifest, change):
    keys = plan(write_manifest, VIDEO, VIDEO | change, VIDEO | {"dataset": "x", "fps": 8.0}).keys
    assert keys[0] != keys[1] and keys[0] == keys[2]


def test_what_was_written_anew_is_another_question(write_manifest, tmp_path):
    rows = [VIDEO, {"source": "no.mp4", "target": "s3://bucket/t.mp4", "instruction": "Do."}]
    first = plan(write_manifest, *rows).keys
    assert plan(write_manifest, *rows).keys == first
    for number, side in enumerate(("source", "target"), start=1):
        clip = tmp_path / VIDEO[side]
        content = clip.read_bytes()
        clip.unlink()
        clip.write_bytes(content + b"0" * number)
        seen = plan(write_manifest, *rows).keys
        assert seen[0] != first[0] and seen[1] == first[1]
        os.utime(clip, ns=(0, 1))
        first = plan(write_manifest, *rows).keys
        assert first[0] != seen[0]


def test_the_same_names_in_another_folder_are_other_clips(write_manifest, tmp_path):
    rows = [VIDEO, VIDEO | {side: str(tmp_path / VIDEO[side]) for side in ("source", "target")}]
    here = plan(write_manifest, *rows).keys
    assert here[0] == here[1]
    there = shutil.copytree(tmp_path, tmp_path / "there", symlinks=True)
    (tmp_path / "link").symlink_to(tmp_path)
    keys = [make_plan(load_manifest(path / "m.jsonl"), JUDGE, Answers()).keys for path in (there, tmp_path / "link")]
    assert keys[0][0] != here[0] and keys[0][1] == here[1] and keys[1] == here


def test_only_what_was_not_answered_is_asked(write_manifest):
    rows = [VIDEO, IMAGE, VIDEO | {"instruction": "More."}, VIDEO | {"instruction": "Less."}]
    keys = plan(write_manifest, *rows).keys
    answers = Answers()
    for place, turns in enumerate([(1, 2, 3), (2,), (1,)]):
        for turn in turns:
            answers.add(keys[place], turn, NINE)
    answers.given_up[keys[2]] = "is not JSON"
    found = plan(write_manifest, *rows, answers=answers)
    assert [(question.index, question.turns) for question in found.questions] == [(1, (1, 3)), (3, (1, 2, 3))]
    assert found.left_alone == {"answered before": 1, "given up before": 1}
    assert found.estimate.requests == 5
    again = plan(write_manifest, *rows, answers=answers, retry_given_up=True)
    assert [question.turns for question in again.questions] == [(1, 3), (2, 3), (1, 2, 3)]


def test_the_estimate_by_hand(write_manifest):
    settings = JudgeSettings(turns=2, num_frames=4, max_frames=9, video_side=560, max_output_tokens=100)
    video = VIDEO | {"width": 1120, "height": 560, "num_frames": 30, "source_num_frames": 3}
    image = IMAGE | {"width": 280, "height": 140, "source_width": 28, "source_height": 28}
    found = plan(write_manifest, video, image, settings=settings).estimate
    text = text_tokens(text_bytes(make_messages("video", "Do.", [""] * 3, [""] * 3)))
    text += text_tokens(text_bytes(make_messages("image", "Do.", [""], [""])))
    assert found == Estimate(
        images=1,
        videos=1,
        requests=4,
        pictures=2 * (3 + 3 + 1 + 1),
        text_tokens=2 * text,
        # 560x280 is 20 x 10 tokens; 280x140 is 10 x 5; a small one is 4 at least; 2 around each.
        picture_tokens=2 * (6 * 202 + 52 + 6),
        answer_tokens=4 * 100,
        assumed=0,
    )
    read = found.text_tokens + found.picture_tokens
    assert found.price(2.0, 10.0) == pytest.approx((2 * read + 10 * 400) / 1e6)


@pytest.mark.parametrize(
    ("row", "pictures"),
    [
        (VIDEO, 16),
        (VIDEO | {"num_frames": 5}, 10),
        (VIDEO | {"num_frames": 50, "frame_start": 47}, 6),
        (VIDEO | {"frame_start": 4, "frame_end": 6}, 4),
        (IMAGE | {"num_frames": 50}, 2),
    ],
)
def test_frames_are_counted_as_far_as_the_manifest_tells(write_manifest, row, pictures):
    found = plan(write_manifest, row).estimate
    assert found.pictures == 3 * pictures
    assert found.assumed == 1  # its size, at least, is a guess


def test_tokens():
    assert [text_tokens(count) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert picture_tokens(1, 1) == 6
    assert picture_tokens(640, 368) == 23 * 13 + 2
