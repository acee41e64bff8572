"""Measures training steps of the planner's grid: ``python -m sama_mega.bench.planner_steps RANKS ROUNDS OUT``.

One world of ranks measures all its configurations in rounds, in which each has its turn, so that a machine that is
slow for a while is slow for all of them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from sama_data.pretext import identity_plan
from sama_data.rows import Kind
from sama_data.samples import Sample, StepSamples
from sama_mega.bench.clock import seconds_of
from sama_mega.bench.planner_grid import Configuration, configurations
from sama_mega.encoders import build_encoders
from sama_mega.parallel.launch import FAILURE_GRACE_SECONDS, end_ranks, start_ranks, wait_for_ranks
from sama_mega.parallel.layout import Layout, resolve_layout
from sama_mega.parallel.runtime import ParallelContext, form_groups, start_parallel, stop_parallel
from sama_mega.train.batch import Batcher
from sama_mega.train.shared_encoding import Sharing
from sama_mega.train.state import build_train_state
from sama_mega.train.step import TrainStep

WARM_UPS = 2
LEARNING_RATE = 1e-4
TIMEOUT_SECONDS = 900.0


def measure_steps(device_type: str, rounds: int, report: Callable[[str], None]) -> dict[Configuration, list[float]]:
    """Seconds of every round of every configuration that this machine can run.

    Args:
        device_type: `cpu`, or `cuda`: one GPU, so one rank.
        rounds: Timed steps of each.
        report: Told what is going on.

    Raises:
        RuntimeError: Ranks failed; their output is on stderr.
    """
    grid = configurations(device_type)
    measured: dict[Configuration, list[float]] = {}
    for num_ranks in sorted({one.num_ranks for one in grid}):
        own = [one for one in grid if one.num_ranks == num_ranks]
        report(f"steps on {num_ranks} rank{'s' if num_ranks > 1 else ''}: {len(own)} configurations, {rounds} rounds")
        with tempfile.TemporaryDirectory(prefix="sama_mega_planner_") as folder:
            seconds = _run_ranks(num_ranks, rounds, Path(folder))
        measured |= dict(zip(own, seconds, strict=True))
    return {one: measured[one] for one in grid}


def _run_ranks(num_ranks: int, rounds: int, folder: Path) -> list[list[float]]:
    out, logs = folder / "seconds.json", [folder / f"rank{rank}.txt" for rank in range(num_ranks)]
    command = [sys.executable, "-m", "sama_mega.bench.planner_steps", str(num_ranks), str(rounds), str(out)]
    ranks = start_ranks(num_ranks, command, folder, logs)
    try:
        failed = wait_for_ranks(ranks, FAILURE_GRACE_SECONDS, TIMEOUT_SECONDS)
    finally:
        end_ranks(ranks)
    if failed is not None:
        sys.stderr.write(logs[failed].read_text(errors="replace"))
        raise RuntimeError(f"rank {failed} of {num_ranks} failed while it measured steps for the planner")
    seconds: list[list[float]] = json.loads(out.read_text())
    return seconds


def main(num_ranks: int, rounds: int, out: Path) -> None:
    """One rank: rank 0 writes the seconds, a list of rounds for each configuration."""
    # One core a rank: two ranks on two cores are then as fast each as one alone.
    torch.set_num_threads(1)
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    grid = [one for one in configurations(device_type) if one.num_ranks == num_ranks]
    context = start_parallel(grid[0].recipe(device_type))
    formed: dict[Layout, ParallelContext] = {context.layout: context}
    steps = []
    for configuration in grid:
        layout = resolve_layout(configuration.recipe(device_type), num_ranks)
        if layout not in formed:
            formed[layout] = form_groups(layout, context.device, seed=0)
        steps.append(_make_step(configuration, formed[layout]))
    seconds: list[list[float]] = [[] for _ in steps]
    for round_number in range(-WARM_UPS, rounds):
        for times, step in zip(seconds, steps, strict=True):
            dist.barrier(context.world_group)
            took = seconds_of(step, context.device)
            if round_number >= 0:
                times.append(took)
    if context.is_first_rank:
        out.write_text(json.dumps(seconds))
    stop_parallel()


def _make_step(configuration: Configuration, context: ParallelContext) -> Callable[[], object]:
    recipe = configuration.recipe(context.device.type)
    state = build_train_state(recipe, context, initialize=True)
    batcher = Batcher(recipe, build_encoders(recipe, context.device), context.device, Sharing.among(context))
    step, drawn = TrainStep(recipe, context, state, batcher), _samples(configuration, context.data_rank)
    return lambda: step.run(drawn, LEARNING_RATE)


def _samples(configuration: Configuration, data_rank: int) -> StepSamples:
    """A data rank's part of edits, each kind dealt evenly."""

    def sample(slot: int, kind: Kind) -> Sample:
        num_frames = 1 if kind == "image" else configuration.num_frames
        shape = (num_frames, configuration.height, configuration.width, 3)
        source, target = np.random.default_rng(slot).integers(0, 256, (2, *shape), dtype=np.uint8)
        plan = identity_plan(num_frames, "edit")
        return Sample(f"sample {slot}", slot, 0, slot, kind, plan.task, source, target, plan, f"make it {slot}", "")

    images, videos = configuration.images, configuration.videos
    kinds: list[Kind] = ["image" if slot < images else "video" for slot in range(images + videos)]
    own = [slot for slot in range(len(kinds)) if slot % configuration.data == data_rank]
    return StepSamples(0, [sample(slot, kinds[slot]) for slot in own], len(kinds), images)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
