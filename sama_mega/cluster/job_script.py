"""The text of a batch script, from a description of the job: no files, no Slurm."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sama_mega.cluster.settings import DEFAULT_CPUS_PER_TASK, ClusterSettings
from sama_mega.config.errors import ConfigError

CONTAINER_PYTHON = Path("/opt/venv/bin/python")
"""Where the project's Dockerfile puts it."""

_HEALTH_VARIABLES = {
    "timeout_seconds": "SAMA_MEGA_HEALTH_TIMEOUT_SECONDS",
    "min_free_disk_gib": "SAMA_MEGA_MIN_FREE_DISK_GIB",
    "min_free_gpu_memory_share": "SAMA_MEGA_MIN_FREE_GPU_MEMORY_SHARE",
    "max_clock_skew_seconds": "SAMA_MEGA_MAX_CLOCK_SKEW_SECONDS",
    "min_all_reduce_gigabytes_per_second": "SAMA_MEGA_MIN_ALL_REDUCE_GIGABYTES_PER_SECOND",
}


@dataclass(frozen=True)
class JobScript:
    """One job, or one array of jobs, of one stage. Paths are absolute.

    Attributes:
        stage: 0 or 1.
        nodes: Nodes of each job.
        gpus_per_node: GPUs on each of them; 0 for CPU nodes.
        working_directory: Where the job starts: the folder that the recipe's relative paths mean.
        run_folder: The run's folder, or the folder above those of a sweep.
        submission: Folder of this submission: the script, the resolved recipes, the code.
        python: The interpreter on the nodes, or inside the container.
        settings: The cluster.
        num_elements: Elements of a sweep; None for a single job.
        mounted: Folders that the job reads and writes; a container sees them where they are.
    """

    stage: int
    nodes: int
    gpus_per_node: int
    working_directory: Path
    run_folder: Path
    submission: Path
    python: Path
    settings: ClusterSettings
    num_elements: int | None = None
    mounted: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What the queue shows."""
        return re.sub(r"[^A-Za-z0-9._+-]+", "_", self.run_folder.name)

    @property
    def path(self) -> Path:
        """Where the script is written."""
        return self.submission / f"stage{self.stage}.sh"

    @property
    def code(self) -> Path:
        """The snapshot of the code."""
        return self.submission / "code"

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, or as many as the settings say."""
        return self.gpus_per_node or self.settings.tasks_per_node

    @property
    def size(self) -> str:
        """`16 nodes x 8 GPUs`, for people."""
        unit, count = ("GPU", self.gpus_per_node) if self.gpus_per_node else ("task", self.ranks_per_node)
        return f"{self.nodes} node{'s' * (self.nodes > 1)} x {count} {unit}{'s' * (count > 1)}"

    def log(self, job_id: str) -> Path:
        """The file that a job's output goes to; of an array, the first element's."""
        return self.run_folder / (f"slurm-{job_id}.log" if self.num_elements is None else f"slurm-{job_id}_0.log")


def render(job: JobScript) -> str:
    """Write a job's script.

    Raises:
        ConfigError: A path holds a character that Slurm or Python's search path cannot carry.
    """
    in_container = job.settings.container_image is not None
    for path in (job.working_directory, job.submission, *(job.mounted if in_container else ())):
        _require_plain(path, in_container)
    recipe = "recipe.yaml" if job.num_elements is None else "recipes/$SLURM_ARRAY_TASK_ID.yaml"
    lines = [
        "#!/usr/bin/env bash",
        f"# Stage {job.stage}, {job.size}: written by `sama-mega submit`. Runs the code and the recipe that lie beside",
        "# it, as they were at submission; what is installed or edited elsewhere since then has no effect.",
        *(f"#SBATCH {option}" for option in _options(job)),
        "set -euo pipefail",
        "",
        f"submission={_quote(str(job.submission))}",
        *_settings_lines(job.settings),
        *_python_lines(job),
        "",
        'code="$submission/code"',
        'export SAMA_MEGA_SLURM="$code/slurm"',
        'export PYTHONPATH="$code:$code/kernels:$code/data${PYTHONPATH:+:$PYTHONPATH}"',
        "# Without it `python -m` would look into the working directory first, which may be a clone.",
        "export PYTHONSAFEPATH=1",
        f'exec bash "$SAMA_MEGA_SLURM/job.sh" train "$submission/{recipe}"',
    ]
    return "\n".join(lines) + "\n"


