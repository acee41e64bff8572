"""`sama-mega submit` on a real Slurm: chains, sweeps, and a copy of the code that later edits do not reach."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sama_mega.config import load_recipe
from tests.slurm.host import run_command
from tests.slurm.local_cluster import LocalCluster
from tests.slurm.training_jobs import TrainingJob
from tests.support.tiny_recipe import REPOSITORY, TINY, tiny_world

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def submit(cluster: LocalCluster, world: Path, root: Path, *arguments: str, **changes: Any) -> dict[str, Any]:
    """Submits both stages of the demo's recipe, tiny; returns what `--json` says."""
    values = TINY | {"train.steps": 6, "checkpoint.every": 3} | {k.replace("__", "."): v for k, v in changes.items()}
    del values["checkpoint.init_from"]
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    for stage, manifest in enumerate(("raw.jsonl", "pairs.jsonl")):
        overrides += [f"{stage}:train.run_folder={root}/stage{stage}", f"{stage}:data.manifest={world / manifest}"]
    command = [sys.executable, "-m", "sama_mega", "submit", str(REPOSITORY / "recipes/demo_stage0.yaml"), *overrides]
    output = run_command([*command, "--stages", "0,1", "--json", *arguments], environment=cluster.environment, cwd=root)
    report: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return report


def jobs_of(cluster: LocalCluster, report: dict[str, Any], root: Path) -> list[TrainingJob]:
    return [TrainingJob(cluster, int(job["job_id"]), root / f"stage{job['stage']}") for job in report["stages"]]


def test_stage_1_goes_on_from_stage_0(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    stage0, stage1 = jobs_of(cluster, submit(cluster, world, tmp_path), tmp_path)
    stage1.wait_for_end()
    assert cluster.state(stage0.id) == "COMPLETED"
    assert stage0.saved_steps == [3, 6] and stage1.saved_steps == [3, 6]
    assert f"weights of {tmp_path}/stage0/checkpoints/step-00000006" in stage1.log


def test_a_stage_0_that_fails_takes_stage_1_with_it(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    # Every step is skipped, so the run says that it is stalled and ends.
    report = submit(cluster, world, tmp_path, train__skip_loss_above=1e-6, train__max_skipped_steps=2)
    stage0, stage1 = jobs_of(cluster, report, tmp_path)
    stage0.wait_for_end("FAILED")
    assert "train.max_skipped_steps" in stage0.output and cluster.restarts(stage0.id) == 0
    cluster.wait_for(stage1.id, "CANCELLED", 30)
    assert not (tmp_path / "stage1/lives").exists()


@pytest.mark.drill
def test_a_sweep_trains_each_of_its_elements(cluster: LocalCluster, world: Path, tmp_path: Path) -> None:
    report = submit(cluster, world, tmp_path, "--sweep", "train.seed=3,4")
    cluster.wait_until(lambda: not cluster.jobs_alive(), 150, "the sweep to end")
    seeds = {}
    for stage in (0, 1):
        for folder in sorted((tmp_path / f"stage{stage}/sweep").iterdir()):
            assert (folder / "checkpoints/step-00000006").is_dir(), (folder, report)
            seeds[stage, folder.name] = load_recipe(folder / "recipe.yaml").train.seed
    assert sorted(seeds.values()) == [3, 3, 4, 4]
