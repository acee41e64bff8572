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


def test_lines_of_the_run_carry_the_life_and_those_of_a_rank_do_not(tmp_path: Path) -> None:
    """The run's log goes on over all lives; a rank has one a life."""
    for life in (1, 2):
        with RunLog(tmp_path / "log.txt", rank_log_path=tmp_path / f"life-{life}" / "rank-0.txt", life=life):
            _speak()
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    spoken = ["INFO hello", "WARNING careful", "INFO numbers"]
    assert lines == [f"life {life} {line}" for life in (1, 2) for line in spoken]
    for life in (1, 2):
        own = (tmp_path / f"life-{life}" / "rank-0.txt").read_text().splitlines()
        assert [line.split(" ", 2)[2] for line in own] == spoken


def test_another_rank_s_file_has_all_that_its_terminal_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "rank-1.txt"
    with RunLog(None, rank_log_path=path, life=3):
        _speak()
    assert [line.split(" ", 2)[2] for line in path.read_text().splitlines()] == [
        "INFO hello",
        "WARNING careful",
        "INFO numbers",
    ]
    assert capsys.readouterr().err == "careful\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


class _OfTheUser(Exception):
    """Says all in its message."""


def _fail(kind: type[Exception]) -> None:
    raise kind("in vain")


@pytest.mark.parametrize(("kind", "has_stack"), [(ZeroDivisionError, True), (_OfTheUser, False)])
def test_an_error_is_in_the_files_and_not_on_the_terminal(
    tmp_path: Path, kind: type[Exception], has_stack: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = tmp_path / "log.txt", tmp_path / "rank-0.txt"
    with pytest.raises(kind), RunLog(paths[0], rank_log_path=paths[1], plain_errors=(_OfTheUser,)):
        _fail(kind)
    for path in paths:
        first, *stack = path.read_text().splitlines()
        assert first.endswith(" ERROR ended: in vain")
        assert any("in _fail" in line for line in stack) == has_stack == bool(stack)
    assert capsys.readouterr().err == ""


def test_a_run_that_ends_well_says_nothing_of_its_end(tmp_path: Path) -> None:
    with RunLog(tmp_path / "log.txt"):
        _speak()
    assert "ended" not in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("which", ["log_path", "rank_log_path"])
def test_a_log_that_cannot_be_opened_is_said_once_and_ends_nothing(
    tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full, or lost on this rank's node: what must be kept fails elsewhere, with a reason."""
    (tmp_path / "file").write_text("in place of a folder")
    paths = {"log_path": tmp_path / "log.txt", "rank_log_path": tmp_path / "rank-0.txt"}
    paths[which] = tmp_path / "file" / "log.txt"
    with RunLog(**paths):
        _speak()
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("a log cannot be written: ") and str(tmp_path / "file") in first
    assert rest == ["hello", "careful", "numbers"]
    (written,) = (path for path in paths.values() if path.parent == tmp_path)
    assert "a log cannot be written" in written.read_text() and "hello" in written.read_text()
