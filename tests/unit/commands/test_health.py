"""`sama-mega health` as a user and as srun start it: one process, and several with Slurm's variables."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sama_mega.cluster.health.guest import Guest
from sama_mega.commands import health
from sama_mega.config.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPE = str(REPOSITORY / "recipes" / "demo_stage0.yaml")
PACKAGES = os.pathsep.join(str(REPOSITORY / folder) for folder in (".", "kernels", "data"))
TIMEOUT_SECONDS = 60
USR1_BIT = 1 << (signal.SIGUSR1 - 1)


@dataclass(frozen=True)
class Ended:
    """A process that ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in, away from any job that the tests themselves may run in."""
    for name in list(os.environ):
        if name.startswith(("SLURM", "SAMA_MEGA_", "MASTER_")) or name in (
            "RANK",
            "WORLD_SIZE",
            "CUDA_VISIBLE_DEVICES",
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def start_rank(
    rank: int, num_ranks: int, port: int, arguments: Sequence[str] = (), **variables: str
) -> subprocess.Popen[str]:
    """One task of `srun` on a node of its own; `variables` come on top, and `cwd` is where it runs."""
    cwd = variables.pop("cwd", None)
    environment = {
        **os.environ,
        "PYTHONPATH": PACKAGES,
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_TASKS": str(num_ranks),
        "SLURM_STEP_NODELIST": f"node[1-{num_ranks}]",
        "SLURM_STEP_TASKS_PER_NODE": f"1(x{num_ranks})",
        "SLURMD_NODENAME": f"node{rank + 1}",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "SAMA_MEGA_HEALTH_TIMEOUT_SECONDS": "30",
    }
    environment.update(
        {name: value.replace("PYTHONPATH", environment["PYTHONPATH"]) for name, value in variables.items()}
    )
    command = [sys.executable, "-m", "sama_mega", "health", RECIPE, *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(ranks: Sequence[subprocess.Popen[str]]) -> list[Ended]:
    ended = []
    try:
        for rank in ranks:
            out, err = rank.communicate(timeout=TIMEOUT_SECONDS)
            ended.append(Ended(rank.returncode, out, err))
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return ended


def run_ranks(*arguments: str, ranks: Sequence[Mapping[str, str]] = ({}, {}), **common: str) -> list[Ended]:
    """As many ranks as there are mappings, each with its own variables."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    started = [start_rank(rank, len(ranks), port, arguments, **{**common, **own}) for rank, own in enumerate(ranks)]
    return end(started)


