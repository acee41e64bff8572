"""Prompts: what the text encoder reads of an edit and of a raw clip."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_data.pretext import PROMPT_TOKENS, TASKS, Motion, PretextPlan, identity_plan
from sama_data.prompts import edit_prompt, make_prompt, pretext_prompt, row_prompts
from sama_data.rows import Kind, Row

CUBE = PretextPlan("cube", (0, -1, 2), None, PROMPT_TOKENS["cube"])


@pytest.mark.parametrize(("kind", "prefix"), [("image", "[Image edit]"), ("video", "[Video edit]")])
def test_an_edit_is_marked_by_what_is_edited(kind: Kind, prefix: str) -> None:
    assert edit_prompt(kind, " Make it red.\n") == f"{prefix} Make it red."
    row = Row(0, "name", kind, Path("a"), Path("b"), " Make it red.\n")
    assert make_prompt(row, identity_plan(5, "edit")) == (f"{prefix} Make it red.", prefix)


def test_a_raw_clips_caption_follows_its_plans_token() -> None:
    words = "[Complete the missing regions in the video.]"
    assert pretext_prompt(CUBE, " A wave. ") == f"{words} A wave."
    row = Row(0, "name", "video", None, Path("b.mp4"), " A wave. ")
    assert make_prompt(row, CUBE) == (f"{words} A wave.", words)


def test_without_a_token_there_is_the_caption_alone() -> None:
    assert pretext_prompt(identity_plan(5), " A wave. ") == "A wave."
    for kind in ("image", "video"):
        row = Row(0, "name", kind, None, Path("b"), " A wave. ")
        assert make_prompt(row, identity_plan(5)) == ("A wave.", "")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_rows_prompts_are_those_that_its_plans_make(kind: Kind) -> None:
    edit = Row(0, "name", kind, Path("a"), Path("b"), "Make it red.")
    assert row_prompts(edit, Motion()) == list(make_prompt(edit, identity_plan(5, "edit")))
    raw = Row(0, "name", kind, None, Path("b"), " A wave. ")
    motion = Motion(none=0.0, cube=1.0, speed=0.0, tube=2.0)
    possible = ["none", "cube", "tube"] if kind == "video" else ["none"]
    made = [make_prompt(raw, PretextPlan(task, (0,), None, PROMPT_TOKENS[task])) for task in possible]
    assert row_prompts(raw, motion) == [prompt for prompt, _ in made] + [prefix for _, prefix in made]
    assert len(row_prompts(raw, Motion())) == 2 * (len(TASKS) if kind == "video" else 1)
