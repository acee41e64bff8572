"""Writing the synthetic world to disk: H.264 clips, pictures and manifests, all of it or nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from sama_data.errors import DataError
from sama_data.synth.edits import EditPair, make_pair
from sama_data.synth.spec import EDIT_KINDS, WorldSpec

# Image pairs take their indices from here on, so that no image pair shows a video pair's scene.
FIRST_IMAGE_INDEX = 1 << 40
_PAIRS_PER_TASK = 32
# Close to lossless after 4:2:0, quick to decode, and small: one reference frame, no B-frames, no CABAC.
_H264_OPTIONS = {"preset": "ultrafast", "crf": "12", "threads": "1"}
_JPEG_OPTIONS: dict[str, Any] = {"quality": 95, "subsampling": 0}
_BT601 = 6  # AVCOL_SPC_SMPTE170M, the matrix that the conversion to YUV uses


@dataclass(frozen=True)
class WorldSummary:
    """What `write_world` wrote."""

    folder: Path
    num_videos: int
    num_images: int
    kinds: dict[str, int]


@dataclass(frozen=True)
class _Task:
    """A run of pairs for one worker."""

    folder: Path
    seed: int
    first: int
    count: int
    is_video: bool
    spec: WorldSpec
    kinds: tuple[str, ...] | None
    masks: bool


def write_world(
    out: Path,
    num_videos: int,
    num_images: int,
    seed: int,
    workers: int = 1,
    spec: WorldSpec | None = None,
    kinds: tuple[str, ...] | None = None,
    masks: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> WorldSummary:
    """Writes editing pairs and their manifests into a new folder; a pure function of the other arguments.

    The folder holds `pairs.jsonl` (source, target, instruction: stage 1), `raw.jsonl` (video, caption, and the image
    pairs: stage 0), `videos/`, `images/` and, when asked for, `masks/`. It appears complete or not at all.

    Args:
        out: the folder to make; it must not exist, or be empty.
        num_videos: video pairs.
        num_images: image pairs.
        seed: of the world; different seeds share no scene.
        workers: processes; 1 works in this one.
        spec: sizes and ranges; the default world when None.
        kinds: the kinds of edit to write, taken in turn so that each gets its share; None draws them by the spec's
            weights.
        masks: also write where each edit may change pixels, for evaluation; read it with `load_mask`.
        on_progress: called with (pairs done, pairs in all).

    Returns:
        A summary with the number of pairs of each kind.

    Raises:
        DataError: `out` holds something or cannot be written, or a number or a kind is out of range.
    """
    out = Path(out)
    world = spec if spec is not None else WorldSpec()
    _check_request(out, num_videos, num_images, seed, workers, kinds)
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        for name in ("videos", "images", *(("masks",) if masks else ())):
            (partial / name).mkdir(parents=True)
        tasks = _plan_tasks(partial, num_videos, num_images, seed, world, kinds, masks)
        rows = _run_tasks(tasks, workers, on_progress)
        _write_manifests(partial, rows)
        os.replace(partial, out)
    except OSError as error:
        raise DataError(
            f"cannot write the synthetic world to {out}: {error.strerror or error}: choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = {kind: sum(row["task"] == kind for row in rows) for kind in EDIT_KINDS}
    return WorldSummary(out, num_videos, num_images, {kind: n for kind, n in counts.items() if n})


def load_mask(folder: Path, sample_id: str) -> np.ndarray:
    """Reads where a written pair's edit may change pixels: [T,H,W] bool.

    Raises:
        DataError: the world in `folder` was written without masks, or has no such sample.
    """
    path = Path(folder) / "masks" / f"{sample_id}.npz"
    if not path.exists():
        raise DataError(f"{path} does not exist: write the world with masks=True")
    with np.load(path) as stored:
        shape = tuple(int(length) for length in stored["shape"])
        return np.unpackbits(stored["bits"], count=int(np.prod(shape))).astype(bool).reshape(shape)


def _check_request(
    out: Path, num_videos: int, num_images: int, seed: int, workers: int, kinds: tuple[str, ...] | None
) -> None:
    """Refuses what cannot be written, before anything is."""
    if num_videos < 0 or num_images < 0 or num_videos + num_images == 0:
        raise DataError(f"num_videos ({num_videos}) and num_images ({num_images}) must not both be 0: ask for some")
    if seed < 0 or workers < 1:
        raise DataError(f"seed ({seed}) must be at least 0 and workers ({workers}) at least 1")
    if kinds is not None and (not kinds or set(kinds) - set(EDIT_KINDS)):
        raise DataError(f"kinds ({', '.join(kinds) or 'none'}) must be some of {', '.join(EDIT_KINDS)}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(f"{out} already exists: remove it or choose another folder")


def _plan_tasks(
    folder: Path,
    num_videos: int,
    num_images: int,
    seed: int,
    spec: WorldSpec,
    kinds: tuple[str, ...] | None,
    masks: bool,
) -> list[_Task]:
    """Cuts the work into short runs of pairs, videos first."""
    tasks = []
    for is_video, count in ((True, num_videos), (False, num_images)):
        size = spec if is_video else replace(spec, num_frames=1)
        for first in range(0, count, _PAIRS_PER_TASK):
            number = min(_PAIRS_PER_TASK, count - first)
            tasks.append(_Task(folder, seed, first, number, is_video, size, kinds, masks))
    return tasks


def _run_tasks(
    tasks: list[_Task], workers: int, on_progress: Callable[[int, int], None] | None
) -> list[dict[str, Any]]:
    """Runs all tasks and returns their manifest rows in order."""
    total = sum(task.count for task in tasks)
    done = 0
    results: dict[int, list[dict[str, Any]]] = {}
    for number, rows in _finished(tasks, min(workers, len(tasks))):
        results[number] = rows
        done += len(rows)
        if on_progress is not None:
            on_progress(done, total)
    return [row for number in range(len(tasks)) for row in results[number]]


def _finished(tasks: list[_Task], workers: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields (task number, rows) as tasks end."""
    if workers == 1:
        for number, task in enumerate(tasks):
            yield number, _write_pairs(task)
        return
    # Fresh processes: a fork would copy a caller's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            futures = {pool.submit(_write_pairs, task): number for number, task in enumerate(tasks)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _write_pairs(task: _Task) -> list[dict[str, Any]]:
    """Makes and writes a run of pairs; returns their manifest rows."""
    return [_write_pair(task, number) for number in range(task.first, task.first + task.count)]


