"""Ranks that a command starts itself: exit statuses, environment, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sama_mega.parallel import launch
from sama_mega.parallel.launch import launch_ranks

# Stands for the real package: `-m sama_mega` finds the one in the working directory first.
FAKE_COMMAND = """
import os, sys, time
rank, action = os.environ["RANK"], sys.argv[1]
open(f"seen{rank}", "w").write(f"{os.environ['WORLD_SIZE']} {os.environ['LOCAL_RANK']} "
                               f"{os.environ['OMP_NUM_THREADS']} {os.getpid()} {' '.join(sys.argv[2:])}")
if action == "status":
    sys.exit(int(sys.argv[2 + int(rank)]))
if action == "fail_while_others_wait":
    if rank == "1":
        print("the reason")
        sys.exit(7)
    time.sleep(60)
if action == "die" and rank == "0":
    os.kill(os.getpid(), 9)
if action == "wait":
    time.sleep(60)
"""


@pytest.fixture
def command_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sama_mega").mkdir()
    (tmp_path / "sama_mega" / "__init__.py").touch()
    (tmp_path / "sama_mega" / "__main__.py").write_text(FAKE_COMMAND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch, "FAILURE_GRACE_SECONDS", 0.2)
    return tmp_path


def test_ranks_see_torchruns_variables(command_folder: Path) -> None:
    assert launch_ranks(2, ["status", "0", "0"]) == 0
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    for rank in range(2):
        assert (command_folder / f"seen{rank}").read_text().startswith(f"2 {rank} {threads} ")


@pytest.mark.parametrize(("statuses", "expected"), [((2, 2), 2), ((1, 0), 1), ((0, 3), 3), ((2, 5), 2)])
def test_exit_status_is_passed_on(command_folder: Path, statuses: tuple[int, int], expected: int) -> None:
    assert launch_ranks(2, ["status", *map(str, statuses)]) == expected


def test_killed_rank_counts_as_a_shell_would(command_folder: Path) -> None:
    assert launch_ranks(1, ["die"]) == 128 + signal.SIGKILL


def test_failed_rank_ends_the_others_and_is_quoted(command_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch_ranks(2, ["fail_while_others_wait"]) == 7
    assert "rank 1 failed:\nthe reason" in capfd.readouterr().err
    assert not _is_running(int((command_folder / "seen0").read_text().split()[3]))


def test_ranks_die_with_the_launcher(command_folder: Path) -> None:
    driver = command_folder / "driver.py"
    driver.write_text("from sama_mega.parallel.launch import launch_ranks\nlaunch_ranks(2, ['wait'])\n")
    repository = Path(launch.__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    # By file name from elsewhere, so that the driver itself imports the real package.
    elsewhere = command_folder / "elsewhere"
    elsewhere.mkdir()
    driver = driver.rename(elsewhere / "driver.py")
    launcher = subprocess.Popen([sys.executable, str(driver)], env=environment, cwd=command_folder)
    try:
        seen = [command_folder / f"seen{rank}" for rank in range(2)]
        _wait_until(lambda: all(path.exists() and len(path.read_text().split()) >= 4 for path in seen))
        ranks = [int(path.read_text().split()[3]) for path in seen]
        assert all(map(_is_running, ranks))
    finally:
        launcher.kill()
        launcher.wait()
    _wait_until(lambda: not any(map(_is_running, ranks)))


def _is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_until(condition: object, timeout_seconds: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def test_the_rank_that_met_the_error_is_heard_behind_one_that_lost_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 only sees the connection close; the traceback that matters is another rank's."""
    program = tmp_path / "sama_mega" / "__main__.py"
    program.parent.mkdir()
    program.write_text(
        "import os, sys, time\n"
        "rank = os.environ['RANK']\n"
        "time.sleep(0.5 * (rank == '0'))\n"
        "print('Traceback (most recent call last)', file=sys.stderr)\n"
        "print({'1': 'the reason', '0': 'silence', '2': 'Connection closed by peer'}[rank], file=sys.stderr)\n"
        "sys.exit(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launch_ranks(3, []) == 1
    said = capfd.readouterr().err
    assert "rank 1 failed:" in said and "the reason" in said and "rank 2 failed:" not in said
