"""`sama-mega verify`: one training step in a layout against one rank, or the model against golden tensors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sama_mega.config import Recipe, load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.parallel.launch import launch_ranks
from sama_mega.parallel.layout import fewest_ranks, resolve_layout
from sama_mega.parallel.rank_environment import found_rank_count
from sama_mega.verify.recipe import verification_recipe

if TYPE_CHECKING:
    from sama_mega.parallel.runtime import ParallelContext
    from sama_mega.verify.report import Report

KERNELS = {
    "reference": {"ops": "reference", "attention": "reference"},
    "triton": {"ops": "triton", "attention": "triton"},
    "auto": {"ops": "auto", "attention": "auto"},
}


@dataclass(frozen=True)
class Degrees:
    """The layout that was asked for; None: the recipe's, or 1.

    Attributes:
        tensor, context, pipeline, data: `--tp`, `--cp`, `--pp`, `--dp`.
    """

    tensor: int | None = None
    context: int | None = None
    pipeline: int | None = None
    data: int | None = None

    def as_options(self) -> list[str]:
        """The options that say the same."""
        values = {"--tp": self.tensor, "--cp": self.context, "--pp": self.pipeline, "--dp": self.data}
        return [text for option, value in values.items() if value is not None for text in (option, str(value))]

    def given(self) -> dict[str, int]:
        """`parallel` keys and values of those that were asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


def run_golden(golden: Path, degrees: Degrees, kernels: str | None = None, as_json: bool = False) -> int:
    """Compares with a golden folder; starts its own ranks where it finds none and needs several.

    Args:
        golden: A folder like tests/golden/edit_tiny, or tests/golden/schedule.
        degrees: Sequence parallel is on when tensor is above 1.
        kernels: Which implementation of the fused operations and of attention; None: auto.
        as_json: Whether the last line is one JSON object.

    Returns:
        0 when every tensor is within its limit, else 1.

    Raises:
        ConfigError: The folder or the layout is wrong.
    """
    chosen = kernels or "auto"
    parallel = {"tensor": 1, "context": 1, "pipeline": 1, **degrees.given()}
    argv = ["--golden", str(golden), *degrees.as_options(), "--kernels", chosen, *(["--json"] if as_json else [])]
    if _needs_ranks(math.prod(parallel.values())):
        return launch_ranks(math.prod(parallel.values()), ["verify", *argv])
    # Imported here: launching ranks needs no torch.
    from sama_mega.verify.golden import check_model, check_schedule, golden_recipe, read_golden
    from sama_mega.verify.report import Report

    content, title = read_golden(golden), f"{golden}, kernels {chosen}"
    if content.schedule:
        return _tell(Report(tuple(check_schedule(content))), title, as_json)
    recipe = golden_recipe(content, parallel, KERNELS[chosen])
    return _on_these_ranks(recipe, title, as_json, lambda context: Report(tuple(check_model(content, recipe, context))))


def run_recipe(
    recipe: str | Path,
    overrides: Sequence[str],
    degrees: Degrees,
    num_layers: int | None = None,
    kernels: str | None = None,
    plant: str | None = None,
    as_json: bool = False,
) -> int:
    """Compares one step of a recipe's model in a layout with the same step on one rank.

    Args:
        recipe: Path of the YAML.
        overrides: `section.key=value` items.
        degrees: The layout.
        num_layers: Blocks to keep; None: all.
        kernels: As for `run_golden`; None: the recipe's.
        plant: A bug to plant.
        as_json: Whether the last line is one JSON object.

    Returns:
        0 when every tensor is within its limit, else 1.

    Raises:
        ConfigError: The recipe, the layout or the plant is wrong.
    """
    chosen = None if kernels is None else KERNELS[kernels]
    loaded = verification_recipe(load_recipe(recipe, overrides), degrees.given(), num_layers, chosen)
    if plant and loaded.lora.rank:
        raise ConfigError(
            f"--plant ({plant}) needs lora.rank=0, and it is {loaded.lora.rank}: what bugs break is written for whole"
            " training"
        )
    num_ranks = fewest_ranks(loaded)
    if _needs_ranks(num_ranks):
        resolve_layout(loaded, num_ranks)
        argv = [str(recipe), *overrides, *degrees.as_options()]
        argv += ["--layers", str(num_layers)] if num_layers else []
        argv += ["--kernels", kernels] if kernels else []
        argv += ["--plant", plant] if plant else []
        return launch_ranks(num_ranks, ["verify", *argv, *(["--json"] if as_json else [])])
    # Imported here: launching ranks needs no torch.
    from sama_mega.verify.layouts import check_layout

    title = f"{recipe}, {loaded.model.num_layers} layers" + (f", planted: {plant}" if plant else "")
    return _on_these_ranks(loaded, title, as_json, lambda context: check_layout(loaded, context, plant))


def list_plants(as_json: bool = False) -> int:
    """Prints the bugs that can be planted; returns 0."""
    from sama_mega.verify.plants import PLANTS

    for plant in PLANTS.values():
        print(f"{plant.name}: {plant.summary}; needs {plant.needs}")
    if as_json:
        names = ("name", "summary", "needs", "breaks", "spares")
        print(json.dumps({"plants": [{name: getattr(plant, name) for name in names} for plant in PLANTS.values()]}))
    return 0


def _needs_ranks(num_ranks: int) -> bool:
    return num_ranks > 1 and found_rank_count(os.environ) is None


def _on_these_ranks(recipe: Recipe, title: str, as_json: bool, check: Callable[[ParallelContext], Report]) -> int:
    from sama_mega.parallel.runtime import start_parallel, stop_parallel
    from sama_mega.parallel.torch_settings import apply_torch_settings

    apply_torch_settings(recipe)
    context = start_parallel(recipe)
    try:
        report = check(context)
        if context.is_first_rank:
            return _tell(report, f"{title}; {context.layout.describe()}", as_json)
        return 0 if report.ok else 1
    finally:
        stop_parallel()


def _tell(report: Report, title: str, as_json: bool) -> int:
    report.show(title)
    if as_json:
        print(json.dumps(report.to_json()))
    return 0 if report.ok else 1
