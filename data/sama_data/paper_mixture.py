"""A stand-in for the paper's datasets: their numbers of rows, with sizes and lengths made up, and no clip behind.

For looking at a recipe's steps before anything is downloaded. Counts are the paper's (arXiv 2603.19228), divided by
`ROWS_PER_ROW`; sizes and lengths follow the datasets' cards where these tell them and are plausible where not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sama_data.dataset import Dataset
from sama_data.manifest import load_blend, write_jsonl
from sama_data.rows import Kind

ROWS_PER_ROW = 100
"""How many rows of the real dataset each row stands for."""

_LANDSCAPE, _PORTRAIT, _SQUARE = (1280, 720), (720, 1280), (1024, 1024)
# (width, height) and how often.
_PHOTOS = (
    ((1536, 1024), 0.27),
    ((1024, 1536), 0.18),
    ((1365, 1024), 0.22),
    ((1024, 1365), 0.10),
    (_SQUARE, 0.12),
    ((1820, 1024), 0.06),
    ((1024, 1820), 0.03),
    ((1280, 1024), 0.02),
)
_GENERATED = ((_SQUARE, 0.60), ((1536, 1024), 0.22), ((1024, 1536), 0.18))
_WEB_VIDEOS = ((_LANDSCAPE, 0.84), (_PORTRAIT, 0.07), ((960, 720), 0.06), ((1280, 544), 0.02), ((720, 720), 0.01))
_EDITED_VIDEOS = ((_LANDSCAPE, 0.90), (_PORTRAIT, 0.10))


@dataclass(frozen=True)
class StandIn:
    """One dataset of the mixture.

    Attributes:
        name: The dataset.
        kind: Images or videos.
        num_rows: The paper's count.
        licence: Of its rows.
        tasks: Its categories of edit, equally often; none for raw clips.
        sizes: (width, height) of the targets, and how often.
        frames: The least and the greatest number of frames.
        short_share: Share of clips that have 33 to 80 frames instead.
        frame_start: Frames that are left out at the beginning.
        width_spread: Relative standard deviation of the widths: photographs are cropped freely.
    """

    name: str
    kind: Kind
    num_rows: int
    licence: str
    tasks: tuple[str, ...]
    sizes: tuple[tuple[tuple[int, int], float], ...]
    frames: tuple[int, int] = (1, 1)
    short_share: float = 0.0
    frame_start: int = 0
    width_spread: float = 0.0


_IMAGE_TASKS = ("add", "remove", "replace", "style", "background")
_NHR = StandIn("nhr_edit", "image", 720_087, "Apache-2.0", _IMAGE_TASKS, _PHOTOS, width_spread=0.06)
STAND_INS: dict[int, tuple[StandIn, ...]] = {
    0: (
        _NHR,
        StandIn("gpt_image_edit", "image", 1_015_170, "CC-BY-4.0", _IMAGE_TASKS, _GENERATED),
        StandIn("x2edit", "image", 768_470, "Apache-2.0", _IMAGE_TASKS, _GENERATED),
        StandIn("koala_36m", "video", 1_532_716, "non-commercial", (), _WEB_VIDEOS, (81, 600), short_share=0.05),
        StandIn("motionbench", "video", 53_879, "CC-BY-NC-SA-4.0", (), _WEB_VIDEOS, (81, 300), short_share=0.10),
    ),
    1: (
        _NHR,
        StandIn("pico_banana", "image", 257_730, "CC-BY-NC-ND-4.0", _IMAGE_TASKS, _PHOTOS, width_spread=0.06),
        StandIn("ditto_style", "video", 3_936, "CC-BY-NC-SA-4.0", ("style",), _EDITED_VIDEOS, (101, 101)),
        StandIn(
            "openve",
            "video",
            818_232,
            "CC-BY-NC-4.0",
            ("local change", "background", "style", "subtitles"),
            _EDITED_VIDEOS,
            (65, 129),
            frame_start=4,
        ),
        StandIn(
            "reco",
            "video",
            206_596,
            "CC-BY-NC-SA-4.0",
            ("add", "remove", "replace", "style"),
            (((832, 480), 1.0),),
            (81, 81),
        ),
    ),
}
"""The datasets of each stage."""


def make_paper_mixture(stage: int, folder: Path) -> Dataset:
    """Writes a manifest for each dataset of a stage and opens them as one blend, all weights 1.

    Args:
        stage: 0 or 1.
        folder: Where the manifests go; the dataset may need them as long as it is used.
    """
    manifests: list[tuple[Path | str, float]] = []
    for stand_in in STAND_INS[stage]:
        path = folder / f"{stand_in.name}.jsonl"
        write_jsonl(_rows(stand_in), path)
        manifests.append((path, 1.0))
    return load_blend(manifests)


def _rows(stand_in: StandIn) -> list[dict[str, object]]:
    count = max(1, round(stand_in.num_rows / ROWS_PER_ROW))
    generator = np.random.default_rng(stand_in.num_rows)
    sizes, shares = zip(*stand_in.sizes, strict=True)
    size_of = generator.choice(len(sizes), count, p=shares)
    frames = generator.integers(stand_in.frames[0], stand_in.frames[1], count, endpoint=True)
    frames = np.where(generator.random(count) < stand_in.short_share, generator.integers(33, 81, count), frames)
    spread = np.exp(stand_in.width_spread * generator.standard_normal(count))
    rows: list[dict[str, object]] = []
    for number in range(count):
        width, height = sizes[size_of[number]]
        row = {
            "width": round(width * spread[number]),
            "height": height,
            "dataset": stand_in.name,
            "licence": stand_in.licence,
        }
        rows.append(row | _clip(stand_in, number, int(frames[number])))
    return rows


def _clip(stand_in: StandIn, number: int, num_frames: int) -> dict[str, object]:
    clip: dict[str, object] = {"video": f"{number}.mp4", "caption": "made up"}
    if stand_in.tasks:
        suffix = "jpg" if stand_in.kind == "image" else "mp4"
        task = stand_in.tasks[number % len(stand_in.tasks)]
        clip = {
            "source": f"{number}s.{suffix}",
            "target": f"{number}t.{suffix}",
            "instruction": "made up",
            "task": task,
        }
    if stand_in.kind == "video":
        clip |= {"num_frames": num_frames, "frame_start": stand_in.frame_start}
    return clip
