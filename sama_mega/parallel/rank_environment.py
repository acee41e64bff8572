"""Which rank this process is, read from the variables of whoever started it.

Three ways of starting are known: torchrun (or our own launcher, which sets the same variables), a plain
`srun` with one task per rank, and a process alone. Pure functions over a mapping, so that every case is a
unit test.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from sama_mega.config.errors import ConfigError

# Set by our own launcher and by the test-suite: ranks of one host meet at a file, so no TCP port can be
# taken.
RENDEZVOUS_FILE_VARIABLE = "SAMA_MEGA_RENDEZVOUS_FILE"

# Ports below the kernel's ephemeral range (32768 and up), so an outgoing connection never holds one of them.
FIRST_SLURM_PORT = 15000
NUM_SLURM_PORTS = 15000


@dataclass(frozen=True)
class RankEnvironment:
    """One process's place in the world, before anything is initialised.

    Attributes:
        rank: Global rank.
        world_size: Number of ranks.
        local_rank: Rank within this host; picks the GPU.
        source: `torchrun`, `srun` or `single`.
        master_address: Host of rank 0, where the ranks meet; None for a single process or a rendezvous file.
        master_port: TCP port there.
        rendezvous_file: File where the ranks of one host meet instead.
    """

    rank: int
    world_size: int
    local_rank: int
    source: str
    master_address: str | None = None
    master_port: int | None = None
    rendezvous_file: str | None = None


def read_rank_environment(environ: Mapping[str, str]) -> RankEnvironment:
    """Reads torchrun's variables, else srun's, else decides for a process alone.

    torchrun comes first: `srun torchrun` leaves both sets of variables, and srun's then count launchers.

    Raises:
        ConfigError: Variables that contradict each other or are not numbers.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _from_torchrun(environ)
    # A batch script has SLURM_PROCID too; only a step (srun) is one task among several.
    if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        return _from_srun(environ)
    return RankEnvironment(rank=0, world_size=1, local_rank=0, source="single")


def found_rank_count(environ: Mapping[str, str]) -> int | None:
    """Number of ranks that somebody already started, or None: then a command may start its own.

    A single srun task, such as an interactive shell on a node, counts as nobody's ranks.
    """
    environment = read_rank_environment(environ)
    alone = environment.source == "single" or (environment.source == "srun" and environment.world_size == 1)
    return None if alone else environment.world_size


def _from_torchrun(environ: Mapping[str, str]) -> RankEnvironment:
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name not in environ:
            raise ConfigError(f"{other} is set but {name} is not: start with torchrun, or unset {other}")
    rank, world_size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    _require_rank_in_world("RANK", rank, "WORLD_SIZE", world_size)
    local_rank = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else rank
    rendezvous_file = environ.get(RENDEZVOUS_FILE_VARIABLE)
    if rendezvous_file is not None:
        return RankEnvironment(rank, world_size, local_rank, "torchrun", rendezvous_file=rendezvous_file)
    if world_size == 1 and "MASTER_ADDR" not in environ:
        return RankEnvironment(rank, world_size, local_rank, "torchrun")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise ConfigError(f"RANK and WORLD_SIZE are set but {name} is not: start with torchrun, or set {name}")
    return RankEnvironment(
        rank, world_size, local_rank, "torchrun", environ["MASTER_ADDR"], _number(environ, "MASTER_PORT")
    )


def _from_srun(environ: Mapping[str, str]) -> RankEnvironment:
    # SLURM_NTASKS is the job's; a step with fewer tasks says so in SLURM_STEP_NUM_TASKS.
    count_name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    if count_name not in environ:
        raise ConfigError("SLURM_PROCID is set but SLURM_NTASKS is not: start with srun --ntasks=N")
    rank, world_size = _number(environ, "SLURM_PROCID"), _number(environ, count_name)
    _require_rank_in_world("SLURM_PROCID", rank, count_name, world_size)
    local_rank = _number(environ, "SLURM_LOCALID") if "SLURM_LOCALID" in environ else 0
    address = environ.get("MASTER_ADDR")
    if address is None:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
        if nodes is None:
            raise ConfigError("neither MASTER_ADDR nor SLURM_JOB_NODELIST is set: set MASTER_ADDR to rank 0's host")
        address = first_host(nodes)
    port = _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else _slurm_port(environ)
    return RankEnvironment(rank, world_size, local_rank, "srun", address, port)


def first_host(node_list: str) -> str:
    """First host of Slurm's compressed node list: `gpu[07-09,12],cpu1` gives `gpu07`.

    Raises:
        ConfigError: The list is empty or not in Slurm's form.
    """
    match = re.match(r"\s*([^\[\],\s]+)(?:\[([^\]]+)\]([^\[\],\s]*))?", node_list)
    if match is None:
        raise ConfigError(f"SLURM_JOB_NODELIST ({node_list!r}) names no host: set MASTER_ADDR to rank 0's host")
    prefix, ranges, suffix = match.groups()
    if ranges is None:
        return prefix
    return f"{prefix}{re.split('[-,]', ranges)[0]}{suffix or ''}"


def _slurm_port(environ: Mapping[str, str]) -> int:
    """A port every rank of the step derives alike; a requeued life gets another one than its predecessor."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    key = ".".join(environ.get(name, "0") for name in names)
    return FIRST_SLURM_PORT + zlib.crc32(key.encode()) % NUM_SLURM_PORTS


def _require_rank_in_world(rank_name: str, rank: int, count_name: str, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ConfigError(f"{rank_name} ({rank}) must be at least 0 and less than {count_name} ({world_size})")


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(f"{name} ({environ[name]!r}) must be a whole number") from None
