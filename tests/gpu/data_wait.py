"""How much of a training step is spent waiting for data: a 2-layer model of the 14B's width, clips decoded online.

The video encoder is the built-in one, so that the step is the model's: data must keep up with that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sama_data.manifest import write_jsonl
from sama_mega.bench.clips import make_clips
from sama_mega.bench.results import describe_machine, write_results

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "wan14b_stage0.yaml"
LIMIT_SHARE = 0.02
# Until then the decoders start and the first steps' clips are read.
WARM_UP_STEPS = 4


def main(arguments: list[str] | None = None) -> int:
    """Trains a few steps and compares the wait with the step; returns 0 if it is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("."), help="where the figures go")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--size", type=int, nargs=2, default=(832, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--encoder", default="libx264")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("overrides", nargs="*", metavar="A.B=VALUE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sama-data-wait-") as name:
        folder = Path(name)
        rows = _write_clips(folder, options)
        status = _train(folder, rows, options)
        if status:
            return status
        steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return _report([step for step in steps if "data_wait_seconds" in step][WARM_UP_STEPS:], options.out)


def _write_clips(folder: Path, options: argparse.Namespace) -> Path:
    clips = make_clips(folder, options.encoder, 8, options.frames, *options.size)
    write_jsonl(
        [{"video": clip.path.name, "caption": f"Clip {number}."} for number, clip in enumerate(clips)],
        folder / "clips.jsonl",
    )
    return folder / "clips.jsonl"


def _train(folder: Path, manifest: Path, options: argparse.Namespace) -> int:
    overrides: dict[str, Any] = {
        "model.num_layers": 2,
        "parallel.tensor": 1,
        "parallel.sequence": False,
        "parallel.overlap_grad_reduce": False,
        "parallel.overlap_param_gather": False,
        "data.blend": [],
        "data.manifest": str(manifest),
        "data.images_per_step": 0,
        "data.videos_per_step": 1,
        "data.max_frames": options.frames,
        "data.buckets": [list(options.size)],
        "data.decoder": "dali",
        "data.decode_threads": 4,
        "data.decode_batch": 4,
        "encoders.video": "dct",
        "encoders.video_path": None,
        "encoders.text": "hash",
        "encoders.text_path": None,
        "encoders.semantic": "tiny",
        "encoders.semantic_path": None,
        "train.steps": options.steps,
        "train.run_folder": str(folder / "run"),
        "train.num_samples": 0,
        "checkpoint.every": 10 * options.steps,
        "checkpoint.init_from": None,
        "track.mlflow": False,
    }
    written = [f"{key}={json.dumps(value)}" for key, value in overrides.items()] + options.overrides
    return subprocess.run([sys.executable, "-m", "sama_mega", "train", str(RECIPE), *written]).returncode


def _report(steps: list[dict[str, Any]], out: Path) -> int:
    waits, lengths = ([step[key] for step in steps] for key in ("data_wait_seconds", "step_seconds"))
    share = sum(waits) / sum(lengths)
    figures = {
        "steps": len(steps),
        "step_seconds_median": median(lengths),
        "data_wait_seconds_median": median(waits),
        "data_wait_share": share,
        "limit_share": LIMIT_SHARE,
    }
    write_results(out, "data-wait", {"machine": describe_machine(torch.device("cuda")), **figures})
    print(f"data wait: {share:.2%} of {len(steps)} steps of {median(lengths):.3f} s (at most {LIMIT_SHARE:.0%})")
    return 0 if share <= LIMIT_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
