r"""The DALI graph: encoded bytes, or frames that PyAV decoded, to uint8 frames of the size asked for.

    bytes -> decoders.video | decoders.image \
                                              > resize and crop | crop | nothing -> DLPack
    frames ----------------------> to the GPU /

Every file of a batch has its own geometry. Where nothing is to be scaled, frames leave as they were decoded; a crop
alone resamples nothing. Cubic with antialiasing is nearest to swscale's bicubic, which PyAV's decoding uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.tensors import TensorCPU

from sama_data.graph.frames import DeviceFrames, Frames
from sama_data.graph.piece import Kind, Piece

_NOTHING_ENCODED = np.zeros(1, np.uint8)
_NO_FRAMES = np.zeros((1, 1, 1, 3), np.uint8)


class Graph:
    """Runs batches of files of one kind; one thread uses it at a time.

    A batch that DALI refuses leaves nothing behind: the graph is made anew for the next one.

    Args:
        kind: What the bytes hold.
        device: The GPU's number, None to decode on the CPU.
        threads: DALI's own, on the CPU.
        max_batch: The most files of a batch.
    """

    def __init__(self, kind: Kind, device: int | None, threads: int, max_batch: int) -> None:
        self._kind = kind
        self._device = device
        self._threads = threads
        self._max_batch = max_batch
        self._pipeline: Any = None

    def run(self, pieces: Sequence[Piece]) -> list[Frames]:
        """Returns each file's frames ``[T, H, W, 3]`` uint8 RGB: arrays on the CPU, `DeviceFrames` on a GPU.

        They share the batch's memory, which is theirs: no later batch overwrites it.

        Raises:
            RuntimeError: DALI cannot decode one of the files, or not all its frames; it does not say which.
        """
        if self._pipeline is None:
            self._pipeline = _graph(
                self._kind,
                self._device is not None,
                batch_size=self._max_batch,
                num_threads=self._threads,
                device_id=self._device,
                prefetch_queue_depth=1,
            )
        try:
            (batch,) = self._pipeline.run(**_inputs(self._kind, pieces))
        except RuntimeError:
            # Its inputs were fed and perhaps not used up: the next batch would meet them.
            self._pipeline = None
            raise
        decoded = [_frames_of(batch[place]) for place in range(len(pieces))]
        for piece, frames in zip(pieces, decoded, strict=True):
            if piece.frames is None and len(frames) != piece.num_frames:
                raise RuntimeError(f"DALI gave {len(frames)} of {piece.num_frames} frames")
        return decoded

    def close(self) -> None:
        """Lets go of the decoders and their memory; frames that were handed over stay valid."""
        self._pipeline = None


@pipeline_def(enable_conditionals=True)
def _graph(kind: Kind, on_gpu: bool) -> Any:
    device = "mixed" if on_gpu else "cpu"
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    given = fn.external_source(name="given", dtype=types.UINT8, layout="FHWC")
    is_encoded = fn.external_source(name="is_encoded", dtype=types.BOOL, ndim=0)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    crop_start = fn.external_source(name="crop_start", dtype=types.FLOAT, ndim=1)
    crop_end = fn.external_source(name="crop_end", dtype=types.FLOAT, ndim=1)
    is_scaled = fn.external_source(name="is_scaled", dtype=types.BOOL, ndim=0)
    is_cropped = fn.external_source(name="is_cropped", dtype=types.BOOL, ndim=0)
    if is_encoded:
        if kind == "video":
            start = fn.external_source(name="start", dtype=types.INT32, ndim=0)
            end = fn.external_source(name="end", dtype=types.INT32, ndim=0)
            frames = fn.decoders.video(encoded, device=device, start_frame=start, end_frame=end, pad_mode="none")
        else:
            picture = fn.decoders.image(encoded, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True)
            frames = fn.expand_dims(picture, axes=0, new_axis_names="F")
    else:
        frames = given.gpu() if on_gpu else given
    if is_scaled:
        frames = fn.resize(
            frames,
            size=size,
            roi_start=crop_start,
            roi_end=crop_end,
            interp_type=types.INTERP_CUBIC,
            antialias=True,
        )
    elif is_cropped:
        first, last = fn.cast(crop_start, dtype=types.INT32), fn.cast(crop_end, dtype=types.INT32)
        frames = fn.slice(frames, start=first, end=last, axis_names="HW")
    return frames


def _inputs(kind: Kind, pieces: Sequence[Piece]) -> dict[str, list[Any]]:
    """What the graph's external sources take, by name."""
    crops = [_crop(piece) for piece in pieces]
    ranges: dict[str, list[Any]] = {}
    if kind == "video":
        ranges["start"] = [np.int32(piece.start) for piece in pieces]
        ranges["end"] = [np.int32(piece.start + piece.num_frames) for piece in pieces]
    return ranges | {
        "encoded": [_NOTHING_ENCODED if piece.content is None else piece.content for piece in pieces],
        "given": [_NO_FRAMES if piece.frames is None else piece.frames for piece in pieces],
        "is_encoded": [np.bool_(piece.frames is None) for piece in pieces],
        "size": [size for size, _, _ in crops],
        "crop_start": [start for _, start, _ in crops],
        "crop_end": [end for _, _, end in crops],
        "is_scaled": [np.bool_(piece.is_scaled) for piece in pieces],
        "is_cropped": [np.bool_(piece.is_cropped) for piece in pieces],
    }


def _crop(piece: Piece) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The size wanted and the corners of what becomes it, in the stored picture's own (line, column)."""
    fit = piece.geometry
    if fit is None:
        none = np.zeros(2, np.float32)
        return none, none, none
    # Nothing is resampled that would be cut off again.
    scale = np.array([piece.height / fit.scaled_height, piece.width / fit.scaled_width])
    start = np.array([fit.top, fit.left]) * scale
    end = np.array([fit.top + fit.height, fit.left + fit.width]) * scale
    return np.array([fit.height, fit.width], np.float32), start.astype(np.float32), end.astype(np.float32)


def _frames_of(tensor: Any) -> Frames:
    return np.asarray(tensor) if isinstance(tensor, TensorCPU) else DeviceFrames(tensor)
