"""Compares ways to decode clips: parity first, then frames a second, in rounds in which each has its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np

from sama_data.buckets import cover
from sama_data.decode import decode_frames
from sama_data.graph.frames import on_host
from sama_data.media import Media
from sama_mega.bench.clips import BenchClip
from sama_mega.bench.decoders import Decoder, bare_dali, dali_frames, has_opencv, loader_dali, opencv, pyav

# Largest and mean difference in levels between DALI's decoding and PyAV's, at the clips' own size. On the CPU both have
# swscale convert the same planes; on the GPU chroma is interpolated and rounded otherwise.
LIMITS = {"cpu": (0, 0.0), "gpu": (3, 0.5)}
# Mean difference when both scale: another bicubic kernel, and RGB is scaled instead of luma and chroma.
SCALED_LIMIT = 1.0
_SCALED_TO = 0.75
PYAV, DALI = "pyav, bare", "dali, bare"


@dataclass(frozen=True, slots=True)
class Parity:
    """How far DALI's frames are from PyAV's.

    Attributes:
        what: What was compared.
        largest: Levels.
        mean: Levels.
        passed: Whether both are within their limits.
    """

    what: str
    largest: int
    mean: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast one way is.

    Attributes:
        way: Its name.
        num_frames: Of a clip.
        batch: Clips of a batch.
        clips: Decoded in each repetition.
        seconds: Of each repetition, in order; none where it is not installed.
    """

    way: str
    num_frames: int
    batch: int
    clips: int
    seconds: tuple[float, ...]

    def clips_per_second(self, choose: Callable[[Sequence[float]], float]) -> float:
        """At the median or the least of the repetitions' times."""
        return self.clips / choose(self.seconds)

    def relative_to(self, other: Timing) -> float:
        """The other's least time over this one's, the noise of a shared machine being one-sided."""
        return min(other.seconds) / min(self.seconds)


def check_parity(clips: Sequence[BenchClip], device: int | None) -> list[Parity]:
    """Compares the frames of the first clip of each length, at its own size and scaled down."""
    firsts = {clip.num_frames: clip for clip in reversed(clips)}
    return [one for clip in firsts.values() for one in _compare(clip, device)]


def _compare(clip: BenchClip, device: int | None) -> list[Parity]:
    largest_allowed, mean_allowed = LIMITS["cpu" if device is None else "gpu"]
    smaller = (int(clip.width * _SCALED_TO) // 2 * 2, int(clip.height * _SCALED_TO) // 2 * 2)
    fit = cover(clip.width, clip.height, smaller)
    found = []
    for what, geometry in (("own size", None), (f"scaled to {smaller[0]}x{smaller[1]}", fit)):
        choose = None if geometry is None else lambda width, height: fit
        expected = decode_frames(Media(clip.path), max_frames=clip.num_frames, choose_geometry=choose).frames
        difference = np.abs(on_host(dali_frames(clip, device, geometry)).astype(np.int16) - expected)
        largest, mean = int(difference.max()), float(difference.mean())
        if geometry is None:
            passed = largest <= largest_allowed and mean <= mean_allowed
        else:
            passed = mean <= SCALED_LIMIT
        found.append(Parity(f"{clip.num_frames} frames, {what}", largest, mean, passed))
    return found


def _ways(
    cores: int, batch: int, device: int | None, bucket: tuple[int, int], num_frames: int
) -> dict[str, Callable[[], AbstractContextManager[Decoder]] | None]:
    """The ways to compare, by name, to be opened; None: not installed."""
    loader = partial(loader_dali, cores, batch, device, bucket, num_frames)
    return {
        PYAV: partial(pyav, cores, batch),
        "opencv, bare": partial(opencv, cores, batch) if has_opencv() else None,
        DALI: partial(bare_dali, cores, batch, device),
        "dali, as loaded": partial(loader, perturbed=False),
        "dali, as loaded, perturbed": partial(loader, perturbed=True),
    }


def time_ways(
    clips: Sequence[BenchClip],
    batch: int,
    cores: int,
    device: int | None,
    bucket: tuple[int, int],
    repeats: int,
    on_repetition: Callable[[], None] = lambda: None,
) -> list[Timing]:
    """Times each way on the same clips of one length; in every repetition each has its turn.

    Args:
        clips: At least one batch of them.
        batch: Clips of a batch.
        cores: That may be used.
        device: The GPU's number, None to decode on the CPU.
        bucket: The (width, height) that the loader's ways bring clips to.
        repeats: Timed repetitions.
        on_repetition: Called after each of them.
    """
    batches = [clips[start : start + batch] for start in range(0, len(clips) - batch + 1, batch)]
    num_frames, num_clips = clips[0].num_frames, batch * len(batches)
    ways = _ways(cores, batch, device, bucket, num_frames)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, open_way in ways.items():
            if open_way is None:
                continue
            # Opened anew for its turn: while others are timed it must not hold threads and memory.
            with open_way() as decode:
                decode(batches[:1])
                began = time.perf_counter()
                decoded = decode(batches)
                seconds[way].append(time.perf_counter() - began)
            assert decoded == num_clips * num_frames, f"{way} gave {decoded} frames of {num_clips * num_frames}"
        on_repetition()
    return [Timing(way, num_frames, batch, num_clips, tuple(taken)) for way, taken in seconds.items()]
