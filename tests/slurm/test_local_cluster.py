"""The local cluster itself: it comes, runs jobs, breaks as told, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.host import ClusterError, HostProcess, all_processes, find_process, poll
from tests.slurm.local_cluster import LocalCluster

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


def test_a_requeued_job_starts_again_soon(cluster: LocalCluster, tmp_path: Path) -> None:
    job = tmp_path / "job.sh"
    job.write_text(REQUEUE_ONCE)
    job_id = cluster.sbatch("--requeue", "--open-mode=append", str(job), cwd=tmp_path)
    cluster.wait_for(job_id, "COMPLETED", timeout_seconds=40)
    starts = [int(line) for line in cluster.log(job_id).read_text().splitlines() if line.isdigit()]
    assert cluster.restarts(job_id) == 1
    wait_seconds = cluster.settings.requeue_wait_seconds
    assert wait_seconds <= starts[1] - starts[0] <= wait_seconds + 5


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
    other = make_cluster(nodes=1, cpus_per_node=4)
    jobs = [
        (each, each.sbatch("--wrap", "hostname -I; nproc", cwd=tmp_path / name))
        for each, name in _folders(cluster, other, tmp_path)
    ]
    outputs = []
    for each, job_id in jobs:
        each.wait_for(job_id, "COMPLETED", timeout_seconds=20)
        outputs.append(each.log(job_id).read_text())
    assert outputs[0] != outputs[1], "both jobs ran on one node"
    assert other.job(jobs[1][1])["NodeList"] == "node1"
    assert cluster.node_state("node2") == "IDLE"


def _folders(cluster: LocalCluster, other: LocalCluster, tmp_path: Path) -> list[tuple[LocalCluster, str]]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    return [(cluster, "one"), (other, "other")]


def test_files_and_shared_memory_of_one_node_only(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster()
    cluster.run_on("node1", ["touch", "/dev/shm/here"])
    cluster.mount_tmpfs("node1", tmp_path / "disk", size_mib=1)
    cluster.run_on("node1", ["touch", str(tmp_path / "disk" / "here")])
    look = f"ls /dev/shm/here {tmp_path}/disk/here 2>/dev/null; df --output=size {tmp_path}/disk | tail -n 1"
    seen = []
    for node in cluster.nodes:
        job_id = cluster.sbatch(f"--nodelist={node}", "--wrap", look, cwd=tmp_path)
        cluster.wait_for(job_id, "COMPLETED", timeout_seconds=20)
        seen.append(cluster.log(job_id).read_text().split())
    assert seen[0] == ["/dev/shm/here", f"{tmp_path}/disk/here", "1024"]
    assert len(seen[1]) == 1 and int(seen[1][0]) > 1024
    assert not Path("/dev/shm/here").exists() and list((tmp_path / "disk").iterdir()) == []


def test_faults_of_nodes_and_their_ends(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(nodes=3, slurmd_timeout_seconds=2)
    job_id = cluster.sbatch("--no-requeue", "--nodelist=node3", "--wrap", "sleep 300", cwd=tmp_path)
    cluster.wait_until(lambda: _sleeper(cluster, "node3") is not None, 20, "the job to start")
    orphan = _sleeper(cluster, "node3")
    assert orphan is not None and orphan.environment["SLURM_JOB_ID"] == str(job_id)
    cluster.cut("node1")
    cluster.kill_node("node2")
    cluster.kill_slurmd("node3")
    assert cluster.run_on("node1", ["hostname"]).stdout.strip() == "node1", "a cut node is alive"
    assert cluster.processes_on("node2") == []
    for node in cluster.nodes:
        cluster.wait_for_node(node, {"DOWN", "DOWN*"}, timeout_seconds=40)
    assert cluster.state(job_id) == "NODE_FAIL"
    assert find_process(orphan.pid) == orphan, "without slurmd nobody ends the job's processes"
    cluster.heal("node1")
    cluster.resume("node1")
    cluster.start_node("node2")
    cluster.start_slurmd("node3")
    for node in cluster.nodes:
        cluster.wait_for_node(node, "IDLE", timeout_seconds=30)
    cluster.wait_until(lambda: _sleeper(cluster, "node3") is None, 20, "slurmd to end the orphan")


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
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60
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
