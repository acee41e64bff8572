"""A study's curves and intervals as PNG files. Needs matplotlib, which comes with the extra `ui`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sama_mega.ablation.measures import EDIT_MEASURES, Comparison, Scores
from sama_mega.ablation.study import STAGES, Chain, Study

LOSSES, CURVES, DIFFERENCES = "training_losses.png", "held_out_curves.png", "differences.png"
_COLOURS = ("#555555", "#1f77b4", "#d95f02", "#1b9e77", "#9467bd")
_SMOOTHING_STEPS = 100
_SHOWN_STEPS = 200
_DPI = 110


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_training_losses(study: Study, path: Path) -> None:
    """Flow-matching loss of each task over the steps of both stages: mean over seeds, smoothed.

    Args:
        study: Its runs are finished.
        path: The PNG.
    """
    panels = [(0, task) for task in ("edit", "none", "cube", "speed", "tube")] + [(1, "edit")]
    figure, axes = _panels(2, 3, 11, 6)
    losses = {
        (stage, variant.name): [
            _losses_by_task(Chain(study, variant, seed).run_folder(stage)) for seed in range(study.num_seeds)
        ]
        for stage in STAGES
        for variant in study.variants
    }
    for axis, (stage, task) in zip(axes, panels, strict=True):
        for variant, colour in zip(study.variants, _COLOURS, strict=False):
            seeds = [_smoothed(one.get(task, {})) for one in losses[stage, variant.name]]
            if all(len(values) for _, values in seeds):
                steps = seeds[0][0]
                mean = np.mean([np.interp(steps, *one) for one in seeds], axis=0)
                axis.plot(steps, mean, color=colour, label=variant.label, linewidth=1.3)
        what = {"edit": "image edits" if stage == 0 else "video and image edits", "none": "raw clips, unperturbed"}
        axis.set_title(f"stage {stage}: {what.get(task, task)}", fontsize=10)
        axis.set_yscale("log")
        axis.set_xlabel("step")
    axes[0].set_ylabel("flow-matching loss")
    _finish(figure, axes, path)


def draw_held_out_curves(
    results: Mapping[str, Sequence[Scores]], labels: Mapping[str, str], path: Path, num_clips: int
) -> None:
    """Held-out edits over stage 1's steps; step 0 is stage 0's zero-shot edits.

    Args:
        results: By variant, the scores of each seed.
        labels: Of the variants.
        path: The PNG.
        num_clips: Clips of each kind in the curve: so many of the zero-shot ones count too.
    """
    figure, axes = _panels(1, len(EDIT_MEASURES), 13, 3.6)
    for axis, measure in zip(axes, EDIT_MEASURES, strict=True):
        for (name, seeds), colour in zip(results.items(), _COLOURS, strict=False):
            rows = []
            for scores in seeds:
                first = {
                    kind: {metric: values[:num_clips] for metric, values in rows.items()}
                    for kind, rows in scores["zero_shot"].items()
                }
                points = [(0, first), *((point["step"], point["edits"]) for point in scores["curve"])]
                rows.append([(step, float(np.nanmean(measure.read(edits)[0]))) for step, edits in points])
            table = np.array(rows)
            steps, values = table[0, :, 0], table[:, :, 1]
            axis.plot(steps, values.mean(axis=0), "o-", color=colour, label=labels[name], markersize=3, linewidth=1.3)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
        axis.set_title(f"{measure.label}, {measure.unit}", fontsize=10)
        axis.set_xlabel("step of stage 1")
    _finish(figure, axes, path)


def draw_differences(comparisons: Sequence[Comparison], labels: Mapping[str, str], path: Path) -> None:
    """Differences between variants with their intervals; a short stroke a seed.

    Args:
        comparisons: From `measures.compare`.
        labels: Of the variants.
        path: The PNG.
    """
    columns = max(len(one.group.measures) for one in comparisons)
    figure, axes = _panels(len(comparisons), columns, 3.3 * columns, 2.6 * len(comparisons))
    for place, axis in enumerate(axes):
        one, column = comparisons[place // columns], place % columns
        if column >= len(one.group.measures):
            axis.set_visible(False)
            continue
        measure = one.group.measures[column]
        names = list(one.means)
        pairs = one.differences[::-1]
        for height, pair in enumerate(pairs):
            interval, colour = pair.intervals[column], _COLOURS[names.index(pair.name)]
            axis.plot([interval.low, interval.high], [height, height], color=colour, linewidth=2.2)
            axis.plot([interval.mean], [height], "o", color=colour, markersize=6)
            axis.plot(interval.by_seed, [height] * len(interval.by_seed), "|", color="#222222", markersize=8)
        axis.axvline(0, color="#999999", linewidth=0.8)
        first = [f"{labels[pair.name]}\nagainst {labels[pair.against]}" for pair in pairs]
        axis.set_yticks(range(len(pairs)), first if column == 0 else [""] * len(pairs), fontsize=7)
        axis.set_ylim(-0.6, len(pairs) - 0.4)
        axis.set_title(f"{_short(one)}: {measure.label}, {measure.unit}", fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
    figure.savefig(path, dpi=_DPI)


def _short(one: Comparison) -> str:
    return {"edits": "stage 1", "zero_shot": "zero-shot", "restored": "restored"}[one.group.section]


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).flat)


def _finish(figure: Any, axes: Sequence[Any], path: Path) -> None:
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    # The last panel has every variant, whatever tasks they train on.
    handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=9, frameon=False)
    figure.savefig(path, dpi=_DPI)


def _losses_by_task(run_folder: Path) -> dict[str, dict[int, float]]:
    """By task, the loss at each step that had one."""
    losses: dict[str, dict[int, float]] = {}
    with (run_folder / "metrics.jsonl").open() as file:
        for line in file:
            row = json.loads(line)
            for task, loss in row["losses_by_task"].items():
                if loss is not None:
                    losses.setdefault(task, {})[row["step"]] = loss
    return losses


def _smoothed(losses: Mapping[int, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A moving mean over the last steps that had the task, thinned to what a picture shows."""
    steps, values = np.array(list(losses), np.float64), np.array(list(losses.values()), np.float64)
    window = min(_SMOOTHING_STEPS, len(values))
    if window == 0:
        return steps, values
    means = np.convolve(values, np.full(window, 1 / window), mode="valid")
    every = max(1, len(means) // _SHOWN_STEPS)
    return steps[window - 1 :][::every], means[::every]
