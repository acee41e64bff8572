"""What a cluster needs to be told once: a small YAML file, as strict as a recipe.

`sama-mega submit` reads it; the command line's options win over it. `slurm/cluster.yaml` explains every key.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sama_mega.config import strict_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BrokenRule, RecipePath, Section, Share
from sama_mega.config.strict_yaml import Document
from sama_mega.config.validate import read_text, validate

CLUSTER_VARIABLE = "SAMA_MEGA_CLUSTER"
"""Names the settings file where `--cluster` does not."""
DEFAULT_GPUS_PER_NODE = 8
DEFAULT_CPUS_PER_TASK = 2
"""On CPU nodes: one for the rank, one for what it reads ahead."""

_NOUN = "cluster settings"
_TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What `submit` sets, with what is said of it instead of a line of sbatch, which would come last and win.
_OWN_OPTIONS = {
    **dict.fromkeys(("--time", "--partition", "--account", "--qos", "--constraint", "--exclude"), "set the key {key}"),
    "--cpus-per-task": "set the key {key}",
    "--nodes": "use its option --nodes",
    **dict.fromkeys(("--gpus", "--gpus-per-node", "--gpus-per-task"), "set the key gpus_per_node"),
    **dict.fromkeys(("--ntasks", "--ntasks-per-node", "--tasks-per-node"), "set the key tasks_per_node"),
    "--array": "use its option --sweep and the key sweep_jobs_at_once",
    "--signal": "set the key signal_before_end_seconds",
    "--mem": "which takes all of a GPU node's; on CPU nodes use --mem-per-cpu",
    **dict.fromkeys(("--exclusive", "--oversubscribe"), "which takes GPU nodes whole"),
    **dict.fromkeys(("--dependency", "--kill-on-invalid-dep"), "which chains the stages"),
    "--job-name": "which names a job after its run folder",
    **dict.fromkeys(("--chdir", "--output", "--error", "--open-mode", "--requeue", "--no-requeue"), "which sets it"),
}
_SHORT_OPTIONS = dict(
    pair.split()
    for pair in (
        *("t --time", "p --partition", "A --account", "q --qos", "C --constraint", "x --exclude", "c --cpus-per-task"),
        *("N --nodes", "n --ntasks", "G --gpus", "a --array", "s --oversubscribe", "d --dependency", "J --job-name"),
        *("D --chdir", "o --output", "e --error"),
    )
)
_SHORT_FLAGS = "hHIkOQvVW"
"""Of sbatch, without a value: another short option may follow in the same word."""


def seconds_of_time_limit(limit: str) -> int:
    """Seconds of `HH:MM:SS` or `D-HH:MM:SS`.

    Raises:
        ValueError: It is written otherwise.
    """
    match = _TIME_LIMIT.fullmatch(limit)
    if match is None:
        raise ValueError("must be HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _check_time_limit(limit: str) -> str:
    seconds_of_time_limit(limit)
    return limit


def _check_one_line(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be one line without spaces around it")
    return text


def _check_gpus(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError("must be auto or a whole number, 0 for CPU nodes")
    return value


def _check_cpus(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("must be auto or a whole number of at least 1")
    return value


def _check_sbatch_line(line: str) -> str:
    if not line.startswith("-"):
        raise ValueError("must be an option of sbatch, such as --reservation=NAME")
    try:
        words = shlex.split(line)
    except ValueError:
        raise ValueError("must close its quotes") from None
    for name in filter(None, map(_own_option, words)):
        instead = _OWN_OPTIONS[name].format(key=name.strip("-").replace("-", "_"))
        raise ValueError(f"must leave {name} to submit{',' if instead.startswith('which') else ':'} {instead}")
    return line


def _own_option(word: str) -> str | None:
    """The option of `submit`'s own that sbatch would read in a word, None for none."""
    if word.startswith("--"):
        # sbatch takes the beginning of a name for the whole.
        typed = word.partition("=")[0]
        return typed if typed in _OWN_OPTIONS else next((own for own in _OWN_OPTIONS if own.startswith(typed)), None)
    return _SHORT_OPTIONS.get(word[1:].lstrip(_SHORT_FLAGS)[:1]) if word.startswith("-") else None


def _check_mount(mount: str) -> str:
    if ":" not in mount or "," in mount:
        raise ValueError("must be FOLDER:FOLDER IN THE CONTAINER, without commas")
    return mount


