"""Ways to decode clips, each as fast as it goes on so many cores: every one returns how many frames it gave."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from sama_data.buckets import Geometry
from sama_data.clips import Clip
from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from sama_data.graph.frames import DeviceClip, Frames
from sama_data.media import Media
from sama_data.pretext import Motion, plan_pretext
from sama_data.rows import Row
from sama_data.settings import LoaderSettings
from sama_kernels.pretext import pretext
from sama_mega.bench.clips import BenchClip
from sama_mega.train.encode import as_clip

Batch = Sequence[BenchClip]


class Decoder(Protocol):
    """Decodes batches of clips."""

    def __call__(self, batches: Sequence[Batch]) -> int:
        """Decodes them, all cores at work, and returns the number of frames; their memory may be gone again."""


@contextmanager
def pyav(cores: int, batch: int) -> Iterator[Decoder]:
    """Bare PyAV: a clip on each core, or where a batch has fewer clips than cores, threads in its decoder."""
    threads = max(1, cores // batch)
    with ThreadPoolExecutor(min(cores, batch)) as pool:

        def decode(clip: BenchClip) -> int:
            return len(decode_frames(Media(clip.path), max_frames=clip.num_frames, threads=threads).frames)

        yield lambda batches: sum(sum(pool.map(decode, batch)) for batch in batches)


@contextmanager
def opencv(cores: int, batch: int) -> Iterator[Decoder]:
    """Bare OpenCV, as PyAV; its frames are BGR and are not made RGB."""
    import cv2

    threads = max(1, cores // batch)

    def decode(clip: BenchClip) -> int:
        frames = np.empty((clip.num_frames, clip.height, clip.width, 3), np.uint8)
        capture: Any = cv2.VideoCapture(str(clip.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        number = 0
        while number < clip.num_frames and capture.read(frames[number])[0]:
            number += 1
        capture.release()
        return number

    with ThreadPoolExecutor(min(cores, batch)) as pool:
        yield lambda batches: sum(sum(pool.map(decode, batch)) for batch in batches)


@contextmanager
def bare_dali(cores: int, batch: int, device: int | None) -> Iterator[Decoder]:
    """DALI's graph alone: the files' bytes are read, nothing is looked at."""
    from sama_data.graph.piece import Piece
    from sama_data.graph.pipeline import Graph

    graph = Graph("video", device, cores, batch)

    def decode(clips: Batch) -> int:
        pieces = [
            Piece(np.fromfile(clip.path, np.uint8), clip.width, clip.height, num_frames=clip.num_frames)
            for clip in clips
        ]
        return sum(len(frames) for frames in graph.run(pieces))

    yield lambda batches: sum(map(decode, batches))
    graph.close()


@contextmanager
def loader_dali(
    cores: int, batch: int, device: int | None, bucket: tuple[int, int], num_frames: int, perturbed: bool
) -> Iterator[Decoder]:
    """What the loader does with DALI: files looked at in workers, decoded, brought to a bucket; perturbed as well."""
    from sama_data.graph.reader import DaliReader

    settings = LoaderSettings(
        0, 1, buckets=(bucket,), max_frames=num_frames, decode_threads=cores, decode_batch=batch, decoder="dali"
    )
    one_perturbs = threading.Lock()

    def decode(clips: Batch) -> int:
        read = reader.read([_row(clip) for clip in clips])
        if perturbed:
            with one_perturbs:  # as in a step, where one stream does it
                _perturb(read)
        return sum(len(_good(clip).target) for clip in read)

    with closing(DaliReader(settings, device)) as reader, ThreadPoolExecutor(reader.num_callers) as callers:
        yield lambda batches: sum(callers.map(decode, batches))


def has_opencv() -> bool:
    """Whether OpenCV is installed."""
    return find_spec("cv2") is not None


def dali_frames(clip: BenchClip, device: int | None, geometry: Geometry | None = None) -> Frames:
    """What DALI makes of one clip."""
    from sama_data.graph.piece import Piece
    from sama_data.graph.pipeline import Graph

    content = np.fromfile(clip.path, np.uint8)
    piece = Piece(content, clip.width, clip.height, geometry, num_frames=clip.num_frames)
    return Graph("video", device, 1, 1).run([piece])[0]


def _row(clip: BenchClip) -> Row:
    return Row(index=0, sample_id=clip.path.name, kind="video", source=None, target=Media(clip.path), text="")


def _good(clip: Clip | DeviceClip | ClipError) -> Clip | DeviceClip:
    if isinstance(clip, ClipError):
        raise clip
    return clip


def _perturb(read: Sequence[Clip | DeviceClip | ClipError]) -> None:
    """Perturbs each clip's source in another way, and waits until that is done."""
    for number, clip in enumerate(map(_good, read)):
        frames = as_clip(clip.source)
        given = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
        plan = plan_pretext(Motion(), 0, str(number), 0, *given.shape[:3])
        pretext(given, plan.frame_indices, plan.tube_order)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
