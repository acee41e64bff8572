"""Runs what a study still lacks, several runs at a time; killed at any moment, it goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sama_mega.ablation.study import KINDS, STAGES, Chain, Study
from sama_mega.config.errors import ConfigError
from sama_mega.parallel.launch import die_with_parent, end_ranks

SCORING_STEPS = 100
"""What scoring counts for beside a run's steps: about as long."""
POLL_SECONDS = 0.5
_TAIL_BYTES = 1 << 13


def conduct(study: Study, jobs: int, on_steps: Callable[[int], None]) -> None:
    """Makes the world and runs every chain that has no scores yet.

    Args:
        study: What to run.
        jobs: Chains at a time, of one process each.
        on_steps: Called now and then with the steps that are done, of `total_steps`.

    Raises:
        ConfigError: A run failed; the message names its log.
    """
    if not study.world.exists():
        _make_world(study, jobs)
    chains = study.chains()
    totals = [chain_steps(chain) for chain in chains]
    waiting = [chain for chain in chains if not chain.scores.exists()]
    running: dict[int, tuple[Chain, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                chain = waiting.pop(0)
                process = _start(chain)
                running[process.pid] = (chain, process)
            time.sleep(POLL_SECONDS)
            for chain, process in [one for one in running.values() if one[1].poll() is not None]:
                del running[process.pid]
                if process.returncode:
                    raise ConfigError(f"{chain.name} failed: {_last_line(_log(chain))} (all of it: {_log(chain)})")
            on_steps(sum(steps_done(chain, total) for chain, total in zip(chains, totals, strict=True)))
    finally:
        end_ranks([process for _, process in running.values()])


def total_steps(study: Study) -> int:
    """Training steps of all chains, and what scoring counts for."""
    return sum(chain_steps(chain) for chain in study.chains())


def steps_done(chain: Chain, total: int) -> int:
    """Of one chain, of its `chain_steps`; cheap enough to ask often."""
    if chain.scores.exists():
        return total
    return sum(_last_step(chain.run_folder(stage) / "metrics.jsonl") for stage in STAGES)


def chain_steps(chain: Chain) -> int:
    """Training steps of one chain, and what scoring counts for."""
    return sum(chain.recipe(stage).train.steps for stage in STAGES) + SCORING_STEPS


def _last_step(metrics: Path) -> int:
    """The step of the last whole row."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - _TAIL_BYTES))
            rows = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    try:
        return int(json.loads(rows[-1])["step"]) if rows else 0
    except ValueError:  # a row longer than what was read
        return 0


def _make_world(study: Study, jobs: int) -> None:
    recipe, size = study.chains()[0].recipe(0), study.size
    counts = ("--videos", size.num_videos, "--images", size.num_images, "--frames", recipe.data.max_frames)
    kinds = [word for kind in KINDS for word in ("--kind", kind)]
    pixels = ("--size", recipe.data.buckets[0][0])
    command = ["data", "synth", "--out", study.world, *counts, *pixels, "--workers", jobs, *kinds]
    process = _python(["-m", "sama_mega", *map(str, command)], None)
    if process.wait():
        raise ConfigError(f"the synthetic world could not be made in {study.world}")


def _start(chain: Chain) -> subprocess.Popen[bytes]:
    chain.folder.mkdir(parents=True, exist_ok=True)
    words = ["-m", "sama_mega.ablation.run_chain", str(chain.study.folder), chain.variant.name, str(chain.seed)]
    return _python(words, _log(chain))


def _python(words: Sequence[str], log: Path | None) -> subprocess.Popen[bytes]:
    # One thread each: the models are too small for more, and several run at once.
    environment: Mapping[str, str] = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    if log is None:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C is for the study, which then ends its runs
        )


def _log(chain: Chain) -> Path:
    return chain.folder / "log.txt"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
