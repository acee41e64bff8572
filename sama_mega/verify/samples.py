"""The global batch of a verification: every kind of sample, with sequence lengths that divide nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sama_data.cost import CostModel
from sama_data.dealing import deal
from sama_data.pretext import PretextPlan, identity_plan, plan_pretext
from sama_data.prompts import edit_prompt, pretext_prompt
from sama_data.rows import Kind
from sama_data.samples import Sample, StepSamples
from sama_mega.config.schema import MotionRecipe

CLIP = (13, 48, 80)
"""Frames, height and width: 4 x 3 x 5 patches."""
OTHER_CLIP = (5, 48, 48)
"""2 x 3 x 3 patches."""
PICTURE = (1, 48, 80)
OTHER_PICTURE = (1, 16, 112)
"""1 x 1 x 7 patches."""
SHAPES = {
    "picture edit": PICTURE,
    "another picture edit": PICTURE,
    "wide picture edit": OTHER_PICTURE,
    "picture": OTHER_PICTURE,
    "clip edit": CLIP,
    "small clip edit": OTHER_CLIP,
    "none": CLIP,
    "cube": CLIP,
    "speed": CLIP,
    "tube": CLIP,
}
"""By sample, in slot order: pictures first."""


def global_batch(stage: int, at_least_per_rank: int = 1, data_world: int = 1) -> list[Sample]:
    """All samples, the same on every rank; stage 1 has edits only.

    Args:
        stage: 0: also raw pictures and clips, one of each motion task.
        at_least_per_rank: So many clips for every data rank: all kinds are repeated until there are.
        data_world: Number of data ranks.
    """
    names = [name for name in SHAPES if stage == 0 or name.endswith("edit")]
    pictures, clips = ([name for name in names if (SHAPES[name][0] == 1) == still] for still in (True, False))
    copies = -(-at_least_per_rank * data_world // len(clips))
    return [_sample(name, slot) for slot, name in enumerate(pictures * copies + clips * copies)]


def share_of(samples: list[Sample], data_rank: int, data_world: int) -> StepSamples:
    """One data rank's part, dealt by predicted cost as in training: unequal numbers and kinds."""
    # Without what every sample costs alike: at these lengths it would make the shares equal.
    model = CostModel(semantic_tokens=0, text_length=0)
    sizes = np.array([sample.shape[1:] for sample in samples], np.int64).T
    mine = deal(model.nanoseconds(model.tokens(*sizes)).tolist(), data_world)[data_rank]
    num_images = sum(sample.kind == "image" for sample in samples)
    return StepSamples(0, [samples[slot] for slot in mine], num_slots=len(samples), num_image_slots=num_images)


def _sample(name: str, slot: int) -> Sample:
    num_frames, height, width = SHAPES[name]
    source, target = _frames(slot, 0, SHAPES[name]), _frames(slot, 1, SHAPES[name])
    kind: Kind = "image" if num_frames == 1 else "video"
    is_edit = name.endswith("edit")
    plan = identity_plan(num_frames, "edit") if is_edit else _plan(name, num_frames, height, width)
    text = f"sample {slot}, {name}"
    return Sample(
        sample_id=name,
        index=slot,
        epoch=0,
        slot=slot,
        kind=kind,
        task=plan.task,
        source_frames=source if is_edit else target,
        target_frames=target,
        plan=plan,
        prompt=edit_prompt(kind, text) if is_edit else pretext_prompt(plan, text),
        prompt_prefix="",
    )


def _plan(task: str, num_frames: int, height: int, width: int) -> PretextPlan:
    if num_frames == 1:
        return identity_plan(1)
    weights = dict.fromkeys(("none", "cube", "speed", "tube"), 0.0) | {task: 1.0}
    only = MotionRecipe.model_validate(weights)
    plan = plan_pretext(only, 0, task, 0, num_frames, height, width)
    assert plan.task == task, (plan.task, task)
    return plan


def _frames(slot: int, which: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng([slot, which]).integers(0, 256, (*shape, 3), dtype=np.uint8)
