"""The local cluster itself: it comes, runs jobs, breaks as told, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.host import ClusterError, HostProcess, all_processes, find_process, poll, run_command
from tests.slurm.local_cluster import LocalCluster

REPOSITORY = Path(__file__).parents[2]
MakeCluster = Callable[..., LocalCluster]

ALL_REDUCE = """
import socket
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
value = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(value)
print(socket.gethostname(), "has", value.item())
dist.destroy_process_group()
"""
RUN_ON_TWO_NODES = """#!/bin/bash
export MASTER_ADDR=node1 MASTER_PORT=29555 WORLD_SIZE=2
srun --ntasks-per-node=1 bash -c 'RANK=$SLURM_PROCID exec "$0" "$1"' {python} {script}
"""
REQUEUE_ONCE = """#!/bin/bash
date +%s
if [[ -z $SLURM_RESTART_COUNT ]]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi
"""
SAYS_WHO_HEARS = """#!/bin/bash
trap 'echo batch' USR1
srun bash -c 'trap "echo step" USR1; echo up; while true; do sleep 0.1; done' &
while true; do wait; done
"""
ABANDONED = """
import os, signal, sys, time
from pathlib import Path
from tests.slurm.local_cluster import LocalCluster

cluster = LocalCluster(Path(sys.argv[1]))
cluster.up()
print(cluster.environment["SLURM_CONF"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Broken:
    """A cluster with one fault per node, and a job that is requeued on the fourth."""

    cluster: LocalCluster
    cut: str
    without_power: str
    without_slurmd: str
    job_without_slurmd: int
    requeued_job: int


@pytest.fixture(scope="module", autouse=True)
def broken(slurm_here: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    """Breaks at the start of this file what its last tests look at: slurmctld takes seconds to notice."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "job.sh").write_text(REQUEUE_ONCE)
    with LocalCluster(folder, nodes=4, slurmd_timeout_seconds=3) as cluster:
        cut, without_power, without_slurmd, healthy = cluster.nodes
        job_id = cluster.sbatch("--no-requeue", f"--nodelist={without_slurmd}", "--wrap", "sleep 300", cwd=folder)
        requeued = [f"--nodelist={healthy}", "--requeue", "--open-mode=append", str(folder / "job.sh")]
        requeued_job = cluster.sbatch(*requeued, cwd=folder)
        cluster.wait_until(lambda: _sleeper(cluster, without_slurmd) is not None, 20, "the job to start")
        cluster.run_on(without_power, ["touch", "/dev/shm/here"])
        cluster.cut(cut)
        cluster.kill_node(without_power)
        cluster.kill_slurmd(without_slurmd)
        yield Broken(cluster, cut, without_power, without_slurmd, job_id, requeued_job)


def test_a_number_that_another_container_uses_is_left_alone(slurm_here: None) -> None:
    claim = "from tests.slurm.registry import claim_slot; slot = claim_slot(); print(slot.number); slot.release()"
    script = [
        "mount -t tmpfs none /run",
        "mount -t sysfs none /sys",
        "ip link add samaslurm0 type bridge",
        f"{sys.executable} -c '{claim}'",
        "ls /sys/class/net",
    ]
    command = ["unshare", "--net", "--mount", "bash", "-c", " && ".join(script)]
    answer = run_command(command, environment={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    words = answer.stdout.split()
    assert words[0] == "1"
    assert "samaslurm0" in words


def test_a_job_runs_gloo_on_two_nodes(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "all_reduce.py").write_text(ALL_REDUCE)
    job = tmp_path / "job.sh"
    job.write_text(RUN_ON_TWO_NODES.format(python=sys.executable, script=tmp_path / "all_reduce.py"))
    job_id = cluster.sbatch("--nodes=2", str(job), cwd=tmp_path)
    cluster.wait_for(job_id, "COMPLETED", timeout_seconds=60)
    assert sorted(cluster.log(job_id).read_text().splitlines()) == ["node1 has 3.0", "node2 has 3.0"]
    assert cluster.exit_code(job_id) == 0


def test_a_failed_job_is_told_at_once_with_its_output(cluster: LocalCluster, tmp_path: Path) -> None:
    job_id = cluster.sbatch("--wrap", "echo the reason; exit 3", cwd=tmp_path)
    with pytest.raises(ClusterError, match=f"job {job_id} is FAILED, not COMPLETED(?s:.*)the reason"):
        cluster.wait_for(job_id, "COMPLETED", timeout_seconds=30)
    assert cluster.exit_code(job_id) == 3


def test_signals_reach_the_batch_shell_or_the_step(cluster: LocalCluster, tmp_path: Path) -> None:
    job = tmp_path / "job.sh"
    job.write_text(SAYS_WHO_HEARS)
    job_id = cluster.sbatch(str(job), cwd=tmp_path)
    log = tmp_path / f"slurm-{job_id}.out"
    cluster.wait_until(lambda: log.exists() and "up" in log.read_text(), 20, "the step to start")
    cluster.signal(job_id, "USR1", batch=True)
    cluster.wait_until(lambda: "batch" in log.read_text(), 10, "the batch shell to hear")
    assert "step" not in log.read_text()
    cluster.signal(f"{job_id}.0", "USR1")
    cluster.wait_until(lambda: "step" in log.read_text(), 10, "the step to hear")
    assert log.read_text().count("batch") == 1
    cluster.cancel(job_id)
    assert cluster.wait_for(job_id, "CANCELLED", 20) == "CANCELLED"


def test_fake_gpus_are_granted(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=1, fake_gpus_per_node=3)
    job_id = cluster.sbatch(
        "--gpus-per-node=2", "--wrap", "echo $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES", cwd=tmp_path
    )
    cluster.wait_for(job_id, "COMPLETED", timeout_seconds=20)
    assert cluster.log(job_id).read_text().split() == ["2", "0,1"]
    with pytest.raises(ClusterError, match="node configuration is not available"):
        cluster.sbatch("--gpus-per-node=4", "--wrap", "true", cwd=tmp_path)


def test_two_clusters_live_side_by_side(cluster: LocalCluster, make_cluster: MakeCluster, tmp_path: Path) -> None:
    other = make_cluster(nodes=1)
    names = {"one": cluster, "other": other}
    jobs = {
        name: each.sbatch("--nodelist=node1", f"--output={name}", "--wrap", "hostname -I", cwd=tmp_path)
        for name, each in names.items()
    }
    for name, each in names.items():
        each.wait_for(jobs[name], "COMPLETED", timeout_seconds=20)
    assert (tmp_path / "one").read_text() != (tmp_path / "other").read_text(), "both jobs ran on one node"


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(make_cluster: MakeCluster) -> None:
    before = _descendants(os.getpid())
    with pytest.raises(ClusterError, match=r"the cluster does not start(?s:.*)CPUs value \(-1\) is less than zero"):
        make_cluster(cpus_per_node=-1)
    assert _descendants(os.getpid()) == before


def test_files_and_shared_memory_of_one_node_only(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    memory, disk = Path(f"/dev/shm/sama-mega-test-{os.getpid()}"), tmp_path / "disk"
    cluster.run_on("node1", ["touch", str(memory)])
    cluster.mount_tmpfs("node1", disk, size_mib=1)
    cluster.run_on("node1", ["touch", str(disk / "here")])
    look = f"ls {memory} {disk}/here 2>/dev/null; df --output=size {disk} | tail -n 1"
    seen = []
    for node in cluster.nodes:
        job_id = cluster.sbatch(f"--nodelist={node}", "--wrap", look, cwd=tmp_path)
        cluster.wait_for(job_id, "COMPLETED", timeout_seconds=20)
        seen.append(cluster.log(job_id).read_text().split())
    assert seen[0] == [str(memory), f"{disk}/here", "1024"]
    assert len(seen[1]) == 1 and int(seen[1][0]) > 1024
    assert not memory.exists()
    assert list(disk.iterdir()) == []


def test_a_cut_node_lives_and_is_down_until_healed(broken: Broken) -> None:
    cluster, node = broken.cluster, broken.cut
    assert cluster.run_on(node, ["hostname"]).stdout.strip() == node
    cluster.wait_for_node(node, "DOWN*", timeout_seconds=60)
    cluster.heal(node)
    cluster.resume(node)
    cluster.wait_for_node(node, "IDLE", timeout_seconds=30)


def test_a_node_without_power_is_down_until_started(broken: Broken) -> None:
    cluster, node = broken.cluster, broken.without_power
    assert cluster.processes_on(node) == []
    with pytest.raises(ClusterError, match=f"{node} is off"):
        cluster.run_on(node, ["true"])
    cluster.wait_for_node(node, "DOWN*", timeout_seconds=60)
    cluster.start_node(node)
    cluster.wait_for_node(node, "IDLE", timeout_seconds=30)
    assert cluster.run_on(node, ["ls", "/dev/shm"]).stdout == "", "shared memory outlived the power"


def test_without_slurmd_the_tasks_live_on(broken: Broken) -> None:
    cluster, node = broken.cluster, broken.without_slurmd
    cluster.wait_for_node(node, "DOWN*", timeout_seconds=60)
    assert cluster.state(broken.job_without_slurmd) == "NODE_FAIL"
    orphan = _sleeper(cluster, node)
    assert orphan is not None
    assert orphan.environment["SLURM_JOB_ID"] == str(broken.job_without_slurmd)
    cluster.start_slurmd(node)
    cluster.wait_for_node(node, "IDLE", timeout_seconds=30)
    cluster.wait_until(lambda: _sleeper(cluster, node) is None, 20, "slurmd to end the orphan")


def test_a_requeued_job_starts_again_soon(broken: Broken) -> None:
    cluster, job_id = broken.cluster, broken.requeued_job
    cluster.wait_for(job_id, "COMPLETED", timeout_seconds=60)
    starts = [int(line) for line in cluster.log(job_id).read_text().splitlines() if line.isdigit()]
    assert cluster.restarts(job_id) == 1
    wait_seconds = cluster.settings.requeue_wait_seconds
    assert wait_seconds <= starts[1] - starts[0] <= wait_seconds + 10


def test_down_leaves_nothing(make_cluster: MakeCluster, tmp_path: Path) -> None:
    mounts, others = Path("/proc/self/mountinfo").read_text(), _descendants(os.getpid())
    cluster = make_cluster()
    job_id = cluster.sbatch("--nodes=2", "--wrap", "setsid sleep 300 & srun sleep 300", cwd=tmp_path)
    cluster.wait_until(lambda: _sleeper(cluster, "node2") is not None, 20, "the step to start")
    state_folder = Path(cluster.environment["SLURM_CONF"]).parent
    processes, interfaces = _descendants(os.getpid()) - others, _interfaces(state_folder)
    assert {"munged", "slurmctld", "slurmd", "slurmstepd", "sleep", "unshare"} <= {
        process.name for process in processes
    }
    assert len(interfaces) == 3, "a bridge, and a link per node"
    cluster.down()
    assert [process for process in processes if find_process(process.pid) == process] == []
    assert _interfaces(state_folder) == []
    assert not state_folder.exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert f"JobId={job_id}" in (cluster.logs / "slurmctld.log").read_text(), "the logs stay"


def test_the_next_cluster_cleans_up_after_a_killed_test_run(make_cluster: MakeCluster, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ABANDONED, str(tmp_path)]
    killed = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state_folder = Path(killed.stdout.strip()).parent
    left = [process for process in all_processes() if str(state_folder) in process.command]
    assert len(left) >= 4, "the killed run left no cluster to clean up"
    make_cluster(nodes=1)
    assert poll(lambda: [p for p in left if find_process(p.pid) == p and p.state != "Z"] == [], 10)


def _sleeper(cluster: LocalCluster, node: str) -> HostProcess | None:
    found = [process for process in cluster.processes_on(node) if process.name == "sleep"]
    return found[0] if found else None


def _descendants(pid: int) -> set[HostProcess]:
    children: dict[int, list[HostProcess]] = {}
    for process in all_processes():
        children.setdefault(process.parent_pid, []).append(process)
    found, waiting = [], [pid]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += [process.pid for process in born]
    return set(found)


def _interfaces(state_folder: Path) -> list[str]:
    return [name for name in os.listdir("/sys/class/net") if name.startswith(f"samaslurm{state_folder.name}")]
