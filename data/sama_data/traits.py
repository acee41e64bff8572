"""What must be known of every row at all times, in a few bytes each: what it is and how large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sama_data.columns import column_of, text_bytes
from sama_data.media import URL_MARK

_MOST = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Traits:
    """One entry a row in each array.

    Attributes:
        is_image: Whether it is drawn as an image; else as a video.
        is_raw: Whether it has no source.
        is_rejected: Whether it must not be trained on.
        num_frames: The frames between frame_start and the end, int32; 0 where the manifest does not tell.
        width: The target's width in pixels, int32, 0 where it is not known; the next likewise.
        height: The target's height.
        protocols: Those of all URLs, like "s3"; not one a row.
    """

    is_image: NDArray[np.bool_]
    is_raw: NDArray[np.bool_]
    is_rejected: NDArray[np.bool_]
    num_frames: NDArray[np.int32]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    protocols: frozenset[str]


def traits_of(batch: pa.RecordBatch) -> Traits:
    """Returns the traits of a canonical batch's rows."""
    ends = pc.coalesce(column_of(batch, "frame_end"), column_of(batch, "num_frames"))
    frames = pc.max_element_wise(pc.subtract(ends, column_of(batch, "frame_start").fill_null(0)), 1, skip_nulls=False)
    return Traits(
        is_image=_flags(pc.equal(batch.column("kind"), "image")),
        is_raw=_flags(column_of(batch, "source").is_null()),
        is_rejected=_flags(column_of(batch, "rejected").is_valid()),
        num_frames=_numbers(frames),
        width=_numbers(column_of(batch, "width")),
        height=_numbers(column_of(batch, "height")),
        protocols=_protocols(column_of(batch, "source")) | _protocols(batch.column("target")),
    )


def join_traits(parts: Sequence[Traits]) -> Traits:
    """Returns the traits of several batches, one after the other."""
    if len(parts) == 1:
        return parts[0]
    arrays = [field.name for field in fields(Traits) if field.name != "protocols"]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return Traits(**joined, protocols=frozenset().union(*(part.protocols for part in parts)))


def _flags(column: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(column: pa.Array) -> NDArray[np.int32]:
    return np.minimum(column.fill_null(0).to_numpy(), _MOST).astype(np.int32)


def _protocols(paths: pa.Array) -> frozenset[str]:
    content, places = text_bytes(paths)
    if not (content[places[0] : places[-1]] == ord(URL_MARK[0])).any():
        return frozenset()  # most manifests, in a tenth of the time
    urls = paths.filter(pc.match_substring(paths, URL_MARK))
    return frozenset(pc.list_element(pc.split_pattern(urls, URL_MARK, max_splits=1), 0).unique().to_pylist())
