"""The demo: a synthetic world, both training stages, scores and one edit, on a CPU in minutes.

Every step is a command of the command line, printed before it runs, so that each can be tried again by hand. What is
already finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from sama_mega.config.errors import UserError
from sama_mega.inference.held_out import HELD_OUT_SEED

ROOT = Path("runs/demo")
WORLD = ROOT / "world"
HELD_OUT = ROOT / "held_out"
STAGE_RUNS = (Path("runs/demo_stage0"), Path("runs/demo_stage1"))
STAGE_MANIFESTS = (WORLD / "raw.jsonl", WORLD / "pairs.jsonl")
WORLD_VIDEOS, WORLD_IMAGES, WORLD_SEED, FRAMES = 4000, 8000, 0, 13
NUM_RANKS = min(2, len(os.sched_getaffinity(0)))
"""The models' matrices are too small for two threads; two ranks use two cores."""


def main(argv: list[str] | None = None) -> int:
    """Runs the demo.

    Args:
        argv: The command line; None reads `sys.argv`.

    Returns:
        0, or the exit status of the first step that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m sama_mega.commands.demo", description=__doc__)
    for stage in (0, 1):
        parser.add_argument(f"--stage{stage}-manifest", type=Path, help=f"manifest mixed into stage {stage}'s clips")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="recipe overrides for both stages")
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        _make_worlds()
        for stage, extra in enumerate((options.stage0_manifest, options.stage1_manifest)):
            recipe = f"recipes/demo_stage{stage}.yaml"
            _run_on_ranks(NUM_RANKS, "train", recipe, *_data(stage, extra), *options.overrides)
            _run("evaluate", STAGE_RUNS[stage], "synthetic", "--out", ROOT / f"scores_stage{stage}")
        _edit_a_held_out_clip()
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    _say_where_things_are(time.monotonic() - started)
    return 0


def _make_worlds() -> None:
    if not WORLD.is_dir():
        counts = ("--videos", WORLD_VIDEOS, "--images", WORLD_IMAGES, "--frames", FRAMES)
        _run("data", "synth", "--out", WORLD, *counts, "--seed", WORLD_SEED, "--workers", 2)
    if not HELD_OUT.is_dir():
        counts = ("--videos", 1, "--images", 0, "--frames", FRAMES)
        _run("data", "synth", "--out", HELD_OUT, *counts, "--seed", HELD_OUT_SEED, "--kind", "recolour")


def _data(stage: int, extra: Path | None) -> list[str]:
    if extra is None:
        return [f"data.manifest={STAGE_MANIFESTS[stage]}"]
    if not extra.is_file():
        raise UserError(f"--stage{stage}-manifest ({extra}) does not exist")
    blend = [{"manifest": str(manifest)} for manifest in (STAGE_MANIFESTS[stage], extra)]
    return [f"data.blend={json.dumps(blend, ensure_ascii=False)}"]  # JSON is YAML in which no path needs care


def _edit_a_held_out_clip() -> None:
    from sama_data.manifest import load_manifest

    row = load_manifest(HELD_OUT / "pairs.jsonl")[0]
    assert row.source is not None
    _run("edit", STAGE_RUNS[1], row.source.path, row.text, "--out", ROOT / "edit.mp4")


def _run(*arguments: object) -> None:
    _show_and_run("-m", "sama_mega", *arguments)


def _run_on_ranks(num_ranks: int, *arguments: object) -> None:
    """As ranks of torchrun: each takes half of every step's samples, on one core."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", num_ranks)
    _show_and_run(*torchrun, "-m", "sama_mega", *arguments)


def _show_and_run(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    # torchrun warns about the variable when it is not set; one thread a rank is what is wanted.
    subprocess.run([sys.executable, *words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _say_where_things_are(seconds: float) -> None:
    print(f"\nDone in {seconds / 60:.1f} minutes. Look at:")
    print(f"  {ROOT / 'edit.png'}: a held-out clip before and after its edit ({ROOT / 'edit.mp4'})")
    print(f"  {ROOT / 'scores_stage0'}, {ROOT / 'scores_stage1'}: one picture a task, and scores.json")
    print("  the runs' curves in MLflow: pip install mlflow, then")
    print("    mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
