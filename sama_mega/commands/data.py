"""`sama-mega data`: makes datasets. `synth` writes the synthetic editing world."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sama_data.errors import DataError
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
    with _progress() as report:
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


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Yields a callback (done, total): a bar with the time left on a terminal, a line every tenth in a log."""
    if not sys.stderr.isatty():
        yield _log_tenths()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("pairs")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _log_tenths() -> Callable[[int, int], None]:
    """Returns a callback that prints a line to stderr at every tenth of the way."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if done * _LOG_LINES // total > shown:
            shown = done * _LOG_LINES // total
            print(f"pairs {done}/{total}", file=sys.stderr, flush=True)

    return report
