"""Profiles a small model's steps on a GPU and says what its table lacks: a step of `make gpu-check`.

Exit status: 0 the table is whole; 1 it is not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from sama_data.synth import WorldSpec
from sama_data.synth.write import write_world
from sama_mega.__main__ import main as command_line

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE, FRAMES = 128, 17
OVERRIDES = (
    "model.dim=1536",
    "model.num_heads=12",
    "model.ffn_dim=8960",
    "train.precision=bfloat16",
    "train.recompute=selective",
    "data.buckets=[[128, 128]]",
    f"data.max_frames={FRAMES}",
)
GROUPS = ("gemm", "attention forward", "attention backward", "norms and modulation", "q/k norm and rope", "optimizer")


def main(arguments: list[str] | None = None) -> int:
    """Runs it; see above for what it returns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the profile goes")
    out = parser.parse_args(arguments).out / "profile"
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        write_world(world, 8, 8, seed=5, spec=WorldSpec(num_frames=FRAMES, height=SIZE, width=SIZE, fps=16))
        items = [*OVERRIDES, f"data.manifest={world / 'pairs.jsonl'}"]
        recipe = str(REPOSITORY / "recipes/demo_stage1.yaml")
        try:
            command_line(["profile", recipe, *items, "--steps", "3", "--memory", "--out", str(out)])
        except SystemExit as ended:
            if ended.code:
                return 1
    wrong = problems(json.loads((out / "profile.json").read_text()))
    for problem in wrong:
        print(f"profile: {problem}", file=sys.stderr)
    return int(bool(wrong))


def problems(report: dict[str, Any]) -> list[str]:
    """What a profile on a GPU should have and this one has not."""
    groups = {group["group"]: group for group in report["groups"]}
    wrong = [f"no kernels of {name}" for name in GROUPS if name not in groups]
    wrong += [f"{name}: no share of the roof" for name in GROUPS if not groups.get(name, {}).get("roof_share")]
    if report["times_of"] != "device kernels":
        wrong.append(f"times of {report['times_of']}")
    unknown = groups.get("other", {"share": 0.0})["share"]
    if unknown > 0.1:
        names = [kernel["name"] for kernel in report["kernels"] if kernel["group"] == "other"]
        wrong.append(f"{100 * unknown:.0f} % of the step is in no group: {names}")
    if report["memory_snapshot"] is None or not Path(report["memory_snapshot"]).stat().st_size:
        wrong.append("no memory snapshot")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
