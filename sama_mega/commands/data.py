"""`sama-mega data`: makes datasets. `synth` writes the synthetic editing world, `ingest` a dataset's manifest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.ingest.registry import SETS
from sama_data.ingest.run import Summary, ingest
from sama_data.synth import WorldSpec
from sama_data.synth.write import write_world

_SIZE_MULTIPLE = 16  # a latent is 8x8 pixels, a patch 2x2 latents
_LOG_LINES = 10


def run_synth(
    out: Path,
    num_videos: int,
    num_images: int,
    seed: int,
    workers: int = 1,
    size: int = 64,
    frames: int = 17,
    kinds: Sequence[str] | None = None,
    as_json: bool = False,
    masks: bool = False,
) -> int:
    """Write the synthetic editing world: clips, pictures, `pairs.jsonl` and `raw.jsonl`.

    Args:
        out: Folder to make; it must not exist, or be empty.
        num_videos: Video pairs.
        num_images: Image pairs.
        seed: Of the world; different seeds share no scene.
        workers: Processes that render and encode.
        size: Height and width, pixels.
        frames: Frames of a clip, 4k+1.
        kinds: Kinds of edit, taken in turn; None draws all of them by the world's weights.
        as_json: Whether the last line of stdout is one JSON object.
        masks: Whether to write the edited regions too, for evaluation.

    Returns:
        Exit status 0.

    Raises:
        DataError: `out` holds something or cannot be written, or a value is out of range.
    """
    if size < 2 * _SIZE_MULTIPLE or size % _SIZE_MULTIPLE:
        raise DataError(f"size ({size}) must be a multiple of {_SIZE_MULTIPLE}, at least {2 * _SIZE_MULTIPLE}: use 64")
    spec = WorldSpec(num_frames=frames, height=size, width=size)
    started = time.monotonic()
    with _progress("pairs") as report:
        summary = write_world(
            out, num_videos, num_images, seed, workers, spec, tuple(kinds) if kinds else None, masks, report
        )
    seconds = time.monotonic() - started
    print(f"{summary.num_videos} video pairs and {summary.num_images} image pairs in {out} ({seconds:.1f} s)")
    print("  " + ", ".join(f"{kind} {count}" for kind, count in summary.kinds.items()))
    if as_json:
        values = {
            "out": str(out),
            "videos": summary.num_videos,
            "images": summary.num_images,
            "kinds": summary.kinds,
            "seconds": round(seconds, 3),
        }
        print(json.dumps(values))
    return 0


def run_ingest(
    name: str | None,
    source: Path | None,
    out: Path | None,
    media: Path | None = None,
    limit: int | None = None,
    workers: int | None = None,
    keep_missing: bool = False,
    as_json: bool = False,
) -> int:
    """Write the manifest of a dataset that was downloaded, or of a user's own list of clips.

    Args:
        name: One of the sets of `list_sets`.
        source: The dataset's folder, or the file that lists its rows.
        out: The manifest, `.parquet` or `.jsonl`.
        media: The folder with the clips, where it is not the source.
        limit: Rows to write at most.
        workers: Files read at the same time; None chooses.
        keep_missing: Whether rows are written whose clips are not there.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        DataError: An argument is missing, the source is not laid out as the set's, or no row can be kept.
    """
    if name is None or source is None or out is None:
        raise DataError("data ingest needs SET, SRC and --out MANIFEST; data ingest --list shows the sets")
    with _progress("ingest", in_percent=True) as report:
        summary = ingest(name, source, out, media, limit, keep_missing, workers, report)
    _print_summary(summary)
    if as_json:
        print(json.dumps(_summary_values(summary), ensure_ascii=False))
    return 0


def list_sets(as_json: bool) -> int:
    """Show the sets that can be ingested; returns exit status 0."""
    rows = [
        {"set": known.name, "hub_id": known.hub_id, "licence": known.licence, "layout": known.layout} for known in SETS
    ]
    name_width, hub_width, licence_width = (
        max(len(str(row[key] or "-")) for row in rows) for key in ("set", "hub_id", "licence")
    )
    for row in rows:
        name, hub_id, licence, layout = (str(value or "-") for value in row.values())
        print(f"{name:{name_width}}  {hub_id:{hub_width}}  {licence:{licence_width}}  {layout}")
    if as_json:
        print(json.dumps({"sets": rows}))
    return 0


def _print_summary(summary: Summary) -> None:
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in sorted(summary.kinds.items(), reverse=True))
    print(f"{summary.rows:,} rows ({kinds}) in {summary.out} ({summary.seconds:.1f} s)")
    if summary.skipped:
        print(f"left out {sum(summary.skipped.values()):,} of {summary.rows + sum(summary.skipped.values()):,}:")
    for reason, count in summary.skipped.items():
        print(f"  {count:,}  {reason} (first: {summary.examples[reason][0]})")
    if summary.hint:
        print(summary.hint)


def _summary_values(summary: Summary) -> dict[str, Any]:
    skipped = sum(summary.skipped.values())
    return {
        "set": summary.name,
        "out": str(summary.out),
        "rows_read": summary.rows + skipped,
        "rows": summary.rows,
        "images": summary.kinds.get("image", 0),
        "videos": summary.kinds.get("video", 0),
        "left_out": skipped,
        "reasons": summary.skipped,
        "examples": summary.examples,
        "hint": summary.hint,
        "seconds": round(summary.seconds, 3),
    }


@contextmanager
def _progress(what: str, in_percent: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (done, total): a bar with the time left on a terminal, a line every tenth in a log."""
    if not sys.stderr.isatty():
        yield _log_tenths(what, in_percent)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    number = TextColumn("{task.percentage:.0f}%") if in_percent else MofNCompleteColumn()
    columns = (TextColumn(what), BarColumn(), number, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_tenths(what: str, in_percent: bool) -> Callable[[int, int], None]:
    """Returns a callback that prints a line to stderr at every tenth of the way."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if done * _LOG_LINES // total > shown:
            shown = done * _LOG_LINES // total
            number = f"{100 * done // total}%" if in_percent else f"{done}/{total}"
            print(f"{what} {number}", file=sys.stderr, flush=True)

    return report
