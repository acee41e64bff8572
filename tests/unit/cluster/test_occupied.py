"""Two jobs for one run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_mega.cluster.occupied import occupied_by
from sama_mega.train.lives import LifeFile
from sama_mega.train.run_folder import RunFolder


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that answers with what its file holds."""
    answer = tmp_path / "answer"
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\ncase "$*" in *--jobs=7*) cat {answer};; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    answer.write_text("RUNNING\n")
    return answer


def a_life(tmp_path: Path, **values: object) -> LifeFile:
    life = LifeFile.claim(RunFolder.create(tmp_path / "run"), 30, {"job": "7", "nodes": ["gpu01", "gpu02"], **values})
    life.note()
    return life


def test_a_job_that_trains_there_is_named(tmp_path: Path, squeue: Path) -> None:
    a_life(tmp_path)
    said = occupied_by(tmp_path / "run", own_job="8")
    assert said == f"job 7 on gpu01, gpu02 still trains in {tmp_path}/run (step 30)"
    assert occupied_by(tmp_path / "run", own_job=None) == said


@pytest.mark.parametrize("state", ["", "PENDING\n", "COMPLETED\n"])
def test_a_job_that_is_over_or_waits_is_in_nobodys_way(tmp_path: Path, squeue: Path, state: str) -> None:
    a_life(tmp_path)
    squeue.write_text(state)
    assert occupied_by(tmp_path / "run", own_job="8") is None


def test_the_next_life_of_the_same_job_may_begin(tmp_path: Path, squeue: Path) -> None:
    """Its orphan may still be at work: that is what the fence is for."""
    a_life(tmp_path)
    assert occupied_by(tmp_path / "run", own_job="7") is None


def test_a_life_that_ended_has_left(tmp_path: Path, squeue: Path) -> None:
    a_life(tmp_path).end("stopped")
    assert occupied_by(tmp_path / "run", own_job="8") is None


def test_without_slurm_or_lives_nobody_is_known(tmp_path: Path, squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert occupied_by(tmp_path / "run", own_job="8") is None
    a_life(tmp_path)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert occupied_by(tmp_path / "run", own_job="8") is None


def test_a_life_outside_slurm_is_not_asked_for(tmp_path: Path, squeue: Path) -> None:
    a_life(tmp_path, job=None)
    assert occupied_by(tmp_path / "run", own_job="8") is None
