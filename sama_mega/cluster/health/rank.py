"""One rank of the health check, before it met the others: its place, its recipe, and what it can say of itself."""

from __future__ import annotations

import platform
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sama_mega.cluster.health.facts import FolderFacts, RankReport
from sama_mega.cluster.health.gpu_probe import may_use_gpus_alone, probe_gpus
from sama_mega.cluster.health.probes import node_name, probe_machine, probe_software
from sama_mega.cluster.health.settings import Settings, read_settings
from sama_mega.config import Recipe, load_recipe
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.parallel.rank_environment import RankEnvironment, read_rank_environment

_BACKEND_VARIABLE = "SAMA_MEGA_BACKEND"
_LARGEST_PORT = 65535


@dataclass(frozen=True)
class Rank:
    """What a rank knows by itself.

    Attributes:
        place: Its rank and where all ranks meet.
        environ: Its environment.
        node: Name of its node.
        recipe: None where it cannot be used here.
        input_error: Why not.
        settings: Thresholds; the defaults where they cannot be read.
        open_files: The limit that this process was started with.
    """

    place: RankEnvironment
    environ: Mapping[str, str]
    node: str
    recipe: Recipe | None
    input_error: str | None
    settings: Settings
    open_files: int

    @property
    def speaks_for_node(self) -> bool:
        """Whether it is the first of its node, which reports the node's facts."""
        return self.place.local_rank == 0

    @property
    def is_job(self) -> bool:
        """Whether somebody started it as a rank; else it is a look at one node by hand."""
        return self.place.source != "single"

    @property
    def key(self) -> str:
        """What all ranks of this life of this job share, and no other process."""
        job, step = (self.environ.get(name, "-") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        restart = self.environ.get("SLURM_RESTART_COUNT", "0")
        return f"job {job} step {step} restart {restart} of {self.place.world_size} ranks"


def read_rank(recipe: str, overrides: Sequence[str], environ: Mapping[str, str]) -> Rank:
    """Finds out which rank this is. A recipe that cannot be used is kept for the report: other nodes may read it.

    Args:
        recipe: YAML file.
        overrides: `a.b=value` items.
        environ: Variables of Slurm, of torchrun and of the thresholds.

    Raises:
        ConfigError: The ranks have no place to meet.
    """
    place = read_rank_environment(environ)
    if place.world_size > 1 and place.master_port is None:
        raise ConfigError("health meets at rank 0's TCP port and has none: start the ranks with srun")
    if place.world_size > 1 and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError("health meets at MASTER_PORT, which torchrun holds itself: start with srun, or one process")
    if place.master_port is not None and not 0 < place.master_port <= _LARGEST_PORT:
        raise ConfigError(f"MASTER_PORT ({place.master_port}) must be between 1 and {_LARGEST_PORT}")
    loaded, settings, error = None, Settings(), None
    try:
        settings = read_settings(environ)
        loaded = load_recipe(recipe, overrides)
    except UserError as wrong:
        error = str(wrong)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Rank(place, environ, node_name(environ), loaded, error, settings, limit)


def describe_rank(rank: Rank) -> RankReport:
    """What can be told before the ranks meet: all that needs no other rank."""
    looks_at_gpus = rank.speaks_for_node or may_use_gpus_alone(rank.environ)
    return RankReport(
        rank=rank.place.rank,
        local_rank=rank.place.local_rank,
        node=rank.node,
        python=platform.python_version(),
        backend=rank.environ.get(_BACKEND_VARIABLE),
        input_error=rank.input_error,
        gpus=probe_gpus(rank.environ) if looks_at_gpus else None,
        software=probe_software() if rank.speaks_for_node else None,
    )


def complete(report: RankReport, rank: Rank, folder: FolderFacts | None, local_address: str | None) -> RankReport:
    """Adds what is known once the ranks met.

    Args:
        report: What was known before.
        rank: The rank.
        folder: The run folder from here.
        local_address: This node's address on the way to the other ranks.
    """
    machine = probe_machine(rank.environ, local_address, rank.open_files) if rank.speaks_for_node else None
    return report.model_copy(update={"folder": folder, "machine": machine})
