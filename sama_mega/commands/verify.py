"""`sama-mega verify`: holds the model that `train` builds against golden tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.launch import launch_ranks
from sama_mega.parallel.rank_environment import found_rank_count

KERNELS = {
    "reference": {"ops": "reference", "attention": "reference"},
    "triton": {"ops": "triton", "attention": "triton"},
    "auto": {"ops": "auto", "attention": "auto"},
}


def run(
    golden: Path,
    tensor: int = 1,
    context: int = 1,
    pipeline: int = 1,
    kernels: str = "auto",
    as_json: bool = False,
) -> int:
    """Compares with a golden folder; starts its own ranks where it finds one and needs more.

    Args:
        golden: A folder like tests/golden/edit_tiny, or tests/golden/schedule.
        tensor: Tensor-parallel ranks; sequence parallel is on above 1.
        context: Context-parallel ranks.
        pipeline: Pipeline stages.
        kernels: Which implementation of the fused operations and of attention.
        as_json: Whether the last line is one JSON object.

    Returns:
        0 when every tensor is within its limit, else 1.

    Raises:
        ConfigError: The folder or the layout is wrong.
    """
    num_ranks = tensor * context * pipeline
    if num_ranks > 1 and found_rank_count(os.environ) is None:
        argv = ["verify", "--golden", str(golden), "--tp", str(tensor), "--cp", str(context)]
        argv += ["--pp", str(pipeline), "--kernels", kernels, *(["--json"] if as_json else [])]
        return launch_ranks(num_ranks, argv)
    return _compare(golden, {"tensor": tensor, "context": context, "pipeline": pipeline}, kernels, as_json)


def _compare(folder: Path, parallel: dict[str, int], kernels: str, as_json: bool) -> int:
    # Imported here: launching ranks needs no torch.
    from sama_mega.parallel.runtime import start_parallel, stop_parallel
    from sama_mega.verify.golden import check_model, check_schedule, golden_recipe, read_golden
    from sama_mega.verify.report import Report

    golden = read_golden(folder)
    if golden.schedule:
        report, is_first = Report(tuple(check_schedule(golden))), True
    else:
        recipe = golden_recipe(golden, parallel, KERNELS[kernels])
        running = start_parallel(recipe)
        try:
            if running.layout.data > 1:
                raise ConfigError(
                    f"verify --golden: {running.world_size} ranks found, {running.layout.model_parallel_size} needed:"
                    " start as many as tp x cp x pp"
                )
            report, is_first = Report(tuple(check_model(golden, recipe, running))), running.is_first_rank
        finally:
            stop_parallel()
    if is_first:
        degrees = ", ".join(f"{name} {degree}" for name, degree in parallel.items())
        report.show(f"{folder} ({degrees}, kernels {kernels})")
        if as_json:
            print(json.dumps(report.to_json()))
    return 0 if report.ok else 1
