"""Where log records go."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sama_mega.observe.log import PROGRESS_LOGGER, RunLog


def _speak() -> None:
    logging.getLogger("sama_mega.train").info("hello")
    logging.getLogger("sama_data.loader").warning("careful")
    logging.getLogger(PROGRESS_LOGGER).info("numbers")
    logging.getLogger("somebody_else").warning("foreign")


def test_the_main_rank_logs_to_file_and_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    with RunLog(path):
        _speak()
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO hello", "WARNING careful", "INFO numbers"]
    captured = capsys.readouterr()
    assert captured.err == "hello\ncareful\nnumbers\n" and captured.out == ""


def test_a_second_life_appends(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for _ in range(2):
        with RunLog(path):
            logging.getLogger("sama_mega").info("life")
    assert len(path.read_text().splitlines()) == 2


def test_under_a_bar_numbers_go_to_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    with RunLog(path, draws_bar=True):
        _speak()
    assert "numbers" in path.read_text()
    assert capsys.readouterr().err == "hello\ncareful\n"


def test_other_ranks_show_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(None):
        _speak()
    assert capsys.readouterr().err == "careful\n"


def test_handlers_are_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "log.txt"):
        pass
    before = (tmp_path / "log.txt").read_text()
    logging.getLogger("sama_mega").info("after")
    assert (tmp_path / "log.txt").read_text() == before
    assert logging.getLogger("sama_mega").handlers == []
