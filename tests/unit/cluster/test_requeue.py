"""Whether a job starts again: one case after the other, and what must hold in all of them."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_mega.cluster.requeue import MAX_LIVES_WITHOUT_PROGRESS, Verdict, judge, lives_without_progress
from sama_mega.train.lives import LifeRecord

JOB = "77"
NEAR_THE_LIMIT = "told to stop by SIGUSR1"
GOES_ON = [("stopped", NEAR_THE_LIMIT), ("failed", "RuntimeError: lost"), ("hung", "no step"), ("killed", "status 137")]
ENDS = [
    ("stopped", "told to stop by SIGTERM"),
    ("refused", "the disk is full"),
    ("superseded", "life 9 has begun"),
    ("interrupted", "by the keyboard"),
]


def life(number: int = 1, start_step: int = 0, reason: str = "failed", **values: Any) -> LifeRecord:
    """The first start of the job, unless told otherwise."""
    known = {"last_step": start_step + 5, "ended_at": "2026-01-01T00:00:00+00:00", "job": JOB, "restarts": number - 1}
    return LifeRecord(life=number, start_step=start_step, reason=reason, **{**known, **values})


def decide(
    *lives: LifeRecord, newest_step: int = 0, restarts: int | None = None, status: int = 1, **limit: int
) -> Verdict:
    started = lives[-1].restarts if restarts is None else restarts
    return judge(lives, newest_step, JOB, started, status, **limit)


# --- by the reason --------------------------------------------------------------------------------


def test_a_finished_run_is_done() -> None:
    verdict = decide(life(reason="finished"), newest_step=5)
    assert verdict == Verdict("done", "life 1 ended at step 5: finished")


@pytest.mark.parametrize(("reason", "message"), GOES_ON)
def test_what_may_fare_better_starts_again(reason: str, message: str) -> None:
    verdict = decide(life(reason=reason, message=message), newest_step=4)
    assert verdict == Verdict("requeue", f"life 1 ended at step 5: {reason}, {message}; it goes on from step 4")


@pytest.mark.parametrize(("reason", "message"), ENDS)
def test_what_would_end_the_same_way_does_not(reason: str, message: str) -> None:
    verdict = decide(life(reason=reason, message=message), newest_step=4)
    assert verdict.decision == "stop"
    assert verdict.message.startswith(f"life 1 ended at step 5: {reason}, {message}; it is not started again")


def test_a_preempted_job_starts_again_whatever_signal_said_so() -> None:
    stopped = life(reason="stopped", message="told to stop by SIGTERM")
    assert judge([stopped], 4, JOB, 0, 0, preempted=True).decision == "requeue"
    refused = life(reason="refused", message="the disk is full")
    assert judge([refused], 4, JOB, 0, 2, preempted=True).decision == "stop"
    # Before the run began there was nobody to listen: the signal ended the ranks.
    assert judge([], 0, JOB, 0, 143, preempted=True).decision == "requeue"


@pytest.mark.parametrize("lives", [[], [life(job="78")], [life(job=None)]])
def test_a_job_without_a_life_stops(lives: list[LifeRecord]) -> None:
    verdict = judge(lives, 0, JOB, 0, 2)
    assert verdict.decision == "stop" and "the run did not begin (status 2)" in verdict.message


@pytest.mark.parametrize(("restarts", "decision"), [(0, "requeue"), (2, "requeue"), (3, "stop")])
def test_ranks_that_died_of_the_notice_start_again(restarts: int, decision: str) -> None:
    assert judge([], 0, JOB, restarts, 128 + signal.SIGUSR1).decision == decision


@pytest.mark.parametrize(
    ("restarts", "status", "decision"),
    [
        (1, 143, "requeue"),  # a node that is sick now, a rank that was killed while it loaded
        (2, 1, "requeue"),
        (3, 1, "stop"),  # three in a row
        (1, 2, "stop"),  # the recipe was edited meanwhile: nobody but a person can help
    ],
)
def test_a_later_start_that_does_not_get_as_far_as_a_life_is_tried_again(
    restarts: int, status: int, decision: str
) -> None:
    verdict = decide(life(reason="failed", start_step=0), newest_step=4, restarts=restarts, status=status)
    assert verdict.decision == decision and "the run did not begin" in verdict.message


# --- by the progress ------------------------------------------------------------------------------


def test_so_many_lives_without_progress_are_enough() -> None:
    lives = [life(number) for number in range(1, MAX_LIVES_WITHOUT_PROGRESS + 1)]
    assert [decide(*lives[:count]).decision for count in range(1, len(lives) + 1)] == ["requeue", "requeue", "stop"]
    said = decide(*lives).message
    assert "3 lives in a row saved nothing beyond step 0" in said and "SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS" in said


@pytest.mark.parametrize(("limit", "decision"), [(1, "stop"), (2, "stop"), (3, "requeue")])
def test_the_limit_can_be_set(limit: int, decision: str) -> None:
    assert decide(life(1), life(2), max_without_progress=limit).decision == decision


def test_progress_of_the_last_life_starts_the_count_anew() -> None:
    lives = [life(1), life(2), life(3)]
    assert decide(*lives, newest_step=4).decision == "requeue"
    assert decide(*lives, life(4, start_step=4), life(5, start_step=4), newest_step=4).decision == "requeue"
    later = [life(number, start_step=4) for number in (4, 5, 6)]
    assert decide(*lives, *later, newest_step=4).decision == "stop"


def test_a_preemption_without_progress_counts_too() -> None:
    """Told to stop before the first step, again and again: the queue would do nothing else."""
    lives = [life(number, reason="stopped", message=NEAR_THE_LIMIT, last_step=0) for number in (1, 2, 3)]
    assert decide(*lives[:2]).decision == "requeue"
    assert decide(*lives).decision == "stop"


def test_lives_of_earlier_jobs_do_not_count() -> None:
    """Who submits a job again has looked."""
    earlier = [life(number, job="76") for number in (1, 2, 3)]
    assert decide(*earlier, life(4, restarts=0)).decision == "requeue"


@pytest.mark.parametrize(
    ("start_steps", "newest_step", "count"),
    [([], 0, 0), ([0], 0, 1), ([0], 4, 0), ([0, 4, 4], 4, 2), ([0, 4, 4], 8, 0), ([8, 4, 8], 8, 1)],
)
def test_lives_are_counted_back_from_the_newest(start_steps: list[int], newest_step: int, count: int) -> None:
    lives = [life(number, start_step) for number, start_step in enumerate(start_steps, start=1)]
    assert lives_without_progress(lives, newest_step) == count


# --- in every course of a job ---------------------------------------------------------------------

Course = list[tuple[tuple[str, str], int]]
ENDINGS = st.sampled_from([*GOES_ON, *ENDS, ("finished", "")])


def run_job(course: Course, limit: int) -> tuple[list[LifeRecord], list[int], list[Verdict]]:
    """Starts a job until it is not requeued; every life ends as drawn and saves so many steps before it does."""
    lives: list[LifeRecord] = []
    newest, verdicts = [0], list[Verdict]()
    for restarts, ((reason, message), saved_steps) in enumerate(course):
        lives.append(life(restarts + 1, newest[-1], reason, message=message))
        newest.append(newest[-1] + saved_steps)
        verdicts.append(judge(lives, newest[-1], JOB, restarts, 1, limit))
        if verdicts[-1].decision != "requeue":
            break
    return lives, newest, verdicts


@given(st.lists(st.tuples(ENDINGS, st.sampled_from([0, 0, 0, 5])), min_size=1, max_size=12), st.integers(1, 4))
def test_a_job_goes_on_as_long_as_it_may_and_no_longer(course: Course, limit: int) -> None:
    lives, newest, verdicts = run_job(course, limit)
    for count, verdict in enumerate(verdicts, start=1):
        ended = (lives[count - 1].reason, lives[count - 1].message)
        saved_nothing = newest[count] == newest[max(0, count - limit)] and count >= limit
        assert (verdict.decision == "done") == (ended[0] == "finished")
        assert (verdict.decision == "requeue") == (ended in GOES_ON and not saved_nothing)
        assert "\n" not in verdict.message


@given(st.lists(st.tuples(ENDINGS, st.integers(0, 2)), min_size=1, max_size=6), st.data())
def test_lives_of_other_jobs_change_nothing(course: Course, data: st.DataObject) -> None:
    lives, newest, verdicts = run_job(course, 2)
    mixed = list(lives)
    for number in range(data.draw(st.integers(0, 4))):
        other = life(100 + number, data.draw(st.integers(0, 9)), job=data.draw(st.sampled_from(["76", None])))
        mixed.insert(data.draw(st.integers(0, len(mixed))), replace(other, restarts=data.draw(st.integers(0, 3))))
    assert judge(mixed, newest[-1], JOB, len(lives) - 1, 1, 2) == verdicts[-1]
