"""What users may ask of a filter, and what they are told when it makes no sense."""

from __future__ import annotations

import pytest

from sama_data.errors import DataError
from sama_data.filter.criteria import (
    PAPER_MIN_SCORES,
    Criteria,
    allows_commercial_use,
    matches_task,
    parse_min_scores,
    parse_tasks,
    simplified,
    simplified_licence,
)


def test_the_papers_thresholds_are_the_default():
    assert {kind: dict(least) for kind, least in Criteria().min_scores.items()} == {
        "image": {"if_score": 9, "vq_score": 9, "cp_score": 9},
        "video": {"if_score": 8, "vq_score": 9, "cp_score": 8, "mc_score": 8},
    }


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ([], {}),
        (["if_score=7.5"], {("image", "if_score"): 7.5, ("video", "if_score"): 7.5}),
        (["video.if_score=10", "image.cp_score=1"], {("video", "if_score"): 10, ("image", "cp_score"): 1}),
        (["mc_score=9"], {("video", "mc_score"): 9}),
        (["vq_score=none"], {("image", "vq_score"): None, ("video", "vq_score"): None}),
        (["video.mc_score = NONE"], {("video", "mc_score"): None}),
    ],
)
def test_thresholds_are_replaced_one_by_one(values, changed):
    expected = {kind: dict(least) for kind, least in PAPER_MIN_SCORES.items()}
    for (kind, score), least in changed.items():
        expected[kind].pop(score)
        expected[kind] |= {} if least is None else {score: least}
    assert parse_min_scores(values) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("if=9", "SCORE one of if_score, vq_score, cp_score, mc_score"),
        ("if_score", "must be SCORE=LEAST"),
        ("clip.if_score=9", "must be SCORE=LEAST"),
        ("if_score=11", "from 1 to 10, or none"),
        ("if_score=nan", "from 1 to 10"),
        ("if_score=high", "from 1 to 10"),
        ("image.mc_score=9", "a picture has no motion"),
    ],
)
def test_thresholds_that_make_no_sense(value, message):
    with pytest.raises(DataError, match=message):
        parse_min_scores([value])


def test_task_rules_speak_of_their_dataset_or_of_those_without_a_rule():
    criteria = Criteria(task_rules=parse_tasks(["Add", "Ditto=Global Style*", "paper"]))
    assert [str(rule) for rule in criteria.rules_for("NHR-Edit")] == ["add"]
    assert [str(rule) for rule in criteria.rules_for(None)] == ["add"]
    assert "add" not in map(str, criteria.rules_for("ditto-1m"))
    assert "ditto=global_style*" in map(str, criteria.rules_for("Ditto 1M"))
    # "ditto" is a whole word of the name.
    assert [str(rule) for rule in criteria.rules_for("dittography")] == ["add"]


@pytest.mark.parametrize(
    ("dataset", "task", "kept"),
    [
        ("Ditto-1M", "global_style1", True),
        ("Ditto-1M", "global_style2", True),
        ("Ditto-1M", "local", False),
        ("OpenVE-3M", "Local Change", True),
        ("OpenVE-3M", "background_change", True),
        ("OpenVE-3M", "global_style", True),
        ("OpenVE-3M", "Subtitles", True),
        ("OpenVE-3M", "subtitles_edit", True),
        ("OpenVE-3M", "local_add", False),
        ("OpenVE-3M", "camera_multi_shot_edit", False),
    ],
)
def test_what_the_paper_keeps(dataset, task, kept):
    rules = Criteria(task_rules=parse_tasks(["paper"])).rules_for(dataset)
    assert any(matches_task(rule, task) for rule in rules) is kept


@pytest.mark.parametrize("value", ["", " ", "ditto=", "=style", "-"])
def test_a_task_must_be_named(value):
    with pytest.raises(DataError, match="names no task"):
        parse_tasks([value])


def test_names_are_compared_however_they_are_written():
    assert simplified("Ditto-1M") == simplified(" ditto_1m ") == "ditto_1m"
    assert simplified_licence("CC BY_4.0") == simplified_licence("cc-by-4.0")


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("Apache-2.0", True),
        ("MIT", True),
        ("CC-BY-4.0", True),
        ("CC BY-SA 4.0", True),
        ("CC0-1.0", True),
        ("CC-BY-NC-4.0", False),
        ("CC-BY-NC-SA-4.0", False),
        ("CC-BY-NC-ND-4.0", False),
        ("CC-BY-ND-4.0", False),
        ("non-commercial", False),
        ("CC-BY-4.0 AND CC-BY-NC-4.0", False),
        ("CC-BY-SA-NC-4.0", False),
        ("Apache-2.0 (weights non-commercial)", False),
        ("custom", False),
    ],
)
def test_commercial_use_is_allowed_only_where_it_is_known(licence, allowed):
    assert allows_commercial_use(licence) is allowed
