"""Who starts the ranks: torchrun, srun, nobody; and variables that contradict each other."""

from __future__ import annotations

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.parallel.rank_environment import first_host, found_rank_count, read_rank_environment

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu01", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NODELIST": "gpu[07-09,12],cpu1",
}


def test_a_process_alone() -> None:
    environment = read_rank_environment({"HOME": "/root"})
    assert (environment.rank, environment.world_size, environment.source) == (0, 1, "single")
    assert found_rank_count({}) is None


def test_torchrun_wins_over_srun() -> None:
    environment = read_rank_environment(SRUN | TORCHRUN)
    assert (environment.rank, environment.world_size, environment.local_rank) == (3, 4, 1)
    assert (environment.master_address, environment.master_port) == ("gpu01", 29500)
    assert found_rank_count(SRUN | TORCHRUN) == 4


def test_srun_derives_the_meeting_point() -> None:
    environment = read_rank_environment(SRUN)
    assert (environment.rank, environment.world_size, environment.local_rank) == (5, 8, 1)
    assert environment.master_address == "gpu07"
    assert 15000 <= environment.master_port < 30000


def test_srun_ranks_agree_on_the_port_and_lives_do_not() -> None:
    port = read_rank_environment(SRUN).master_port
    assert read_rank_environment(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).master_port == port
    assert read_rank_environment(SRUN | {"SLURM_RESTART_COUNT": "1"}).master_port != port
    assert read_rank_environment(SRUN | {"SLURM_JOB_ID": "4712"}).master_port != port


def test_srun_uses_given_meeting_point() -> None:
    environment = read_rank_environment(SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert (environment.master_address, environment.master_port) == ("head", 1234)


def test_batch_script_is_not_a_task() -> None:
    batch = {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")}
    assert read_rank_environment(batch).source == "single"


def test_interactive_shell_may_start_its_own_ranks() -> None:
    shell = SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
    assert read_rank_environment(shell).world_size == 1
    assert found_rank_count(shell) is None
    assert found_rank_count(SRUN) == 8


def test_step_with_fewer_tasks_than_the_job() -> None:
    assert read_rank_environment(SRUN | {"SLURM_NTASKS": "64"}).world_size == 8


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],cpu1", "gpu07"),
        ("gpu[3,1]", "gpu3"),
        ("a-1,a-2", "a-1"),
        ("rack[1-2]-node", "rack1-node"),
        ("localhost", "localhost"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "RANK is set but WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but RANK is not"),
        (TORCHRUN | {"RANK": "4"}, "RANK (4) must be at least 0 and less than WORLD_SIZE (4)"),
        (TORCHRUN | {"RANK": "one"}, "RANK ('one') must be a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not: start with torchrun, or set MASTER_ADDR"),
        (SRUN | {"SLURM_JOB_NODELIST": "[]"}, "names no host: set MASTER_ADDR"),
        (SRUN | {"SLURM_PROCID": "8"}, "SLURM_PROCID (8) must be at least 0 and less than"),
    ],
)
def test_contradictions(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_rank_environment(environ)
    assert message in str(error.value)
