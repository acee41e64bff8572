"""What must agree before samples can share a micro-batch, and how a rank's samples are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sama_data.rows import Kind


class Shape(NamedTuple):
    """A sample's bucket: samples of one shape can be stacked.

    Attributes:
        kind: "image" or "video": a video of one frame weighs otherwise in the loss than an image.
        width: Pixels of source and target alike.
        height: Lines.
        num_frames: Frames of the target, 4k+1.
        source_frames: Frames of the source as the model sees it: fewer where it was sped up.
    """

    kind: Kind
    width: int
    height: int
    num_frames: int
    source_frames: int


def cut_by_shape(shapes: Sequence[Shape], limits: Mapping[Kind, int], at_least: int = 1) -> list[list[int]]:
    """Cuts samples into micro-batches of one shape each, in the order in which their first samples stand.

    Args:
        shapes: The samples' shapes.
        limits: The most samples of a micro-batch, by kind.
        at_least: Micro-batches wanted: while there are fewer, the largest is halved, as far as samples go.

    Returns:
        For each micro-batch the places of its samples in `shapes`, ascending.
    """
    places_of: dict[Shape, list[int]] = {}
    for place, shape in enumerate(shapes):
        places_of.setdefault(shape, []).append(place)
    cut = [
        places[start : start + limits[shape.kind]]
        for shape, places in places_of.items()
        for start in range(0, len(places), limits[shape.kind])
    ]
    while len(cut) < min(at_least, len(shapes)):
        largest = max(range(len(cut)), key=lambda index: len(cut[index]))
        half = len(cut[largest]) // 2
        cut[largest : largest + 1] = [cut[largest][:half], cut[largest][half:]]
    return cut
