"""Training jobs as tests submit them: the demo's recipes shrunk to steps of milliseconds, on a local Slurm cluster."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sama_mega.checkpoint.folder import checkpoint_step, complete_checkpoints
from sama_mega.train.lives import LifeRecord, read_lives
from sama_mega.train.run_folder import RunFolder
from tests.slurm.local_cluster import LocalCluster
from tests.support.tiny_recipe import REPOSITORY, read_rows, recipe_path, repeatable, tiny_overrides

START_SECONDS = 60.0
"""How long a job may take to its first step on a busy machine; the measured figure is another test's."""


@dataclass(frozen=True)
class TrainingJob:
    """A submitted job and its run.

    Attributes:
        cluster: Where it runs.
        id: Slurm's job number.
        folder: The run folder.
    """

    cluster: LocalCluster
    id: int
    folder: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What every step must repeat, one row a step."""
        return [repeatable(row) for row in read_rows(self.folder)]

    @property
    def step(self) -> int:
        """The last step with a row."""
        rows = read_rows(self.folder)
        return int(rows[-1]["step"]) if rows else 0

    @property
    def lives(self) -> list[LifeRecord]:
        """Every life of the run."""
        return read_lives(RunFolder(self.folder))

    @property
    def saved_steps(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return [checkpoint_step(path) or 0 for path in complete_checkpoints(self.folder / "checkpoints")]

    @property
    def output(self) -> str:
        """What the job printed."""
        log = self.cluster.log(self.id)
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def log(self) -> str:
        """The run's log over all lives."""
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    def wait_for_step(self, step: int, life: int = 1, timeout_seconds: float = START_SECONDS) -> None:
        """Until a life has finished a step."""

        def reached() -> bool:
            return len(self.lives) >= life and self.step >= step

        self.cluster.wait_until(reached, timeout_seconds, f"step {step} of life {life}")

    def wait_for_life(self, life: int, timeout_seconds: float = START_SECONDS) -> None:
        """Until a life has begun."""
        self.cluster.wait_until(lambda: len(self.lives) >= life, timeout_seconds, f"life {life}")

    def wait_for_end(self, state: str = "COMPLETED", timeout_seconds: float = 2 * START_SECONDS) -> None:
        """Until the job is over."""
        self.cluster.wait_for(self.id, state, timeout_seconds)

    def ranks_on(self, node: str) -> list[int]:
        """Processes of this run that train on a node, as this host numbers them."""
        return [process.pid for process in self.cluster.processes_on(node) if self._trains(process.pid)]

    def ranks(self) -> list[int]:
        """Those on all nodes."""
        return [pid for node in self.cluster.nodes for pid in self.ranks_on(node)]

    def _trains(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            return False
        return words[1:4] == ["-m", "sama_mega", "train"] and any(str(self.folder) in word for word in words)


def train_job(
    cluster: LocalCluster,
    folder: Path,
    world: Path,
    steps: int,
    *,
    stage: int = 0,
    nodes: int = 1,
    tasks_per_node: int = 1,
    sbatch: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    **changes: Any,
) -> TrainingJob:
    """Submits `slurm/stageN.sh` with a tiny recipe.

    Args:
        cluster: Where.
        folder: The run folder.
        world: `tiny_world`.
        steps: Of the run.
        stage: Which script.
        nodes: Of the job.
        tasks_per_node: Ranks on each.
        sbatch: More options.
        env: Variables to add.
        **changes: Recipe keys, two underscores for the dot.
    """
    manifest = world / ("raw.jsonl" if stage == 0 else "pairs.jsonl")
    values = {key.replace("__", "."): value for key, value in changes.items()}
    overrides = tiny_overrides(folder, manifest, steps, values)
    job = cluster.sbatch(
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks_per_node}",
        f"--output={folder.parent}/{folder.name}-%j.log",
        *sbatch,
        str(REPOSITORY / f"slurm/stage{stage}.sh"),
        str(recipe_path(stage)),
        *overrides,
        cwd=REPOSITORY,
        env={"SAMA_MEGA_PYTHON": sys.executable, "SAMA_MEGA_LOST_NODE_SECONDS": "15", **(env or {})},
    )
    return TrainingJob(cluster, job, folder)


def loss_curve(rows: list[dict[str, Any]]) -> list[float]:
    """The losses of a run's rows."""
    return [float(row["loss"]) for row in rows]
