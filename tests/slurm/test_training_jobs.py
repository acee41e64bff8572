"""`sbatch slurm/stage0.sh` on a real Slurm: trains, stops and goes on, ends what hangs, leaves nobody behind."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.slurm.local_cluster import LocalCluster
from tests.slurm.training_jobs import START_SECONDS, TrainingJob, loss_curve, train_job
from tests.support.tiny_recipe import REPOSITORY, TINY, assert_bitwise_equal, newest_checkpoint, tiny_world

pytestmark = pytest.mark.timeout(300)

STEPS = 80
TWO_NODES = {"nodes": 2, "parallel__tensor": 2, "checkpoint__every": 30, "checkpoint__keep": 9}
MOST_START_SECONDS = 25.0
"""From the start of the job to the end of its first step, on two CPU nodes."""
GENTLE = 1e-4
"""Losses of one run in two layouts drift apart by rounding; after some steps by this, relatively, at most."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture(scope="module")
def uninterrupted(cluster: LocalCluster, world: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A run with tensor parallelism across two nodes that nothing happens to."""
    job = train_job(cluster, tmp_path_factory.mktemp("jobs") / "uninterrupted", world, STEPS, **TWO_NODES)
    job.wait_for_end()
    return job


def assert_like(job: TrainingJob, truth: TrainingJob) -> None:
    """Every loss, every sample and every tensor of the end as in a run that was left alone."""
    from sama_mega.parallel.checkpoint_io import read_plain

    assert [row["step"] for row in job.rows] == list(range(1, STEPS + 1))
    assert job.rows == truth.rows
    assert_bitwise_equal(read_plain(newest_checkpoint(job.folder)), read_plain(newest_checkpoint(truth.folder)))


def test_the_line_as_typed_trains_saves_and_tracks(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    """`sbatch slurm/stage0.sh` with nothing else, where the demo's recipe is a tiny one and its clips are there."""
    (tmp_path / "slurm").symlink_to(REPOSITORY / "slurm")
    shutil.copytree(world, tmp_path / "runs/demo/world")
    (tmp_path / "recipes").mkdir()
    _write_tiny_demo_recipe(tmp_path / "recipes/demo_stage0.yaml")
    number = cluster.sbatch("slurm/stage0.sh", cwd=tmp_path, env={"SAMA_MEGA_PYTHON": sys.executable})
    job = TrainingJob(cluster, number, tmp_path / "runs/demo_stage0")
    job.wait_for_end()
    assert job.saved_steps == [6] and [life.reason for life in job.lives] == ["finished"]
    assert job.lives[0].num_ranks == 2 and job.lives[0].job == str(job.id)
    with sqlite3.connect(tmp_path / "runs/mlflow.db") as database:
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
        assert database.execute("select max(step) from metrics where key = 'loss'").fetchone() == (6,)


def test_two_nodes_that_share_every_matrix_have_the_losses_of_one(
    cluster: LocalCluster, world: Path, tmp_path: Path, uninterrupted: TrainingJob
) -> None:
    one = train_job(cluster, tmp_path / "one", world, STEPS)
    one.wait_for_end()
    assert uninterrupted.lives[0].nodes == ("node1", "node2") and one.lives[0].num_ranks == 1
    assert [row["sample_digest"] for row in one.rows] == [row["sample_digest"] for row in uninterrupted.rows]
    assert loss_curve(one.rows) == pytest.approx(loss_curve(uninterrupted.rows), rel=GENTLE)


def test_the_first_step_comes_soon(uninterrupted: TrainingJob) -> None:
    seconds = uninterrupted.lives[0].startup_seconds
    assert seconds is not None
    names = ["launch", "health check", "Python", "imports", "ranks meet", "manifests", "model and data", "first step"]
    assert list(seconds) == names
    assert sum(seconds.values()) < MOST_START_SECONDS, seconds


def test_a_signal_saves_requeues_and_the_next_life_goes_on(
    cluster: LocalCluster, world: Path, tmp_path: Path, uninterrupted: TrainingJob
) -> None:
    job = train_job(cluster, tmp_path / "run", world, STEPS, **TWO_NODES)
    job.wait_for_step(20)
    cluster.signal(job.id, "USR1", batch=True)
    cluster.signal(job.id, "USR1", batch=True)  # a second one changes nothing
    job.wait_for_end()
    first, second = job.lives
    assert (first.reason, first.message) == ("stopped", "told to stop by SIGUSR1")
    assert second.reason == "finished" and second.restarts == 1
    # The step of the stop was saved on top of the regular ones, and the next life began there.
    assert first.last_step == second.start_step and first.last_step in job.saved_steps
    assert_like(job, uninterrupted)


def test_a_rank_that_stops_ends_the_step_with_everybodys_stacks(
    cluster: LocalCluster, world: Path, tmp_path: Path, uninterrupted: TrainingJob
) -> None:
    job = train_job(cluster, tmp_path / "run", world, STEPS, **TWO_NODES, train__hang_seconds=4)
    job.wait_for_step(20)
    (pid,) = job.ranks_on("node2")
    os.kill(pid, signal.SIGSTOP)
    job.wait_for_life(2)
    stacks = tmp_path / "run/stacks/life-0001"
    assert sorted(path.name for path in stacks.iterdir()) == ["rank-00000.txt", "rank-00001.txt"]
    for path in stacks.iterdir():
        assert "sama_mega/train/loop.py" in path.read_text()
    assert "none yet from rank 1" in job.output
    job.wait_for_end()
    assert [life.reason for life in job.lives] == ["hung", "finished"]
    assert cluster.restarts(job.id) == 1
    assert_like(job, uninterrupted)


def test_a_rank_that_dies_ends_the_step_within_seconds(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    job = train_job(cluster, tmp_path / "run", world, 100_000, **TWO_NODES)
    job.wait_for_step(35)
    (pid,) = job.ranks_on("node1")
    os.kill(pid, signal.SIGKILL)
    cluster.wait_until(lambda: not job.ranks(), 10, "the other rank to end")
    job.wait_for_life(2)
    assert job.lives[0].reason == "killed" and "the job step ended with status" in job.lives[0].message
    assert job.lives[1].start_step == 30


def test_scancel_saves_once_and_leaves_nobody(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    job = train_job(cluster, tmp_path / "run", world, 100_000, **TWO_NODES)
    job.wait_for_step(35)
    cluster.signal(job.id, "USR1", batch=True)
    cluster.cancel(job.id)
    cluster.wait_for(job.id, "CANCELLED", START_SECONDS)
    cluster.wait_until(lambda: not job.ranks() and not cluster.jobs_alive(), START_SECONDS, "the job to be gone")
    (life,) = job.lives
    assert life.reason == "stopped"
    assert job.saved_steps == [30, life.last_step]
    assert not list((job.folder / "checkpoints").glob(".*"))


def test_a_second_job_does_not_take_over_a_run_that_trains(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    first = train_job(cluster, tmp_path / "run", world, 100_000)
    first.wait_for_step(5)
    second = train_job(cluster, tmp_path / "run", world, 100_000)
    second.wait_for_end("FAILED")
    assert f"job {first.id} on {first.lives[0].nodes[0]} still trains in {tmp_path}/run" in second.output
    assert len(first.lives) == 1 and cluster.state(first.id) == "RUNNING"


def test_what_is_wrong_with_the_input_is_said_once_and_not_tried_again(
    cluster: LocalCluster, world: Path, tmp_path: Path
) -> None:
    job = train_job(cluster, tmp_path / "run", world, STEPS, nodes=2, data__manifest=str(tmp_path / "none.jsonl"))
    job.wait_for_end("FAILED")
    assert job.output.count("none.jsonl: the manifest does not exist") == 1, "once, whatever the number of ranks"
    assert "Traceback" not in job.output and cluster.exit_code(job.id) in (1, 2)
    assert cluster.restarts(job.id) == 0 and job.lives == []


def _write_tiny_demo_recipe(path: Path) -> None:
    from sama_mega.config import load_recipe, recipe_to_yaml

    changes = TINY | {"train.steps": 6, "track.mlflow": True}
    overrides = [f"{key}={'null' if value is None else str(value).lower()}" for key, value in changes.items()]
    path.write_text(recipe_to_yaml(load_recipe(REPOSITORY / "recipes/demo_stage0.yaml", overrides)))
