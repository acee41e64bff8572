"""What clusters do to runs: signals at every moment, crashed daemons, lost nodes, cut networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.local_cluster import LocalCluster
from tests.slurm.training_jobs import START_SECONDS, TrainingJob, loss_curve, train_job
from tests.support.tiny_recipe import tiny_world

pytestmark = [pytest.mark.drill, pytest.mark.timeout(400)]

STEPS, EVERY = 300, 20
TWO_NODES = {"nodes": 2, "checkpoint__every": EVERY, "checkpoint__keep": 99}
SLURMD_TIMEOUT_SECONDS = 12
NODE_LOSS_SECONDS = 120.0
"""For Slurm to miss a node, end the job there and start it again."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture
def fragile(make_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """A cluster that misses a silent node soon."""
    return make_cluster(slurmd_timeout_seconds=SLURMD_TIMEOUT_SECONDS)


def finish(job: TrainingJob, steps: int) -> None:
    """Waits for the end, which must be that of a run with nothing lost, repeated or skipped."""
    job.wait_for_end(timeout_seconds=NODE_LOSS_SECONDS)
    assert [row["step"] for row in job.rows] == list(range(1, steps + 1))
    assert job.lives[-1].reason == "finished" and job.saved_steps[-1] == steps


def assert_same_course(job: TrainingJob, truth: TrainingJob) -> None:
    """The samples and losses of another run, bit for bit, as far as both went."""
    steps = min(len(job.rows), len(truth.rows))
    assert steps and job.rows[:steps] == truth.rows[:steps]


@pytest.fixture(scope="module")
def truth(cluster: LocalCluster, world: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A run on two nodes that nothing happens to."""
    job = train_job(cluster, tmp_path_factory.mktemp("jobs") / "truth", world, STEPS, **TWO_NODES)
    job.wait_for_end()
    return job


# --- signals --------------------------------------------------------------------------------------------------------


def test_a_signal_during_a_save(cluster: LocalCluster, world: Path, tmp_path: Path, truth: TrainingJob) -> None:
    # A save in every step: whenever the signal comes, one is under way.
    changes = TWO_NODES | {"checkpoint__every": 1, "checkpoint__keep": 2}
    job = train_job(cluster, tmp_path / "run", world, 60, **changes)
    job.wait_for_step(8)
    checkpoints = tmp_path / "run/checkpoints"
    cluster.wait_until(lambda: any(checkpoints.glob(".saving-*")), START_SECONDS, "a save to be under way")
    cluster.signal(f"{job.id}.0", "USR1")
    cluster.signal(job.id, "USR1", batch=True)
    finish(job, 60)
    assert [life.reason for life in job.lives] == ["stopped", "finished"]
    assert job.lives[1].start_step == job.lives[0].last_step
    assert not list(checkpoints.glob(".*"))
    assert loss_curve(job.rows) == loss_curve(truth.rows[:60])


def test_a_signal_before_the_first_step(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    """It comes while the nodes are checked and Python starts; no rank may die of it, none may miss it for good."""
    # Ranks that were not listening yet hear it when it is sent again, within 5 seconds and so many steps.
    steps = 1000
    job = train_job(cluster, tmp_path / "run", world, steps, **TWO_NODES)
    cluster.wait_for(job.id, "RUNNING", START_SECONDS)
    cluster.wait_until(lambda: bool(job.output) or bool(job.ranks()), START_SECONDS, "the step to begin")
    cluster.signal(job.id, "USR1", batch=True)
    finish(job, steps)
    first, second = job.lives
    assert (first.reason, second.reason) == ("stopped", "finished") and cluster.restarts(job.id) == 1
    assert first.last_step < steps and second.start_step == first.last_step


def test_lives_that_save_nothing_come_to_an_end(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    """Each hangs before it can save anything: the job gives up instead of coming back for ever."""
    job = train_job(
        cluster,
        tmp_path / "run",
        world,
        20,
        **TWO_NODES,
        env={"SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS": "2"},
        train__hang_seconds=0.01,
    )
    job.wait_for_end("FAILED")
    assert [life.reason for life in job.lives] == ["hung", "hung"] and cluster.restarts(job.id) == 1
    assert "2 lives in a row saved nothing beyond step 0" in job.output


# --- lost nodes -----------------------------------------------------------------------------------------------------


def test_a_crashed_daemon_leaves_an_orphan_that_may_write_nothing(
    fragile: LocalCluster, world: Path, tmp_path: Path
) -> None:
    """The daemon dies and its rank lives on: for a while two lives of the run are at work."""
    # More than the orphan can make until Slurm has missed its node; the run is cancelled in the end.
    job = train_job(fragile, tmp_path / "run", world, 20_000, checkpoint__every=EVERY, checkpoint__keep=99)
    job.wait_for_step(2 * EVERY + 5)
    (node,) = job.lives[0].nodes
    (orphan,) = job.ranks_on(node)
    fragile.kill_slurmd(node)
    job.wait_for_life(2, NODE_LOSS_SECONDS)
    fragile.wait_until(lambda: orphan not in job.ranks_on(node), START_SECONDS, "the orphan to end")
    first, second = job.lives
    assert first.reason == "superseded" and second.nodes != first.nodes
    assert "life 1 ERROR" in job.log and "life 1 ends here and may write nothing more" in job.log
    # Nothing of the orphan's came after the newer life had its number.
    assert not [step for step in job.saved_steps if second.start_step < step <= first.last_step and step % EVERY]
    fragile.start_slurmd(node)
    job.wait_for_step(second.start_step + EVERY, life=2)
    steps = [row["step"] for row in job.rows]  # once: the run goes on meanwhile
    assert steps == list(range(1, len(steps) + 1))
    fragile.cancel(job.id)
    fragile.wait_for(job.id, "CANCELLED", START_SECONDS)


def test_a_node_that_loses_power_for_good(
    fragile: LocalCluster, world: Path, tmp_path: Path, truth: TrainingJob
) -> None:
    job = train_job(fragile, tmp_path / "run", world, STEPS, **TWO_NODES)
    job.wait_for_step(2 * EVERY + 5)
    before = job.step
    fragile.kill_node("node2")
    fragile.wait_for_node("node2", {"DOWN", "DOWN*"}, NODE_LOSS_SECONDS)
    fragile.start_node("node2")
    finish(job, STEPS)
    assert job.lives[1].start_step >= before - 2 * EVERY
    assert_same_course(job, truth)


def test_a_node_that_comes_back_before_it_is_missed(
    fragile: LocalCluster, world: Path, tmp_path: Path, truth: TrainingJob
) -> None:
    """Slurm does not notice and waits for its tasks; the job does not."""
    job = train_job(fragile, tmp_path / "run", world, STEPS, **TWO_NODES)
    job.wait_for_step(2 * EVERY + 5)
    before = job.step
    fragile.kill_node("node2")
    fragile.start_node("node2")
    job.wait_for_life(2, NODE_LOSS_SECONDS)
    assert job.lives[1].start_step >= before - 2 * EVERY
    finish(job, STEPS)
    assert_same_course(job, truth)


def test_a_network_that_is_cut_and_heals(
    fragile: LocalCluster, world: Path, tmp_path: Path, truth: TrainingJob
) -> None:
    job = train_job(fragile, tmp_path / "run", world, STEPS, **TWO_NODES)
    job.wait_for_step(2 * EVERY + 5)
    before, started = job.step, time.monotonic()
    fragile.cut("node2")
    fragile.wait_for_node("node2", {"DOWN", "DOWN*"}, NODE_LOSS_SECONDS)
    fragile.heal("node2")
    finish(job, STEPS)
    assert job.lives[1].start_step >= before - 2 * EVERY, time.monotonic() - started
    assert_same_course(job, truth)
