"""Shapes told from the manifest: those that the clips then have, and defaults where it is silent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest, write_jsonl
from sama_data.predicted import predict_shapes
from sama_data.pretext import Motion
from sama_data.shapes import Shape
from sama_data.step_plan import StepPlanner

SETTINGS = LoaderSettings(
    images_per_step=3,
    videos_per_step=9,
    seed=5,
    buckets=((32, 32), (48, 32), (32, 48)),
    max_frames=13,
    motion=Motion(speed=9.0),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, make_frames, make_video) -> Path:
    """Clips, raw and paired, and pictures, whose sizes and lengths the manifest tells."""
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number, (frames, height, width) in enumerate([(14, 64, 64), (11, 40, 64), (24, 64, 40)]):
        size = {"width": width, "height": height, "num_frames": frames}
        make_video(folder / f"{number}.mp4", make_frames(frames, height, width, seed=number))
        rows.append({"video": f"{number}.mp4", "caption": "x"} | size)
        pair = {"source": f"{number}.mp4", "target": f"{number}.mp4", "instruction": "x", "sample_id": f"pair{number}"}
        rows.append(pair | size)
        Image.fromarray(make_frames(1, height, width)[0]).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": "x", "width": width, "height": height})
    part = {"video": "2.mp4", "caption": "x", "frame_start": 3, "frame_end": 9, "width": 40, "height": 64}
    write_jsonl([*rows, part], folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


@pytest.mark.parametrize("keep_length", [False, True])
def test_predictions_are_what_is_read(manifest, tmp_path, keep_length):
    changed = replace(SETTINGS, motion=replace(SETTINGS.motion, keep_length=keep_length))
    dataset = load_manifest(manifest)
    loader = SampleLoader(dataset, changed, 0, 1, Quarantine(tmp_path / "quarantine.jsonl"))
    planner = StepPlanner(dataset, changed)
    seen = set()
    for step in range(4):
        samples = loader.step(step).samples
        assert planner.shapes(step).of_slots() == [sample.shape for sample in samples]
        seen |= {sample.shape for sample in samples}
    assert {shape.kind for shape in seen} == {"image", "video"}
    assert any(shape.source_frames != shape.num_frames for shape in seen) != keep_length


def shapes_of(tmp_path: Path, *rows: dict, **changed: object) -> list[Shape]:
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    dataset = load_manifest(tmp_path / "manifest.jsonl")
    return predict_shapes(dataset, np.arange(len(rows)), None, replace(SETTINGS, **changed)).of_slots()


def test_what_a_manifest_does_not_say(tmp_path):
    video = {"video": "a.mp4", "caption": "x"}
    rows = [
        video,
        video | {"width": 100},  # half a size says nothing
        video | {"num_frames": 7},
        video | {"num_frames": 7, "frame_start": 4},
        video | {"num_frames": 900, "frame_start": 4, "frame_end": 14},
        {"image": "a.png", "caption": "x", "num_frames": 9, "width": 96, "height": 64},
        video | {"num_frames": 2**40, "width": 2**40, "height": 5},  # more than is kept of a row
    ]
    assert [shape[1:4] for shape in shapes_of(tmp_path, *rows)] == [
        (32, 32, 13),
        (32, 32, 13),
        (32, 32, 5),
        (32, 32, 1),
        (32, 32, 9),
        (48, 32, 1),
        (48, 32, 13),
    ]


def test_shapes_that_occur_are_named_once(tmp_path):
    rows = [{"video": f"{number}.mp4", "caption": "x", "num_frames": 5 + number % 2 * 4} for number in range(6)]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    found = predict_shapes(load_manifest(tmp_path / "manifest.jsonl"), np.arange(6), None, SETTINGS)
    assert found.shapes == (Shape("video", 32, 32, 5, 5), Shape("video", 32, 32, 9, 9))
    assert found.shape_of.tolist() == [0, 1] * 3
    assert [column.tolist() for column in found.columns()] == [[32, 32], [32, 32], [5, 9], [5, 9]]
