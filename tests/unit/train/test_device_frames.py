"""Frames that DALI lends are encoded as those of arrays: here from host memory, for want of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sama_data.graph.frames import DeviceFrames
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest, write_jsonl
from sama_mega.encoders import build_encoders
from sama_mega.train.encode import SampleEncoder
from tests.support.clips import moving_picture, write_video
from tests.support.tiny_recipe import tiny_recipe

pipeline = pytest.importorskip("sama_data.graph.pipeline", reason="needs DALI: pip install 'sama-mega[dali]'")


def test_lent_frames_are_encoded_like_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for number in range(6):
        clip = write_video(tmp_path / f"{number}.webm", moving_picture(17, 32, 32, seed=number), "libvpx-vp9")
        rows.append({"video": clip.name, "caption": f"Waves {number}."})
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    dataset = load_manifest(tmp_path / "manifest.jsonl")
    recipe = tiny_recipe(0, tmp_path / "run", tmp_path / "manifest.jsonl", changes={"anchor.num_frames": 3})
    encoders = build_encoders(recipe, "cpu")

    def encoded(decoder: Any, kind: type) -> list[list[torch.Tensor]]:
        settings = LoaderSettings(0, 3, 4, buckets=((32, 32),), max_frames=13, decoder=decoder, decode_batch=2)
        with SampleLoader(dataset, settings, 0, 1, Quarantine(tmp_path / "quarantine.jsonl")) as loader:
            samples = [sample for step in loader.prefetching(0, 3) for sample in step.samples]
        assert all(isinstance(sample.source_frames, kind) for sample in samples)
        assert len({sample.task for sample in samples}) > 1
        return [
            [job.run() for job in SampleEncoder(recipe, encoders, torch.device("cpu")).jobs([sample], ["x"], 1)]
            for sample in samples
        ]

    arrays = encoded("pyav", np.ndarray)
    monkeypatch.setattr(pipeline, "_frames_of", DeviceFrames)
    monkeypatch.setattr(torch, "from_numpy", None)  # the way through the host
    lent = encoded("dali", DeviceFrames)
    for one, other in zip(lent, arrays, strict=True):
        assert all(torch.equal(found, expected) for found, expected in zip(one, other, strict=True))
