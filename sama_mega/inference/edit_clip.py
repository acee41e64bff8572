"""Edits one video or picture file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sama_data.buckets import Geometry, choose_bucket, cut_length
from sama_data.decode import Decoded, decode_frames
from sama_data.errors import ClipError
from sama_data.prompts import edit_prompt
from sama_data.rows import Kind
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.encoders.interface import TextEncoder
from sama_mega.inference.editor import SamplingSettings, frames_from_pixels, pixels_from_frames
from sama_mega.inference.load import OpenCheckpoint
from sama_mega.inference.pictures import before_after_picture, write_video
from sama_mega.inference.sound import SoundError, SoundKept, open_sound

IMAGE_FPS = 1.0
MAX_SIDE_PIXELS = 16384
"""x264 writes no longer side."""


class OutputError(UserError):
    """The result cannot be written."""


@dataclass(frozen=True)
class EditedClip:
    """Source and result of an edit.

    Attributes:
        source: ``[T, H, W, 3]`` uint8, brought to its bucket.
        edit: Same shape.
        fps: Frames a second of both.
        size: (width, height) of the source file's picture, upright, which the result is written at; None is the
            bucket's.
        path: The source file, whose sound the result keeps; None is silent.
    """

    source: NDArray[np.uint8]
    edit: NDArray[np.uint8]
    fps: float
    size: tuple[int, int] | None = None
    path: Path | None = None


@dataclass(frozen=True)
class WrittenEdit:
    """What was written of an edit.

    Attributes:
        picture: The PNG.
        sound: How the source's sound was kept; None: there is none.
        sound_problem: Why the source's sound could not be kept; None: it was, or there is none.
    """

    picture: Path
    sound: SoundKept | None
    sound_problem: str | None = None


def require_writable(path: Path, source: Path | None = None) -> None:
    """Refuses a result that could not be written, before minutes are spent on it; makes and changes nothing.

    All ranks may look at the same place at once.

    Args:
        path: Of the mp4.
        source: What is edited: neither the mp4 nor the picture beside it must replace it.

    Raises:
        OutputError: Wrong ending, a folder of that name, the source's name, or a place where nothing can be written.
    """
    if path.suffix != ".mp4":
        raise OutputError(f"--out ({path}) must end in .mp4")
    try:
        if path.is_dir():
            raise OutputError(f"--out ({path}) is a folder: name a file")
        for written in (path, path.with_suffix(".png")):
            if source is not None and written.exists() and source.exists() and written.samefile(source):
                raise OutputError(f"--out ({path}): {written} would replace {source}: choose another name")
        # Missing folders are made when there is something to put into them.
        folder = next(parent for parent in path.parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()  # no two of these share a name
    except OSError as error:
        raise OutputError(f"--out ({path}) cannot be written: {error.strerror}: choose another folder") from error


def checked_edit_prompt(kind: Kind, instruction: str, text: TextEncoder) -> str:
    """Returns the prompt of an edit that the text encoder can read whole.

    Raises:
        ConfigError: The instruction is empty, or too long for the text encoder.
    """
    if not instruction.strip():
        raise ConfigError("the instruction is empty: say what to change")
    prompt = edit_prompt(kind, instruction)
    num_tokens = text.count_tokens(prompt)
    if num_tokens > text.max_tokens:
        raise ConfigError(
            f"the instruction has {num_tokens} tokens with its prefix; the model reads {text.max_tokens}: shorten it"
        )
    return prompt


def edit_clip(
    opened: OpenCheckpoint,
    video: Path,
    instruction: str,
    settings: SamplingSettings,
    max_frames: int,
    on_step: Callable[[int], None] | None = None,
    *,
    cut: bool = False,
) -> EditedClip:
    """Edits a video, all of its frames, or a picture.

    The whole upright picture is scaled to the bucket of the nearest aspect ratio, without a crop, so that the result
    can be scaled back and nothing of the source is lost. A clip whose length is not 4k+1 is padded with its last frame
    for the model and cut back afterwards.

    Args:
        opened: The model.
        video: The file.
        instruction: What to change.
        settings: How to sample.
        max_frames: A longer clip is refused.
        on_step: Called with the number of finished sampling steps.
        cut: Whether the start of a longer clip is edited instead.

    Raises:
        ClipError: The file cannot be decoded, or its edit could not be written at its size.
        ConfigError: The clip or the instruction is too long.
    """
    buckets = opened.recipe.data.buckets
    size: tuple[int, int] | None = None

    def fit(width: int, height: int) -> Geometry:
        nonlocal size
        size = width, height
        if max(size) > MAX_SIDE_PIXELS:
            rule = f"an edit is written with {MAX_SIDE_PIXELS:,} pixels a side at most: scale it down"
            raise ClipError(video, f"has {width}x{height} pixels, and {rule}")
        bucket = choose_bucket(width, height, buckets)
        return Geometry(*bucket, 0, 0, *bucket)

    decoded = decode_frames(video, 0, None, max_frames + (not cut), fit, opened.recipe.data.decode_threads)
    num_frames = len(decoded.frames)
    if num_frames > max_frames:
        raise ConfigError(
            f"{video} has more than --max-frames ({max_frames}) frames: cut the clip, or raise --max-frames (the"
            f" model was trained on at most {opened.recipe.data.max_frames})"
        )
    kind = _kind_of(decoded)
    prompt = checked_edit_prompt(kind, instruction, opened.encoders.text)
    padded = _pad_to_model_length(torch.from_numpy(decoded.frames))
    edited = opened.editor.edit(pixels_from_frames(padded)[None], [prompt], settings, kind=kind, on_step=on_step)
    frames = frames_from_pixels(edited[0])[:num_frames].numpy()
    return EditedClip(decoded.frames, frames, decoded.fps or IMAGE_FPS, size, video)


def write_edit(clip: EditedClip, out: Path, instruction: str) -> WrittenEdit:
    """Writes the mp4 with the source's size, rate and sound, and a picture of source over edit beside it.

    A sound that cannot be read is left out, since the edit took minutes: the result says so.

    Raises:
        OutputError: The disk refuses.
    """
    picture = out.with_suffix(".png")
    try:
        before_after_picture(clip.source, clip.edit, picture, title=instruction)
        try:
            sound, problem = _write_with_sound(clip, out), None
        except (SoundError, ClipError) as error:
            sound, problem = None, str(error)
            write_video(out, clip.edit, clip.fps, size=clip.size)
    except OSError as error:
        picture.unlink(missing_ok=True)  # both or none
        raise OutputError(f"{out} cannot be written: {error.strerror or error}: free or change the disk") from error
    return WrittenEdit(picture, sound, problem)


def _write_with_sound(clip: EditedClip, out: Path) -> SoundKept | None:
    with nullcontext() if clip.path is None else open_sound(clip.path) as sound:
        write_video(out, clip.edit, clip.fps, size=clip.size, sound=sound)
    return None if sound is None else sound.kept


def _kind_of(decoded: Decoded) -> Kind:
    """What was decoded, whatever the file's name: a picture is one frame without a rate."""
    return "image" if decoded.fps is None and len(decoded.frames) == 1 else "video"


def _pad_to_model_length(frames: torch.Tensor) -> torch.Tensor:
    num_frames = frames.shape[0]
    missing = -(num_frames - cut_length(num_frames)) % 4
    return torch.cat([frames, frames[-1:].expand(missing, *frames.shape[1:])]) if missing else frames