def _options(job: JobScript) -> Iterator[str]:
    """The job's sbatch options."""
    settings = job.settings
    yield f"--job-name={shlex.quote(job.name)}"
    yield f"--chdir={shlex.quote(str(job.working_directory))}"
    yield f"--nodes={job.nodes}"
    yield f"--ntasks-per-node={job.ranks_per_node}"
    if settings.cpus_per_task != "auto":
        yield f"--cpus-per-task={settings.cpus_per_task}"
    elif not job.gpus_per_node:
        yield f"--cpus-per-task={DEFAULT_CPUS_PER_TASK}"
    if job.gpus_per_node:
        # A whole node: its CPUs and memory go with its GPUs.
        yield f"--gpus-per-node={job.gpus_per_node}"
        yield "--exclusive"
        yield "--mem=0"
    for key in ("time", "partition", "account", "qos", "constraint", "exclude"):
        value = getattr(settings, key)
        if value is not None:
            yield f"--{key}={shlex.quote(value)}"
    if job.num_elements is not None:
        at_once = f"%{settings.sweep_jobs_at_once}" if settings.sweep_jobs_at_once else ""
        yield f"--array=0-{job.num_elements - 1}{at_once}"
    yield f"--signal=B:USR1@{settings.signal_before_end_seconds}"
    yield "--requeue"
    yield "--open-mode=append"
    pattern = "slurm-%j.log" if job.num_elements is None else "slurm-%A_%a.log"
    yield f"--output={shlex.quote(str(job.run_folder).replace('%', '%%') + '/' + pattern)}"
    yield from settings.sbatch_lines


def _settings_lines(settings: ClusterSettings) -> Iterator[str]:
    """Variables that come from the cluster's settings."""
    for name, value in settings.environment.items():
        yield f"export {name}={_quote(value)}"
    if settings.modules:
        yield f"export SAMA_MEGA_MODULES={_quote(' '.join(settings.modules))}"
    yield f"export SAMA_MEGA_MAX_LIVES_WITHOUT_PROGRESS={settings.max_lives_without_progress}"
    if not settings.health.enabled:
        yield "export SAMA_MEGA_HEALTH_CHECK=0"
    for key, variable in _HEALTH_VARIABLES.items():
        threshold = getattr(settings.health, key)
        if threshold is not None:
            yield f"export {variable}={threshold:.12g}"


def _python_lines(job: JobScript) -> Iterator[str]:
    """Variables that say which Python runs how many ranks on a node, and in which container."""
    settings = job.settings
    yield f"export SAMA_MEGA_TASKS_PER_NODE={job.ranks_per_node}"
    if settings.venv is not None:
        yield f"export VIRTUAL_ENV={_quote(str(job.python.parents[1]))}"
        yield 'export PATH="$VIRTUAL_ENV/bin:$PATH"'
    yield f"export SAMA_MEGA_PYTHON={_quote(str(job.python))}"
    if settings.container_image is not None:
        yield f"export SAMA_MEGA_CONTAINER_IMAGE={_quote(settings.container_image)}"
        yield f"export SAMA_MEGA_CONTAINER_MOUNTS={_quote(','.join(_mounts(job)))}"


def _mounts(job: JobScript) -> list[str]:
    """The job's folders, then the settings' own; a folder inside another goes with it."""
    outermost = [folder for folder in job.mounted if not any(other in folder.parents for other in job.mounted)]
    return [f"{folder}:{folder}" for folder in dict.fromkeys(outermost)] + list(job.settings.container_mounts)


def _quote(text: str) -> str:
    """One word of a shell. Unlike `shlex.quote`, apostrophes stay readable, and shellcheck sees no forgotten `$`."""
    if text and shlex.quote(text) == text:
        return text
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'


def _require_plain(path: Path, in_container: bool) -> None:
    """Backslashes end Slurm's patterns, colons Python's search path and, like commas, a container's mounts."""
    refused = {character for character in str(path) if character in "\\:" or not character.isprintable()}
    refused |= set(str(path)) & set("," if in_container else "")
    if refused:
        shown = ", ".join(repr(character) for character in sorted(refused))
        raise ConfigError(f"{str(path)!r} holds {shown}, which a batch job's paths must not: rename the folder")
