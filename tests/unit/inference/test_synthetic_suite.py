"""The synthetic suite's prompts and plans, around an editor that gives back grey clips."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_data.pretext import PROMPT_TOKENS
from sama_data.synth import EDIT_KINDS, WorldSpec, make_pair
from sama_mega.config.schema import MotionRecipe
from sama_mega.inference.editor import SamplingSettings
from sama_mega.inference.held_out import HELD_OUT_SEED
from sama_mega.inference.synthetic_suite import MOTION_TASKS, SyntheticSuite

FRAMES, SIZE, CLIPS = 13, 32, 2
SPEC = WorldSpec(num_frames=FRAMES, height=SIZE, width=SIZE)


class GreyEditor:
    def __init__(self) -> None:
        self.prompts: list[list[str]] = []

    def edit(
        self, sources: torch.Tensor, prompts: list[str], _: SamplingSettings, *, num_frames: int | None
    ) -> torch.Tensor:
        self.prompts.append(list(prompts))
        return torch.zeros(len(prompts), 3, num_frames or sources.shape[2], SIZE, SIZE)


@pytest.fixture
def suite() -> tuple[SyntheticSuite, GreyEditor]:
    editor = GreyEditor()
    codec = SimpleNamespace(encode=lambda pixels: pixels, decode=lambda latents: latents)
    recipe = SimpleNamespace(data=SimpleNamespace(buckets=[(SIZE, SIZE)], max_frames=FRAMES), motion=MotionRecipe())
    opened: Any = SimpleNamespace(
        recipe=recipe,
        editor=editor,
        encoders=SimpleNamespace(video=codec),
        context=SimpleNamespace(device=torch.device("cpu")),
    )
    return SyntheticSuite(opened, SamplingSettings(1, 1.0, 0), CLIPS), editor


def test_edits_are_asked_for_as_in_training(suite: tuple[SyntheticSuite, GreyEditor]) -> None:
    scored, editor = suite
    assert [scores.kind for scores, _ in scored.score_edits()] == list(EDIT_KINDS)
    kinds = [kind for kind in EDIT_KINDS for _ in range(CLIPS)]
    pairs = [make_pair(HELD_OUT_SEED, index, SPEC, kind) for index, kind in enumerate(kinds)]
    wanted = [f"[Video edit] {pair.instruction}" for pair in pairs]
    assert list(chain(*editor.prompts[0::2])) == wanted
    controls = list(chain(*editor.prompts[1::2]))
    assert sorted(controls) == sorted(wanted)
    assert all(control != prompt for control, prompt in zip(controls, wanted, strict=True))


def test_restoration_is_asked_for_as_in_training(suite: tuple[SyntheticSuite, GreyEditor]) -> None:
    scored, editor = suite
    assert [scores.task for scores, _ in scored.score_motion()] == list(MOTION_TASKS)
    captions = [make_pair(HELD_OUT_SEED, index, SPEC).caption for index in range(CLIPS)]
    wanted = [[f"{PROMPT_TOKENS[task]} {caption}" for caption in captions] for task in MOTION_TASKS]
    assert editor.prompts == wanted
