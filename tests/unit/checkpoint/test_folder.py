"""Finding the checkpoint that a user means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sama_mega.checkpoint.folder import complete_checkpoints, resolve_checkpoint
from sama_mega.config.errors import CheckpointError


def refuse(*_: Any) -> Any:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("what", ["iterdir", "is_file"])
def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    monkeypatch.setattr(Path, what, refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read: Permission denied"):
        resolve_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be read: Permission denied"):
        complete_checkpoints(tmp_path / "checkpoints")
