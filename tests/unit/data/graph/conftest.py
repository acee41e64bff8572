"""The zoo of clips; no test here runs without DALI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clip_zoo import make_zoo
from tests.support.zoo import write_sound

pytest.importorskip("nvidia.dali", reason="needs DALI: pip install 'sama-mega[dali]'")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory, make_frames: Callable, make_video: Callable) -> dict[str, Path]:
    return make_zoo(tmp_path_factory.mktemp("zoo"), make_frames, make_video, write_sound)
