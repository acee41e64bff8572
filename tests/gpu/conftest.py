"""What the tests on a GPU share; those of tests/unit know nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clip_zoo import make_zoo
from tests.support.clips import moving_picture, write_video
from tests.support.zoo import write_sound


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_zoo(tmp_path_factory.mktemp("zoo"), moving_picture, write_video, write_sound)
