"""What becomes of a job, asked as the batch script asks: from a run folder as lives and saves leave it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sama_mega.checkpoint.saved_state import STATE_FILE
from sama_mega.commands.job_ended import LIMIT_VARIABLE, run
from sama_mega.config.errors import ConfigError
from sama_mega.train.lives import LifeFile, LifeRecord, read_lives
from sama_mega.train.run_folder import RunFolder
from tests.support.tiny_recipe import call_main, recipe_path

JOB = {"SLURM_JOB_ID": "77"}
SECOND_START = JOB | {"SLURM_RESTART_COUNT": "1"}


class Job:
    """A run folder, and the question."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = RunFolder.create(root / "run")
        self._capsys = capsys

    @property
    def arguments(self) -> tuple[str, list[str]]:
        return str(recipe_path(0)), [f"train.run_folder={self.folder.root}"]

    def live(self, start_step: int = 0, restarts: int = 0, job: str = "77") -> LifeFile:
        return LifeFile.claim(self.folder, start_step, {"job": job, "restarts": restarts})

    def save(self, step: int, complete: bool = True) -> None:
        checkpoint = self.folder.checkpoints / f"step-{step:08d}"
        checkpoint.mkdir()
        if complete:
            (checkpoint / STATE_FILE).touch()

    def ask(self, environ: Mapping[str, str] = JOB, status: int = 1) -> tuple[str, str]:
        """The decision, and why."""
        assert run(*self.arguments, status, environ) == 0
        captured = self._capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.out, captured.err.strip()

    def record(self, number: int) -> LifeRecord:
        return next(record for record in read_lives(self.folder) if record.life == number)


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path, capsys)


def test_a_preemption_is_told_on_the_command_line(
    job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    job.live().end("stopped", "told to stop by SIGTERM")
    recipe, overrides = job.arguments
    for options, decision in ([], "stop"), (["--preempted"], "requeue"):
        assert call_main("job-ended", "--status", "0", *options, recipe, *overrides) == 0
        assert capsys.readouterr().out == f"{decision}\n"


def test_a_finished_run_is_done(job: Job) -> None:
    job.live().end("finished")
    job.save(10)
    assert job.ask(status=0) == ("done\n", "life 1 ended at step 0: finished")


def test_a_run_that_was_told_to_stop_goes_on(job: Job) -> None:
    life = job.live()
    life.reached(6)
    life.end("stopped", "told to stop by SIGUSR1")
    job.save(6)
    decision, why = job.ask(status=0)
    assert decision == "requeue\n" and "ended at step 6: stopped" in why and "goes on from step 6" in why


def test_a_life_that_could_not_end_itself_is_ended_with_the_status(job: Job) -> None:
    job.live()
    job.save(4)
    decision, why = job.ask(status=137)
    assert decision == "requeue\n" and "killed, the job step ended with status 137" in why
    assert job.record(1).reason == "killed" and job.record(1).ended_at is not None


def test_a_life_that_ended_itself_keeps_its_own_reason(job: Job) -> None:
    job.live().end("hung", "no step for 900 s")
    before = job.folder.life_path(1).read_bytes()
    job.save(4)
    assert job.ask()[0] == "requeue\n"
    assert job.folder.life_path(1).read_bytes() == before


def test_lives_of_earlier_starts_are_ended_and_those_of_others_are_not(job: Job) -> None:
    """The node of an earlier start was lost, its batch script with it; another job runs beside this one."""
    job.live(job="76")
    job.live(restarts=0)
    job.live(restarts=1)
    assert job.ask(SECOND_START)[0] == "requeue\n"
    assert [job.record(number).reason for number in (1, 2, 3)] == [None, "killed", "killed"]


def test_the_script_of_an_earlier_start_does_not_touch_a_later_one(job: Job) -> None:
    """A node that was taken for lost comes back with it, when Slurm has started the job again elsewhere."""
    job.live(restarts=0)
    job.save(4)
    job.live(start_step=4, restarts=1)
    assert job.ask(JOB)[0] == "stop\n"
    assert [job.record(number).reason for number in (1, 2)] == ["killed", None]


def test_only_a_complete_checkpoint_is_progress(job: Job) -> None:
    for restarts in range(3):
        job.live(restarts=restarts).end("failed", "RuntimeError: lost")
    job.save(4, complete=False)
    last_start = JOB | {"SLURM_RESTART_COUNT": "2"}
    decision, why = job.ask(last_start)
    assert decision == "stop\n" and "3 lives in a row saved nothing beyond step 0" in why
    job.save(2)
    assert job.ask(last_start)[0] == "requeue\n"


@pytest.mark.parametrize(("limit", "decision"), [("1", "stop"), ("2", "requeue"), ("", "requeue")])
def test_the_limit_is_a_setting(job: Job, limit: str, decision: str) -> None:
    job.live()
    assert job.ask(JOB | {LIMIT_VARIABLE: limit})[0] == f"{decision}\n"


@pytest.mark.parametrize("limit", ["0", "-1", "three", "1.5", "²"])
def test_a_limit_that_is_none_is_refused(job: Job, limit: str) -> None:
    with pytest.raises(ConfigError, match=LIMIT_VARIABLE):
        run(*job.arguments, 1, JOB | {LIMIT_VARIABLE: limit})


def test_a_run_that_never_began_stops(tmp_path: Path, job: Job) -> None:
    job.folder = RunFolder(tmp_path / "absent")
    decision, why = job.ask(status=2)
    assert decision == "stop\n" and "did not begin (status 2)" in why
    assert not job.folder.root.exists()


def test_a_start_that_got_no_life_is_not_taken_for_the_one_before(job: Job) -> None:
    job.live().end("failed", "RuntimeError: lost")
    job.save(4)
    assert job.ask()[0] == "requeue\n"
    assert job.ask(SECOND_START, status=2)[0] == "stop\n"


def test_outside_a_job_it_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match="SLURM_JOB_ID is not set"):
        run(*job.arguments, 0, {})


def test_the_command_takes_the_job_s_arguments(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    recipe, overrides = job.arguments
    job.live()
    assert call_main("job-ended", "--status", 9, recipe, *overrides) == 0
    assert capsys.readouterr().out == "requeue\n"
    assert job.record(1).message == "the job step ended with status 9"
    assert call_main("job-ended", recipe, "train.run_folder=3.5.7", "no.such=1") == 2
    captured = capsys.readouterr()
    # The script takes what is printed for the decision.
    assert captured.out == "" and captured.err.startswith("error: ")
