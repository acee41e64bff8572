"""What ends a life before its loop does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.train.lives import LifeFile, read_lives
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.this_life import ThisLife


@pytest.mark.parametrize(
    ("error", "reason"), [(ConfigError("no such thing"), "refused"), (RuntimeError("out of memory"), "failed")]
)
def test_an_error_on_the_way_to_the_first_step_ends_the_life(tmp_path: Path, error: Exception, reason: str) -> None:
    folder = RunFolder.create(tmp_path)
    file = LifeFile.claim(folder, 7, {})
    with pytest.raises(type(error)), ThisLife(file.number, file):
        raise error
    (life,) = read_lives(folder)
    assert (life.reason, life.last_step) == (reason, 7) and str(error) in life.message


def test_an_end_that_is_written_stays(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    file = LifeFile.claim(folder, 0, {})
    with pytest.raises(RuntimeError), ThisLife(file.number, file):
        file.end("hung", "no step")
        raise RuntimeError("the connection is gone")
    assert read_lives(folder)[0].reason == "hung"


def test_other_ranks_have_no_file_to_end() -> None:
    with pytest.raises(RuntimeError), ThisLife(1, None):
        raise RuntimeError
