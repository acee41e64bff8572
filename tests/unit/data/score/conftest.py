"""A small manifest of pairs to judge, with everything known that an estimate asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

WriteManifest = Callable[..., Path]


@pytest.fixture(scope="session")
def clips(tmp_path_factory, make_video, make_frames) -> Path:
    """A folder with one pair of clips and one of pictures."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("s", "t")):
        make_video(folder / f"{name}.mp4", make_frames(9, 48, 64, seed=seed))
        Image.new("RGB", (90, 60), (200, 30 * seed, 60)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def write_manifest(clips: Path, tmp_path: Path) -> WriteManifest:
    """Writes rows of the pairs that are there, and tells where."""

    def write(*rows: dict, name: str = "m.jsonl") -> Path:
        for clip in clips.iterdir():
            if not (tmp_path / clip.name).exists():
                (tmp_path / clip.name).symlink_to(clip)
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