def _check_variable_names(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not _VARIABLE_NAME.fullmatch(name):
            raise ValueError(f"must hold names of variables; {name} is none")
    return variables


def _variable_text(value: Any) -> str:
    # YAML's true is none of the many spellings that programs read from a variable.
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("must be text or a number: put it in quotes")
    return str(value)


OneLine = Annotated[str, Field(min_length=1), AfterValidator(_check_one_line)]
"""Text that fits one line of a script."""
TimeLimit = Annotated[OneLine, AfterValidator(_check_time_limit)]
"""Slurm's time limit."""
VariableValue = Annotated[str, BeforeValidator(_variable_text), AfterValidator(_check_one_line)]
"""Text of a variable; a number is written as it is."""
Gpus = Annotated[Literal["auto"] | int, BeforeValidator(_check_gpus)]
"""`auto` or a number of GPUs, 0 for none."""
Cpus = Annotated[Literal["auto"] | int, BeforeValidator(_check_cpus)]
"""`auto` or a number of CPUs."""


class HealthSettings(Section):
    """Thresholds of the health check before the ranks start; null leaves a threshold to the check itself."""

    enabled: bool = True
    timeout_seconds: PositiveFloat | None = None
    min_free_disk_gib: NonNegativeFloat | None = None
    min_free_gpu_memory_share: Share | None = None
    max_clock_skew_seconds: PositiveFloat | None = None
    min_all_reduce_gigabytes_per_second: NonNegativeFloat | None = None


class ClusterSettings(Section):
    """A cluster: where jobs go, what its nodes have, and how Python is found there."""

    partition: OneLine | None = None
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    exclude: OneLine | None = None
    time: TimeLimit | None = None
    gpus_per_node: Gpus = "auto"
    gpu: OneLine | None = None
    tasks_per_node: PositiveInt = 1
    cpus_per_task: Cpus = "auto"
    signal_before_end_seconds: Annotated[int, Field(ge=1, le=65535)] = 300
    sweep_jobs_at_once: PositiveInt | None = None
    max_lives_without_progress: PositiveInt = 3
    modules: Annotated[tuple[OneLine, ...], Field(strict=False)] = ()
    python: RecipePath | None = None
    venv: RecipePath | None = None
    container_image: OneLine | None = None
    container_mounts: Annotated[tuple[Annotated[OneLine, AfterValidator(_check_mount)], ...], Field(strict=False)] = ()
    sbatch_lines: Annotated[
        tuple[Annotated[OneLine, AfterValidator(_check_sbatch_line)], ...], Field(strict=False)
    ] = ()
    environment: Annotated[dict[str, VariableValue], AfterValidator(_check_variable_names)] = Field(
        default_factory=dict
    )
    health: HealthSettings = HealthSettings()

    @model_validator(mode="after")
    def _check_together(self) -> ClusterSettings:
        if self.python is not None and self.venv is not None:
            raise BrokenRule("python", self.python, "and venv are both set: keep one of them")
        if self.venv is not None and self.container_image is not None:
            rule = "is not seen in a container: remove it, or set python to the interpreter inside container_image"
            raise BrokenRule("venv", self.venv, rule)
        if self.container_mounts and self.container_image is None:
            raise BrokenRule("container_mounts", list(self.container_mounts), "has no effect without container_image")
        if self.time is not None and seconds_of_time_limit(self.time) <= self.signal_before_end_seconds:
            rule = f"must be longer than signal_before_end_seconds ({self.signal_before_end_seconds})"
            raise BrokenRule("time", self.time, rule)
        return self


def load_cluster_settings(
    file: str | Path | None, options: Mapping[str, Any], environ: Mapping[str, str]
) -> ClusterSettings:
    """Load a cluster's settings.

    Args:
        file: The YAML file; None takes the one that `SAMA_MEGA_CLUSTER` names, else defaults.
        options: Values of the command line by settings key; None where an option was not given. They win.
        environ: Environment variables.

    Raises:
        ConfigError: The file is missing, is not YAML, or breaks a rule.
    """
    document, source = _read_document(file, environ)
    given = {key: value for key, value in options.items() if value is not None}
    # A key whose value is commented out stands for its default.
    document.values = {key: value for key, value in document.values.items() if value is not None} | given
    places = {key: f"option --{key.replace('_', '-')}" for key in given}
    return validate(ClusterSettings, document, source, _NOUN, places)


def _read_document(file: str | Path | None, environ: Mapping[str, str]) -> tuple[Document, str]:
    origin = ""
    if file is None and environ.get(CLUSTER_VARIABLE):
        file, origin = environ[CLUSTER_VARIABLE], f" (from {CLUSTER_VARIABLE})"
    if file is None:
        return Document({}), "cluster settings"
    try:
        text = read_text(Path(file), _NOUN)
    except FileNotFoundError:
        fix = "give a YAML file like slurm/cluster.yaml, or none for defaults"
        raise ConfigError(f"{file}{origin}: no such cluster settings: {fix}") from None
    return strict_yaml.parse_document(text, str(file), "a mapping of settings (partition:, time:, ...)"), str(file)
