"""What `sama-mega check --scaling` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from sama_mega.commands.tables import plain_table
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import Layout
from sama_mega.planner.foot_guns import Cluster
from sama_mega.planner.layouts import best_layout
from sama_mega.planner.rank_time import PARTS
from sama_mega.planner.scaling import GPU_COUNTS, ScalingRow, scaling_assumptions, simulate_scaling
from sama_mega.planner.step_time import three_digits

_WIDTH = 165
_SHOWN_SHARE = 0.05


def print_scaling(recipe: Recipe, cluster: Cluster, gpu_counts: Sequence[int] = GPU_COUNTS) -> dict[str, Any]:
    """Simulates a recipe's scaling, in the fastest layout that fits each number of GPUs; prints tables and assumptions.

    Args:
        recipe: The recipe.
        cluster: Its GPUs.
        gpu_counts: Ascending.

    Returns:
        The same for `--json`.
    """
    gpu, gpus_per_node = cluster.gpu, cluster.gpus_per_node

    def fastest(wanted: Recipe, num_gpus: int) -> tuple[Recipe, Layout]:
        best = best_layout(wanted, num_gpus, gpu, gpus_per_node, cluster.limit_gib)
        if best is None:
            raise ConfigError(f"no layout fits {cluster.limit_gib:g} GiB")
        return best.recipe, best.layout

    rows = simulate_scaling(recipe, gpu, gpus_per_node, gpu_counts, fastest)
    assumptions = scaling_assumptions(gpu, recipe.train.precision)
    console = Console() if Console().is_terminal else Console(width=_WIDTH)
    titles = {"strong": "the recipe's batch on more GPUs", "weak": "a batch that grows with the GPUs"}
    for mode, title in titles.items():
        table = plain_table(
            f"simulated, {title} ({gpu.match}, {gpus_per_node} a node)",
            *(
                "GPUs|n",
                "layout",
                "recompute",
                "samples|n",
                "s/step|n",
                "tokens/s|n",
                "MFU|n",
                "efficiency|n",
                "where the time goes",
            ),
        )
        for row in rows:
            if row.mode == mode:
                table.add_row(*_cells(row))
        console.print(table)
    for number, line in enumerate(assumptions, start=1):
        print(f"assumption {number}: {line}")
    return {"rows": [row.as_json() for row in rows], "assumptions": assumptions}


def _cells(row: ScalingRow) -> list[str]:
    start = [
        f"{row.num_gpus:,}",
        "-" if row.layout is None else _degrees(row.layout),
        row.recompute or "-",
        f"{row.num_samples:,}",
    ]
    if row.time is None or row.efficiency is None:
        return [*start, "-", "-", "-", "-", row.problem or ""]
    time = row.time
    largest = sorted(time.parts.items(), key=lambda part: -part[1])
    shares = [
        f"{PARTS[name]} {seconds / time.seconds:.0%}"
        for name, seconds in largest
        if seconds > _SHOWN_SHARE * time.seconds
    ]
    return [
        *start,
        three_digits(time.seconds),
        f"{time.tokens_per_second:,.0f}",
        "-" if time.mfu is None else f"{time.mfu:.0%}",
        f"{row.efficiency:.0%}",
        ", ".join(shares[:3]),
    ]


def _degrees(layout: Layout) -> str:
    return f"tp {layout.tensor} cp {layout.context} pp {layout.pipeline} dp {layout.data}"
