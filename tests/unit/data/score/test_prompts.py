"""What the judge is told: everything that was asked for, and nothing of the other kind."""

from __future__ import annotations

import jsonschema
import pytest

from sama_data.score.prompts import (
    ANSWER_KEYS,
    answer_form,
    make_messages,
    prompt_digest,
    score_columns,
    text_bytes,
)


def all_text(kind: str, instruction: str = "Make it red.") -> str:
    system, user = make_messages(kind, instruction, ["o1", "o2"], ["e1", "e2"])
    return "\n".join([system["content"], *(part.get("text", "") for part in user["content"])])


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_score_is_explained_and_asked_for(kind):
    text = all_text(kind)
    for key in (ANSWER_KEYS[name] for name in score_columns(kind)):
        assert f"\n{key}: " in text and f'"{key}": N' in text
        assert key in answer_form(kind).schema()["required"]
    assert "{" not in text.replace('{"observations"', "")  # no placeholder was left
    assert "JSON" in text and "<instruction>\nMake it red.\n</instruction>" in text


def test_pictures_have_no_motion():
    text = all_text("image").replace("framing", "")
    assert not any(word in text for word in ("motion", "video", "frame"))
    assert "motion_consistency" not in answer_form("image").schema()["properties"]


def test_pictures_are_labelled_and_in_order():
    _, user = make_messages("video", "x", ["o1", "o2"], ["e1"])
    parts = user["content"]
    labels = [parts[place]["text"] for place in range(0, 6, 2)]
    assert labels == ["Original video, frame 1 of 2:", "Original video, frame 2 of 2:", "Edited video, frame 1 of 1:"]
    assert [parts[place]["image_url"]["url"] for place in range(1, 6, 2)] == ["o1", "o2", "e1"]
    assert len(parts) == 7


def test_the_schema_is_one_and_takes_whole_numbers_from_1_to_10():
    for kind in ("image", "video"):
        jsonschema.Draft202012Validator.check_schema(answer_form(kind).schema())
    validator = jsonschema.Draft202012Validator(answer_form("image").schema())
    good = {"observations": "", "instruction_following": 1, "visual_quality": 10, "content_preservation": 5}
    assert validator.is_valid(good)
    for wrong in ({"visual_quality": 0}, {"visual_quality": 11}, {"visual_quality": 8.5}, {"motion_consistency": 5}):
        assert not validator.is_valid(good | wrong)


def test_text_is_counted_in_bytes_and_pictures_are_not():
    without = text_bytes(make_messages("image", "", ["x" * 1000], [""]))
    assert text_bytes(make_messages("image", "é", [""], [""])) == without + 2


def test_the_digest_tells_prompts_apart(monkeypatch):
    before = prompt_digest()
    assert before == prompt_digest()
    monkeypatch.setattr("sama_data.score.prompts._RULES", "Be kind.")
    assert prompt_digest() != before
