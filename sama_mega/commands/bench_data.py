"""`sama-mega bench data`: how fast clips are decoded, fitted and perturbed, and by what."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from sama_data.buckets import cut_length
from sama_data.readers import has_dali
from sama_mega.bench.clips import BenchClip, find_clips, make_clips
from sama_mega.bench.decoding import DALI, PYAV, Parity, Timing, check_parity, time_ways
from sama_mega.bench.results import describe_machine, num_cores, require_writable, write_results
from sama_mega.commands.tables import plain_table
from sama_mega.config.errors import ConfigError
from sama_mega.observe.sampling import sampling_progress

_LOG_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured.

    Attributes:
        clips: A folder of clips; None makes some.
        frames: Frames of a clip.
        batches: Clips of a batch.
        size: Of clips that are made, "WxH".
        bucket: What the loader brings them to, None: their own size.
        repeats: Repetitions.
    """

    clips: Path | None
    frames: tuple[int, ...]
    batches: tuple[int, ...]
    size: str
    bucket: str | None
    repeats: int


def run(options: Options, results: Path, as_json: bool = False) -> int:
    """Compare and time, and print both.

    Returns:
        0, or 1 where frames differ by more than they may.

    Raises:
        ConfigError: An option is wrong, or DALI is not installed.
        DataError: The folder has no clip that is long enough.
    """
    if as_json:
        require_writable(results)
    if not has_dali():
        raise ConfigError("bench data needs DALI, which is not installed: pip install 'sama-mega[dali]'")
    for num_frames in options.frames:
        if cut_length(num_frames) != num_frames:
            raise ConfigError(f"--frames {num_frames} must be 4k+1, as clips in training are: 49 or 81")
    if options.clips is not None and not options.clips.is_dir():
        raise ConfigError(f"--clips {options.clips} is not a folder")
    size, bucket = _size("--size", options.size), None if options.bucket is None else _size("--bucket", options.bucket)
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    timings: list[Timing] = []
    with tempfile.TemporaryDirectory(prefix="sama-bench-") as folder:
        lengths = [_clips(options, Path(folder), num_frames, size, device) for num_frames in options.frames]
        parity = [one for clips in lengths for one in check_parity(clips, device)]
        passed = all(one.passed for one in parity)
        if passed:
            timings = _time(options, lengths, bucket, device)
    _show(parity, timings, as_json)
    if as_json:
        machine = describe_machine(torch.device("cpu" if device is None else f"cuda:{device}"))
        report = {"machine": machine, **_figures(parity, timings)}
        path = write_results(results, "data", report)
        print(json.dumps(report | {"file": str(path)}))
    return 0 if passed else 1


def _clips(
    options: Options, folder: Path, num_frames: int, size: tuple[int, int], device: int | None
) -> list[BenchClip]:
    count = max(options.batches)
    if options.clips is None:
        encoder = "libvpx-vp9" if device is None else "libx264"
        return make_clips(folder, encoder, count, num_frames, *size)
    found = find_clips(options.clips, num_frames)
    return (found * count)[:count]


def _time(
    options: Options, lengths: Sequence[Sequence[BenchClip]], bucket: tuple[int, int] | None, device: int | None
) -> list[Timing]:
    timings: list[Timing] = []
    done = 0
    with sampling_progress(len(lengths) * len(options.batches) * options.repeats, "repetitions") as show:

        def step() -> None:
            nonlocal done
            done += 1
            show(done)

        for clips in lengths:
            fit = bucket or (clips[0].width, clips[0].height)
            for batch in options.batches:
                timings += time_ways(clips, batch, num_cores(), device, fit, options.repeats, step)
    return timings


def _size(option: str, text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    sides = [int(side) for side in (width, height) if side.isdigit()]
    if len(sides) < 2 or min(sides) < 16 or any(side % 2 for side in sides):
        raise ConfigError(f"{option} {text} must be WIDTHxHEIGHT, each at least 16 and even: 832x480")
    return sides[0], sides[1]


def _figures(parity: Sequence[Parity], timings: Sequence[Timing]) -> dict[str, Any]:
    return {
        "parity": [asdict(one) for one in parity],
        "timings": [asdict(one) | _speed(one, timings) for one in timings],
    }


def _speed(one: Timing, timings: Sequence[Timing]) -> dict[str, float]:
    if not one.seconds:
        return {}
    others = {other.way: other for other in timings if (other.num_frames, other.batch) == (one.num_frames, one.batch)}
    return {
        "clips_per_second_median": one.clips_per_second(median),
        "clips_per_second_best": one.clips_per_second(min),
        "frames_per_second_median": one.clips_per_second(median) * one.num_frames,
        "frames_per_second_best": one.clips_per_second(min) * one.num_frames,
        "relative_to_pyav": one.relative_to(others[PYAV]),
        "relative_to_dali": one.relative_to(others[DALI]),
    }


def _show(parity: Sequence[Parity], timings: Sequence[Timing], as_json: bool) -> None:
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = _LOG_WIDTH
    table = plain_table("DALI's frames against PyAV's, in levels", "what", "largest|n", "mean|n", "")
    for level in parity:
        table.add_row(level.what, str(level.largest), f"{level.mean:.3f}", "ok" if level.passed else "TOO FAR")
    console.print(table)
    if not timings:
        console.print("no speed is measured: the frames differ by more than they may")
        return
    title = f"Decoding on {num_cores()} cores" + (
        f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    )
    columns = (
        "way",
        "frames|n",
        "batch|n",
        "clips/s: median|n",
        "best|n",
        "frames/s: median|n",
        "best|n",
        "to PyAV|n",
        "to DALI|n",
    )
    table = plain_table(title, *columns)
    for one in timings:
        shown = ["not installed", *[""] * 5]
        if one.seconds:
            clips, best_clips, frames, best_frames, *relative = _speed(one, timings).values()
            shown = [f"{clips:.1f}", f"{best_clips:.1f}", f"{frames:,.0f}", f"{best_frames:,.0f}"]
            shown += [f"{share:.2f}x" for share in relative]
        table.add_row(one.way, str(one.num_frames), str(one.batch), *shown)
    console.print(table)
