"""Before any rank trains, the health check names the node, what it found, the rule and the fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.local_cluster import LocalCluster
from tests.slurm.training_jobs import TrainingJob, train_job
from tests.support.tiny_recipe import tiny_world

pytestmark = pytest.mark.timeout(120)

FOREIGN = "/dev/shm/foreign"
"""A folder that only one node has."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def refused(job: TrainingJob) -> list[str]:
    """The lines of the health check that stopped a job before any rank began, and did not start it again."""
    job.wait_for_end("FAILED")
    assert job.lives == [] and job.step == 0, "a rank began"
    assert "the run did not begin" in job.output and job.cluster.restarts(job.id) == 0
    assert "Traceback" not in job.output, job.output
    return [line for line in job.output.splitlines() if line.startswith("error: ")]


def test_another_version_of_a_package_on_one_node(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\\nName: safetensors\\nVersion: 0.0.1\\n"
    folder = f"{FOREIGN}/safetensors-0.0.1.dist-info"
    cluster.run_on("node2", ["sh", "-c", f"mkdir -p {folder} && printf '{metadata}' > {folder}/METADATA"])
    job = train_job(cluster, tmp_path / "run", world, 5, nodes=2, env={"PYTHONPATH": FOREIGN})
    (line,) = refused(job)
    for word in ("node2", "safetensors", "0.0.1", "node1"):
        assert word in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=1m", ("No space left", "1 GiB")),
        ("size=8m,ro", ("read-only",)),
    ],
    ids=["full", "unwritable"],
)
def test_a_run_folder_that_one_node_cannot_write(
    cluster: LocalCluster, world: Path, tmp_path: Path, options: str, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    cluster.run_on("node2", ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
    try:
        lines = refused(train_job(cluster, folder, world, 5, nodes=2))
    finally:
        cluster.run_on("node2", ["umount", str(folder)])
    assert all("node2" in line and str(folder) in line for line in lines)
    assert any(word.lower() in line.lower() for line in lines for word in words), lines


@pytest.mark.drill
def test_a_run_folder_that_the_nodes_do_not_share(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    cluster.run_on("node2", ["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(folder)])
    try:
        (line,) = refused(train_job(cluster, folder, world, 5, nodes=2))
    finally:
        cluster.run_on("node2", ["umount", str(folder)])
    assert "node2" in line and str(folder) in line and "share" in line


def test_a_request_with_too_few_gpus(make_cluster: Callable[..., LocalCluster], world: Path, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=1, fake_gpus_per_node=1)
    env = {"SAMA_MEGA_TASKS_PER_NODE": "2"}
    job = train_job(cluster, tmp_path / "run", world, 5, sbatch=("--gpus-per-node=1", "--exclusive"), env=env)
    lines = refused(job)
    assert any("node1" in line and "--gpus-per-node=2" in line for line in lines), lines


def test_a_recipe_that_needs_more_ranks_than_the_job_has(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    job = train_job(cluster, tmp_path / "run", world, 5, parallel__tensor=2)
    (line,) = refused(job)
    for word in ("at least 2 ranks (parallel.tensor", "the job has 1 task on 1 node", "--gpus-per-node=8"):
        assert word in line
