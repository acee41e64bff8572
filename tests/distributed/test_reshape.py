"""Any layout saves, any other goes on: a run that changes its layout at every resume is the run that never did.

Four ranks are started once. In them one run goes through three layouts, leg after leg in one run folder; this process
ends it alone, and compares every step and every tensor of every checkpoint with a run of its own from start to end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from tests.support.distributed import run_distributed
from tests.support.mixed_world import (
    LIMIT,
    MIXED,
    assert_same_steps,
    distance,
    meeting_points,
    what_is_raised,
    write_mixed_world,
)
from tests.support.tiny_recipe import assert_bitwise_equal, read_rows, tiny_recipe

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
RANKS = 4
LEG_STEPS = 2
CHANGES = MIXED | {
    "model.num_layers": 4,
    "model.num_heads": 4,
    "checkpoint.every": LEG_STEPS,
    "checkpoint.keep": 9,
    # Every leg is a run to its own last step, and the rate must not end there.
    "optimizer.decay_share": 0.0,
    # A picture at the end of every leg: its layout predicts too.
    "train.num_samples": 1,
    "train.sample_every": LEG_STEPS,
}
TENSOR_AND_PIPELINE = {"parallel.tensor": 2, "parallel.pipeline": 2}
CONTEXT_AND_DATA = {"parallel.context": 2, "parallel.data": 2}
INTERLEAVED_AND_DATA = {
    "parallel.pipeline": 2,
    "parallel.interleave": 2,
    "parallel.data": 2,
    "parallel.overlap_grad_reduce": True,
    "parallel.overlap_param_gather": True,
}
LEGS: tuple[dict[str, Any], ...] = (TENSOR_AND_PIPELINE, CONTEXT_AND_DATA, INTERLEAVED_AND_DATA, {})
"""Layouts in the order of the run; the last is one rank."""
STEPS = LEG_STEPS * len(LEGS)
BFLOAT16 = {"train.precision": "bfloat16"}
RESAVED = (CONTEXT_AND_DATA, INTERLEAVED_AND_DATA, TENSOR_AND_PIPELINE)
"""Layouts that pass a bfloat16 checkpoint on, one after the other."""
TOO_FEW = {"data.images_per_step": 1, "data.videos_per_step": 2}
"""Three samples for two data ranks with two interleaved stages each."""


@dataclass(frozen=True)
class Found:
    """Run folders, and what the ranks found.

    Attributes:
        truth: A run on one rank, uninterrupted.
        chain: The run that went through `LEGS`.
        rounded: A bfloat16 run on `TENSOR_AND_PIPELINE`.
        resaved: Checkpoints made of its own, each by loading the one before.
        rounded_wrongly: By rank, of every reload: parameters that are not their master in bfloat16.
        refusals: By rank, what ended a run of too few samples.
    """

    truth: Path
    chain: Path
    rounded: Path
    resaved: list[Path]
    rounded_wrongly: list[list[str]]
    refusals: list[str]


# --- run by the four ranks ------------------------------------------------------------------------


def four_ranks(folder: str, mixed: str) -> tuple[list[str], str]:
    """Runs every leg but the last; returns what was rounded wrongly and what was refused."""
    from sama_mega.train.run import train

    root, manifest = Path(folder), Path(mixed)
    meet = meeting_points(root)
    for leg, layout in enumerate(LEGS[:-1], start=1):
        meet(f"leg{leg}")
        train(tiny_recipe(0, root / "chain", manifest, leg * LEG_STEPS, CHANGES | layout))
    meet("rounded")
    train(tiny_recipe(0, root / "rounded", manifest, LEG_STEPS, CHANGES | BFLOAT16 | TENSOR_AND_PIPELINE))
    wrong, checkpoint = [], checkpoint_of(root / "rounded", LEG_STEPS)
    for number, layout in enumerate(RESAVED):
        meet(f"resaved{number}")
        recipe = tiny_recipe(0, root / "unused", manifest, LEG_STEPS, CHANGES | BFLOAT16 | layout)
        wrong += load_and_save(recipe, checkpoint, root / f"resaved{number}")
        checkpoint = root / f"resaved{number}"
    meet("too_few")
    recipe = tiny_recipe(0, root / "too_few", manifest, LEG_STEPS, CHANGES | INTERLEAVED_AND_DATA | TOO_FEW)
    return wrong, what_is_raised(lambda: train(recipe))


def load_and_save(recipe: Any, checkpoint: Path, copy: Path) -> list[str]:
    """Takes a checkpoint up as `train` does and saves at once; returns parameters that are not their master rounded."""
    import shutil

    from sama_mega.checkpoint.saved_state import STATE_FILE
    from sama_mega.parallel.checkpoint_io import save_sharded
    from sama_mega.parallel.collectives import broadcast_object
    from sama_mega.parallel.data_parallel import parameter_names
    from sama_mega.parallel.runtime import start_parallel, stop_parallel
    from sama_mega.parallel.sharded_state import shard_parameters
    from sama_mega.train.checkpoint import load_checkpoint, whole_state
    from sama_mega.train.state import build_train_state
    from sama_mega.verify.whole_tensors import put_together

    context = start_parallel(recipe)
    state = build_train_state(recipe, context, initialize=False)
    load_checkpoint(checkpoint, state)
    save_sharded(whole_state(state), copy)
    masters = broadcast_object(put_together(state.optimizer.sharded_masters(""), context), context.world_group)
    pieces: dict[str, Any] = {}
    for stage in state.stages:
        values = {name: parameter.detach().clone() for name, parameter in parameter_names(stage).items()}
        pieces |= shard_parameters(stage, context, "", values)
    kinds = {name: parameter.dtype for stage in state.stages for name, parameter in parameter_names(stage).items()}
    held = broadcast_object(put_together(pieces, context), context.world_group)
    wrong = [
        name
        for name, kind in kinds.items()
        for whole in held[name]
        if not bool((whole == masters[name][0].to(kind).float()).all())
    ]
    if context.is_first_rank:
        shutil.copy(checkpoint / STATE_FILE, copy)
    stop_parallel()
    return wrong


# --- started once ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    from sama_mega.train.run import train

    folder = tmp_path_factory.mktemp("reshape")
    mixed = write_mixed_world(folder / "mixed")
    said = run_distributed(four_ranks, RANKS, TIMEOUT_SECONDS, (str(folder), str(mixed)))
    train(tiny_recipe(0, folder / "chain", mixed, STEPS, CHANGES | LEGS[-1]))
    train(tiny_recipe(0, folder / "truth", mixed, STEPS, CHANGES))
    return Found(
        folder / "truth",
        folder / "chain",
        folder / "rounded",
        [folder / f"resaved{number}" for number in range(len(RESAVED))],
        [wrong for wrong, _ in said],
        [refusal for _, refusal in said],
    )


# --- comparisons ----------------------------------------------------------------------------------


def checkpoint_of(run_folder: Path, step: int) -> Path:
    return run_folder / f"checkpoints/step-{step:08d}"


def tensors(checkpoint: Path) -> dict[str, Tensor]:
    from sama_mega.parallel.checkpoint_io import read_plain

    return read_plain(checkpoint)


def sections(names: Any) -> set[str]:
    """`model`, `ema`, `optimizer.exp_avg` and so on."""
    return {".".join(name.split(".")[: 2 if name.startswith("optimizer.") else 1]) for name in names}


def counters(checkpoint: Path) -> dict[str, Any]:
    """All of state.json but who wrote it."""
    state = json.loads((checkpoint / "state.json").read_text())
    return {key: value for key, value in state.items() if key not in ("layout", "life")}


def test_every_leg_ran_in_its_own_layout(found: Found) -> None:
    for leg, layout in enumerate(LEGS, start=1):
        state = json.loads((checkpoint_of(found.chain, leg * LEG_STEPS) / "state.json").read_text())
        degrees = {axis: layout.get(f"parallel.{axis}", 1) for axis in ("tensor", "context", "pipeline", "data")}
        assert (state["layout"], state["life"]) == (degrees, leg)
    assert (found.chain / "log.txt").read_text().count("resumed ") == len(LEGS) - 1
    assert {task for row in read_rows(found.truth) for task in row["losses_by_task"]} == {
        *("none", "cube", "speed", "tube", "edit")
    }


def test_the_losses_go_on_as_if_nothing_had_changed(found: Found) -> None:
    assert len(read_rows(found.truth)) == STEPS
    assert_same_steps(read_rows(found.chain), read_rows(found.truth))


@pytest.mark.parametrize("leg", range(1, len(LEGS) + 1))
def test_every_saved_tensor_is_the_truths(leg: int, found: Found) -> None:
    ours, truth = (tensors(checkpoint_of(folder, leg * LEG_STEPS)) for folder in (found.chain, found.truth))
    assert ours.keys() == truth.keys()
    assert sections(truth) == {"model", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq"}
    errors = {name: distance(ours[name], truth[name]) for name in truth}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] < LIMIT, f"{worst}: {errors[worst]:.2e}"


@pytest.mark.parametrize("leg", range(1, len(LEGS) + 1))
def test_every_counter_is_the_truths(leg: int, found: Found) -> None:
    ours, truth = (counters(checkpoint_of(folder, leg * LEG_STEPS)) for folder in (found.chain, found.truth))
    assert ours == truth
    step = leg * LEG_STEPS
    assert (ours["step"], ours["optimizer_updates"], ours["average_updates"]) == (step, step, step)


@pytest.mark.parametrize("leg", range(1, len(LEGS) + 1))
def test_every_layout_paints_the_truths_picture(leg: int, found: Found) -> None:
    pictures = [folder / f"samples/step-{leg * LEG_STEPS:08d}-0.png" for folder in (found.chain, found.truth)]
    ours, truth = (np.asarray(Image.open(picture), dtype=float) for picture in pictures)
    assert ours.shape == truth.shape and truth.std() > 10
    # A pixel in a thousand may round the other way; a wrong prediction moves dozens.
    assert (ours != truth).mean() < 1e-3


@pytest.mark.parametrize("number", range(len(RESAVED)))
def test_loading_in_another_layout_changes_no_bit(number: int, found: Found) -> None:
    """Masters, moments and average of a bfloat16 run, and its float32 parameters."""
    saved = tensors(checkpoint_of(found.rounded, LEG_STEPS))
    assert sections(saved) == {
        *("model", "ema", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.master"),
    }
    assert_bitwise_equal(tensors(found.resaved[number]), saved)


def test_every_rank_holds_the_masters_rounded(found: Found) -> None:
    assert found.rounded_wrongly == [[]] * RANKS


def test_too_few_samples_to_interleave_end_every_rank_alike(found: Found) -> None:
    (refusal,) = set(found.refusals)
    assert len(found.refusals) == RANKS
    assert refusal.startswith("ConfigError: a step has ")
    assert "for 2 data ranks: with parallel.interleave every rank needs parallel.pipeline (2): raise" in refusal
    assert "\n" not in refusal
