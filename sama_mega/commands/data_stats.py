"""`sama-mega data stats`: what a recipe's steps are made of and how evenly they are dealt. Decodes nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sama_data.dataset import Dataset
from sama_data.paper_mixture import ROWS_PER_ROW, make_paper_mixture
from sama_data.stats import Group, Stats, collect_stats
from sama_mega.commands.recipe_manifests import open_manifests
from sama_mega.commands.tables import plain_table
from sama_mega.config import Recipe, load_recipe
from sama_mega.observe.sampling import sampling_progress
from sama_mega.train.loader_settings import loader_settings

_LOG_WIDTH = 110
_MOST_TASKS = 30


def run(
    recipe: str | Path,
    overrides: Sequence[str],
    ranks: Sequence[int],
    steps: int,
    paper_mixture: bool = False,
    as_json: bool = False,
) -> int:
    """Count a recipe's rows, simulate its first steps, and print both.

    Args:
        recipe: Path of the YAML.
        overrides: `section.key=value` items.
        ranks: Numbers of data-parallel ranks to deal to.
        steps: Steps to simulate.
        paper_mixture: Whether to take a stand-in for the paper's datasets instead of the recipe's manifests.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The recipe is wrong, or none of its manifests exists.
        DataError: A manifest cannot be used.
    """
    loaded = load_recipe(recipe, overrides)
    with _dataset(loaded, paper_mixture) as (dataset, missing), sampling_progress(steps, "steps") as show:
        stats = collect_stats(
            dataset,
            loader_settings(loaded),
            loaded.train.steps,
            ranks,
            steps,
            ROWS_PER_ROW if paper_mixture else 1,
            lambda done, _: show(done),
        )
    if paper_mixture:  # its manifests are gone by now
        stats = replace(stats, shares=[replace(share, manifest=Path(share.manifest).stem) for share in stats.shares])
    _print(stats, paper_mixture, missing)
    if as_json:
        print(json.dumps({"paper_mixture": paper_mixture, "missing": missing} | asdict(stats)))
    return 0


@contextmanager
def _dataset(recipe: Recipe, paper_mixture: bool) -> Iterator[tuple[Dataset, list[str]]]:
    """The rows to look at, and the manifests that are missing."""
    if not paper_mixture:
        yield open_manifests(recipe, ", or add --paper-mixture")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield make_paper_mixture(recipe.train.stage, Path(folder)), []


def _print(stats: Stats, paper_mixture: bool, missing: Sequence[str]) -> None:
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(markup=False, highlight=False, width=_LOG_WIDTH)
    if paper_mixture:
        console.print("A stand-in for the paper's datasets: counts are theirs, sizes and lengths are made up.")
    for table in (_datasets(stats), _tasks(stats), _shares(stats), _buckets(stats), _frames(stats), _imbalance(stats)):
        console.print(table)
    for line in _notes(stats, missing):
        console.print(line)


def _datasets(stats: Stats) -> Table:
    total = sum(group.rows for group in stats.groups)
    table = plain_table("Rows", "dataset", "kind", "licence", "rows|n", "share|n")
    for (dataset, kind, licence), rows in _summed(stats.groups, "dataset", "kind", "licence"):
        table.add_row(dataset, kind, licence, f"{rows:,}", f"{rows / total:.1%}")
    table.add_row("all", "", "", f"{total:,}", "")
    return table


def _tasks(stats: Stats) -> Table:
    summed = _summed(stats.groups, "dataset", "task")
    more = len(summed) - _MOST_TASKS
    table = plain_table(
        "Kinds of edit" + (f": the {_MOST_TASKS} most frequent" if more > 0 else ""), "dataset", "task", "rows|n"
    )
    for (dataset, task), rows in summed[:_MOST_TASKS]:
        table.add_row(dataset, task, f"{rows:,}")
    return table


def _summed(groups: Sequence[Group], *names: str) -> list[tuple[tuple[str, ...], int]]:
    """Rows by some of the groups' attributes, most first."""
    rows: dict[tuple[str, ...], int] = {}
    for group in groups:
        key = tuple(str(getattr(group, name) or "-") for name in names)
        rows[key] = rows.get(key, 0) + group.rows
    return sorted(rows.items(), key=lambda item: (-item[1], item[0]))


def _shares(stats: Stats) -> Table:
    title = f"Draws: {stats.images_per_step} images and {stats.videos_per_step} videos a step"
    table = plain_table(
        title, "manifest", "kind", "weight|n", "rows|n", "an epoch|n", "a step|n", "passes of the run|n"
    )
    for share in stats.shares:
        table.add_row(
            Path(share.manifest).name,
            share.kind,
            f"{share.weight:g}",
            f"{share.rows:,}",
            f"{share.per_epoch:,}",
            f"{share.per_step:.1f}",
            _passes(share.passes),
        )
    return table


def _buckets(stats: Stats) -> Table:
    table = plain_table("Buckets", "bucket", "images|n", "videos|n")
    for bucket, counts in stats.buckets.items():
        if any(counts.values()):
            table.add_row(bucket, f"{counts['image']:,}", f"{counts['video']:,}")
    return table


def _frames(stats: Stats) -> Table:
    table = plain_table("Frames of videos", "frames|n", "videos|n")
    for frames, count in stats.frames.items():
        table.add_row(str(frames), f"{count:,}")
    return table


def _imbalance(stats: Stats) -> Table:
    title = f"Slowest rank's predicted time over the mean, of {stats.simulated_steps} steps"
    names = ("data ranks|n", "p50|n", "p95|n", "max|n", "least possible p50|n", "max|n")
    table = plain_table(title, *names, "micro-batches a step|n", "ragged|n", "idle ranks|n")
    for one in stats.imbalance:
        numbers = (one.slowest.p50, one.slowest.p95, one.slowest.max, one.least_possible.p50, one.least_possible.max)
        table.add_row(
            str(one.ranks),
            *(f"{number:.3f}" for number in numbers),
            f"{one.micro_batches:.1f}",
            f"{one.ragged_share:.0%}",
            f"{one.idle_ranks:.1f}",
        )
    return table


def _passes(number: float) -> str:
    """Three digits, but none in powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _notes(stats: Stats, missing: Sequence[str]) -> Iterator[str]:
    tokens = stats.tokens_per_step
    yield f"tokens     a step: {tokens.p50:,.0f} (half of the steps), at most {tokens.max:,.0f}"
    epochs = ", ".join(f"{_passes(count)} of the {kind}s" for kind, count in stats.epochs.items())
    yield f"epochs     in {stats.train_steps:,} steps: {epochs}"
    if stats.unknown_sizes:
        yield f"unknown    sizes of {stats.unknown_sizes:,} rows count as the first bucket: data probe measures them"
    if stats.unknown_lengths:
        yield f"unknown    lengths of {stats.unknown_lengths:,} videos count as the longest: data probe measures them"
    if missing:
        yield f"missing    {len(missing)} manifests: all shares are of those that exist"