def test_what_is_wrong_is_told_before_the_others_end(place: Path) -> None:
    """They end at a bad verdict, and srun then ends rank 0 too: it may have said nothing more by then."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    first = start_rank(0, 2, port, SAMA_MEGA_HEALTH_TIMEOUT_SECONDS="2")
    try:
        # A rank that came and hangs before it can report.
        hello = {"key": "job 4711 step 0 restart 0 of 2 ranks", "rank": 1, "node": "node2"}
        with Guest("localhost", port, hello, TIMEOUT_SECONDS) as guest:
            kinds = [guest.receive(TIMEOUT_SECONDS)["kind"] for _ in range(2)]
            first.kill()
        _, err = first.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        first.kill()
        first.wait()
    assert kinds == ["welcome", "verdict"]
    assert "node2: rank 1 came but did not report within 2 s" in err
    assert not list(place.rglob(".health-marker-*"))


def test_alone_on_a_workstation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.run(RECIPE, [], as_json=True) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[:-1]] == ["nodes", "run", "software", "healthy"]
    report = json.loads(out[-1])
    assert report["ok"] and report["status"] == 0 and report["errors"] == []
    assert report["nodes"][0]["versions"]["numpy"] and report["nodes"][0]["run_folder"]["free_gib"] > 0
    assert os.listdir(place) == []  # a look leaves nothing behind


def test_it_imports_no_torch(place: Path) -> None:
    code = (
        "import sys; from sama_mega.commands import health\n"
        f"status = health.run({RECIPE!r}, [])\n"
        "sys.exit(status or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": PACKAGES}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=True)


def test_a_threshold_that_is_not_met(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMA_MEGA_MIN_FREE_DISK_GIB", "1e9")
    assert health.run(RECIPE, ["train.run_folder=runs/y"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1].startswith("unhealthy  after 0.") and captured.out.endswith(" s: 1 error\n")
    assert (
        f"the run folder {place}/runs/y has " in captured.err and "SAMA_MEGA_MIN_FREE_DISK_GIB is 1e+09" in captured.err
    )


@pytest.mark.parametrize("override", ["train.stepz=1", "parallel.tensor=two"])
def test_a_wrong_recipe(place: Path, override: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert health.run(RECIPE, [override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and override.partition("=")[0] in line
    assert os.listdir(place) == []


def test_two_healthy_ranks(place: Path) -> None:
    first, other = run_ranks("--json")
    assert (first.status, other.status) == (0, 0), first.err + other.err
    assert (other.out, other.err, first.err) == ("", "", "")
    lines = first.out.splitlines()
    assert lines[0].startswith("nodes      node[1-2]: each 1 rank, ")
    assert lines[1].startswith(f"run folder {place}/runs/demo_stage0: ") and lines[1].endswith("the same on all nodes")
    assert lines[2].startswith("clocks     at most 0.0") and lines[4].startswith("healthy    after ")
    report = json.loads(lines[-1])
    assert [node["ranks"] for node in report["nodes"]] == [[0], [1]]
    assert report["clock_skew_seconds"] < 1 and report["bandwidth_gigabytes_per_second"] is None
    kept = json.loads((place / "runs/demo_stage0/health.json").read_text())
    assert kept["job"] == "job 4711 step 0 restart 0 of 2 ranks" and kept["nodes"] == report["nodes"]
    assert os.listdir(place / "runs/demo_stage0") == ["health.json"]


def test_another_package_version_on_one_node(place: Path) -> None:
    info = place / "newer" / "numpy-9.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    first, other = run_ranks(ranks=[{}, {"PYTHONPATH": f"{place}/newer:PYTHONPATH"}])
    assert (first.status, other.status) == (1, 1)
    (line,) = first.err.splitlines()
    assert line.startswith("error: node2: numpy is 9.9.9, on node1 it is ") and "--exclude=node2" in line
    assert other.err == ""
    assert not (place / "runs").exists()


def test_run_folders_that_are_not_the_same(place: Path) -> None:
    (place / "elsewhere").mkdir()
    first, other = run_ranks(ranks=[{}, {"cwd": str(place / "elsewhere")}], SAMA_MEGA_HEALTH_TIMEOUT_SECONDS="6")
    assert (first.status, other.status) == (1, 1)
    assert first.err.startswith(f"error: node2: the run folder {place}/elsewhere/runs/demo_stage0 does not exist: ")
    assert os.listdir(place / "elsewhere") == []


def test_too_few_gpus_in_the_request(place: Path) -> None:
    program = place / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aa, H100, 570.1, 81559, 81000, 0'\n")
    program.chmod(0o755)
    one_node = {"SLURMD_NODENAME": "node1", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_TASKS_PER_NODE": "2"}
    first, other = run_ranks(
        ranks=[{}, {"SLURM_LOCALID": "1"}],
        SLURM_GPUS_ON_NODE="1",
        PATH=f"{place}:{os.environ['PATH']}",
        **one_node,
    )
    assert (first.status, other.status) == (1, 1)
    assert first.err == (
        "error: node1: 2 ranks for 1 GPU; every rank must have one of its own: submit with --gpus-per-node=2, or start "
        "1 rank a node\n"
    )
    assert "nodes      node1: 2 ranks" in first.out and "1 x H100, 79 GiB free, driver 570.1" in first.out


def test_a_layout_that_the_ranks_cannot_form(place: Path) -> None:
    first, other = run_ranks("model.num_heads=8", "parallel.tensor=8")
    assert (first.status, other.status) == (2, 2)
    assert first.err == (
        "error: the recipe needs at least 8 ranks (parallel.tensor x context x pipeline: 8 x 1 x 1), the job has 2 "
        "tasks on 2 nodes without GPUs: submit with --gpus-per-node=8 (on CPUs: --ntasks-per-node=8)\n"
    )
    assert other.err == "" and not (place / "runs").exists()


def test_a_node_that_does_not_come(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    timeout = {"SAMA_MEGA_HEALTH_TIMEOUT_SECONDS": "1.5"}
    first, third = end([start_rank(rank, 3, port, **timeout) for rank in (0, 2)])
    assert (first.status, third.status) == (1, 1)
    assert first.err == (
        "error: node2: its rank did not come within 1.5 s (missing in all: rank 1 of 3): look for their own lines, and "
        "see slurmd and the network there, or leave it out with sbatch --exclude=node2\n"
    )


def test_rank_0_that_does_not_come(place: Path) -> None:
    (lost,) = end([start_rank(1, 2, 1, [], SAMA_MEGA_HEALTH_TIMEOUT_SECONDS="0.3")])
    assert lost.status == 1 and lost.out == ""
    assert lost.err.startswith("error: rank 1 on node2 could not reach rank 0 at localhost port 1 within 0.3 s: ")


def test_a_rank_of_an_earlier_life_is_turned_away(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    ranks = [start_rank(0, 2, port, SLURM_RESTART_COUNT="1"), start_rank(1, 2, port)]
    stray = ranks[1].communicate(timeout=TIMEOUT_SECONDS)
    assert ranks[1].returncode == 1
    assert "was turned away by rank 0 at localhost" in stray[1] and "restart 1 of 2 ranks, not job 4711" in stray[1]
    ranks.append(start_rank(1, 2, port, SLURM_RESTART_COUNT="1"))
    first, right = end([ranks[0], ranks[2]])
    assert (first.status, right.status) == (0, 0)
    assert first.err.startswith("warning: 127.0.0.1 port ") and "(node2) was turned away" in first.err


def test_the_notice_of_the_time_limit_ends_no_check(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    first = start_rank(0, 2, port)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not _ignored_signals(first.pid) & USR1_BIT and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGUSR1)
    assert [ended.status for ended in end([first, start_rank(1, 2, port)])] == [0, 0]


def _ignored_signals(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("SigIgn:")), 16)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SAMA_MEGA_RENDEZVOUS_FILE": "x"}, "meets at rank 0's TCP port and has none"),
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "x",
                "MASTER_PORT": "1",
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            },
            "which torchrun holds itself",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "99999"}, "MASTER_PORT (99999) must be"),
    ],
)
def test_ranks_that_cannot_meet(
    place: Path, variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as error:
        health.run(RECIPE, [])
    assert said in str(error.value)


def test_the_all_reduce_is_measured_and_judged(place: Path) -> None:
    first, other = run_ranks("--json", SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND="1e6")
    assert (first.status, other.status) == (1, 1), first.err + other.err
    report = json.loads(first.out.splitlines()[-1])
    measured = report["bandwidth_gigabytes_per_second"]
    # Two processes of one host: more than a slow network, less than its memory.
    assert 0.01 < measured["world"] < 1000 and measured["nodes"] == {}
    assert [finding["rule"] for finding in report["errors"]] == ["bandwidth"]
    assert "it is the network between node1 and node2" in first.err and " GB/s over 2 ranks" in first.out