def _write_pair(task: _Task, number: int) -> dict[str, Any]:
    """Makes and writes one pair; returns its manifest row, with the caption for stage 0."""
    kind = None if task.kinds is None else task.kinds[number % len(task.kinds)]
    index = number if task.is_video else number + FIRST_IMAGE_INDEX
    pair = make_pair(task.seed, index, task.spec, kind)
    sample_id = f"{'video' if task.is_video else 'image'}-{number:06d}"
    folder, suffix = ("videos", "mp4") if task.is_video else ("images", "jpg")
    names = {role: f"{folder}/{sample_id}-{role}.{suffix}" for role in ("source", "target")}
    for role, name in names.items():
        frames = pair.source if role == "source" else pair.target
        if task.is_video:
            write_clip(task.folder / name, frames, task.spec.fps)
        else:
            Image.fromarray(frames[0]).save(task.folder / name, **_JPEG_OPTIONS)
    if task.masks:
        _write_mask(task.folder / "masks" / f"{sample_id}.npz", pair)
    return {
        **names,
        "instruction": pair.instruction,
        "task": pair.kind,
        "sample_id": sample_id,
        "fps": task.spec.fps if task.is_video else None,
        "width": task.spec.width,
        "height": task.spec.height,
        "caption": pair.caption,
    }


def write_clip(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes frames [T,H,W,3] uint8 (even sizes) as an H.264 mp4."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options=_H264_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = _BT601
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _write_mask(path: Path, pair: EditPair) -> None:
    """Writes a mask as packed, compressed bits."""
    np.savez_compressed(path, bits=np.packbits(pair.mask), shape=np.asarray(pair.mask.shape))


def _write_manifests(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes `pairs.jsonl` and `raw.jsonl`."""
    pairs, raw = [], []
    for row in rows:
        caption = row["caption"]
        pair = {key: value for key, value in row.items() if key != "caption" and value is not None}
        pairs.append(pair)
        if pair["source"].startswith("videos/"):
            size = {key: pair[key] for key in ("fps", "width", "height")}
            raw.append({"video": pair["source"], "caption": caption, "sample_id": pair["sample_id"], **size})
        else:
            raw.append(pair)
    for name, content in (("pairs.jsonl", pairs), ("raw.jsonl", raw)):
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / name).write_text(text, encoding="utf-8")
