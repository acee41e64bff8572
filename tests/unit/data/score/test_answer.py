"""Answers: what is taken, and that nothing else is."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.score.answer import BadAnswer, read_completion, read_scores
from sama_data.score.prompts import ANSWER_KEYS, answer_form
from tests.support.chat_server import answer

GOOD = {
    "observations": "A soft seam.",
    "instruction_following": 9,
    "visual_quality": 8.5,
    "content_preservation": 10,
    "motion_consistency": 1,
}
SCORES = {"if_score": 9.0, "vq_score": 8.5, "cp_score": 10.0, "mc_score": 1.0}
TEXT = json.dumps(GOOD)
VIDEO, IMAGE = answer_form("video"), answer_form("image")


def changed(**values: object) -> str:
    return json.dumps(GOOD | values)


@pytest.mark.parametrize("text", [TEXT, f"\n {TEXT}\n", f"```json\n{TEXT}\n```", f"```\n{TEXT}\n```"])
def test_good_answers(text):
    assert read_scores(text, VIDEO) == SCORES


def test_observations_may_be_left_out():
    assert read_scores(json.dumps(dict.fromkeys(ANSWER_KEYS.values(), 9)), VIDEO)["mc_score"] == 9.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("9 out of 10", "is not JSON"),
        (TEXT[:-1], "is not JSON"),
        (f"Here you are: {TEXT}", "is not JSON"),
        (f"{TEXT}{TEXT}", "is not JSON"),
        (f"```json\n{TEXT}\n```\nThat is all.", "is not JSON"),
        (f"[{TEXT}]", "is no JSON object"),
        ("9", "is no JSON object"),
        ("null", "is no JSON object"),
        (TEXT.replace('"visual_quality"', '"quality"'), "lacks visual_quality and has quality"),
        (changed(overall=9), "has overall"),
        (TEXT.replace("{", '{"visual_quality": 9, '), "a key stands there twice"),
        (changed(visual_quality=0), "visual_quality is '0', not a number from 1 to 10"),
        (changed(visual_quality=10.5), "visual_quality is '10.5'"),
        (changed(visual_quality=-9), "not a number from 1 to 10"),
        (changed(visual_quality="9"), "visual_quality is "),
        (changed(visual_quality=None), "visual_quality is 'null'"),
        (changed(visual_quality=True), "visual_quality is 'true'"),
        (changed(visual_quality=[9]), r"visual_quality is '\[9\]'"),
        (TEXT.replace("8.5", "NaN"), "NaN is no number of JSON"),
        (TEXT.replace("8.5", "Infinity"), "Infinity is no number"),
        (TEXT.replace("8.5", "1e999"), "not a number from 1 to 10"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(BadAnswer, match=message):
        read_scores(text, VIDEO)


def test_a_picture_is_not_judged_by_its_motion():
    with pytest.raises(BadAnswer, match="has motion_consistency"):
        read_scores(TEXT, IMAGE)
    still = {key: value for key, value in GOOD.items() if key != "motion_consistency"}
    assert read_scores(json.dumps(still), IMAGE) == {key: SCORES[key] for key in list(SCORES)[:3]}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "more"]), inner, max_size=6),
)


@given(st.one_of(JSON.map(json.dumps), st.text(), st.fixed_dictionaries(dict.fromkeys(GOOD, JSON)).map(json.dumps)))
def test_whatever_comes_is_refused_or_in_range(text):
    try:
        scores = read_scores(text, VIDEO)
    except BadAnswer as error:
        assert "\n" not in str(error)
        return
    assert set(scores) == set(SCORES) and all(1 <= value <= 10 for value in scores.values())


@pytest.mark.parametrize("kind", ["image", "video"])
@given(score=st.integers(-2, 13), drop=st.sampled_from([None, *ANSWER_KEYS.values()]))
def test_what_the_schema_allows_is_what_is_taken(kind, score, drop):
    schema = answer_form(kind).schema()
    sent = {"observations": ""} | dict.fromkeys(schema["required"][1:], score)
    sent.pop(drop, None)
    allowed = jsonschema.Draft202012Validator(schema).is_valid(sent)
    try:
        read_scores(json.dumps(sent), answer_form(kind))
    except BadAnswer:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>busy</html>", "the response is not JSON"),
        (b"\xff\xfe\xfd", "the response is not JSON"),
        (b"{}", "is no chat completion"),
        (b"[]", "is no chat completion"),
        (b'{"choices": []}', "is no chat completion"),
        (b'{"error": {"message": "overloaded"}}', "is no chat completion: .*overloaded"),
        (answer(TEXT, message={"content": None}).body, "the answer is empty"),
        (answer(TEXT, message={"content": None, "refusal": "I will not."}).body, "the model refused: 'I will not.'"),
        (answer(TEXT, message={"content": [TEXT]}).body, "the answer is empty"),
        (answer(TEXT, message="text").body, "is no chat completion"),
        (answer(TEXT[:40], finish_reason="length").body, "cut off at the most tokens"),
    ],
)
def test_responses_without_an_answer(reply, message):
    with pytest.raises(BadAnswer, match=message):
        read_completion(reply, VIDEO)


def test_tokens_are_counted_where_the_endpoint_counts_them():
    body = json.loads(answer(TEXT).body or b"")
    verdict = read_completion(json.dumps(body).encode(), VIDEO)
    assert (verdict.scores, verdict.prompt_tokens, verdict.completion_tokens) == (SCORES, 100, 7)
    for usage in (None, [], {}, {"prompt_tokens": "many", "completion_tokens": -1}):
        verdict = read_completion(json.dumps(body | {"usage": usage}).encode(), VIDEO)
        assert (verdict.prompt_tokens, verdict.completion_tokens) == (0, 0)
