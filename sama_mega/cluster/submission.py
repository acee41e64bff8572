"""Sends planned stages to Slurm: writes what each job needs, chains the jobs, and takes all back where one fails."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sama_mega.cluster.job_script import CONTAINER_PYTHON, JobScript, render
from sama_mega.cluster.plan import StagePlan
from sama_mega.cluster.settings import ClusterSettings
from sama_mega.cluster.snapshot import (
    claim_submission,
    locate_code,
    next_submission,
    remove_submission,
    write_snapshot,
)
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.observe.environment import describe_code
from sama_mega.train.run_folder import RunFolder

SUBMISSION_FILE = "submission.json"

_SLURM_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Job:
    """One stage, ready to be sent.

    Attributes:
        plan: Its recipes.
        script: Its script, with the folder of its submission.
    """

    plan: StagePlan
    script: JobScript


@dataclass(frozen=True)
class SubmittedJob:
    """One stage that Slurm took.

    Attributes:
        job: The stage.
        job_id: Slurm's number.
    """

    job: Job
    job_id: str


def prepare_jobs(plans: Sequence[StagePlan], settings: ClusterSettings, num_nodes: int) -> list[Job]:
    """Describe the jobs as they would be submitted now; nothing is written."""
    return [_prepare(plan, plans, settings, num_nodes) for plan in plans]


def dependency_options(job: Job, before: Job | None, before_id: str) -> list[str]:
    """Options of sbatch that let a stage wait for the one before it.

    Args:
        job: The stage.
        before: The stage before it, None for the first.
        before_id: That one's job.
    """
    if before is None:
        return []
    kind = "aftercorr" if before.plan.is_sweep else "afterok"
    # Without the second, a stage whose predecessor failed would wait for ever.
    return [f"--dependency={kind}:{before_id}", "--kill-on-invalid-dep=yes"]


def describe_job(job: Job) -> dict[str, Any]:
    """JSON values that tell what a job runs and where."""
    plan, script = job.plan, job.script
    return {
        "stage": plan.stage,
        "recipe": plan.path,
        "elements": [
            {"run_folder": str(recipe.train.run_folder), "overrides": list(overrides)}
            for recipe, overrides in zip(plan.recipes, plan.overrides, strict=True)
        ],
        "nodes": script.nodes,
        "gpus_per_node": script.gpus_per_node,
        "ranks": script.nodes * script.ranks_per_node,
        "run_folder": str(plan.run_folder),
        "submission": str(script.submission),
        "script": str(script.path),
        "command": shlex.join(sys.orig_argv),
    }


def require_slurm() -> None:
    """Look for Slurm's commands.

    Raises:
        ConfigError: They are not on PATH.
    """
    for name in ("sbatch", "scancel"):
        if shutil.which(name) is None:
            fix = "submit from a login node of the cluster, or look at the scripts with --dry-run"
            raise ConfigError(f"{name} is not on PATH: {fix}")


def submit(jobs: Sequence[Job]) -> list[SubmittedJob]:
    """Write and send all stages, or none.

    Args:
        jobs: The stages in order.

    Raises:
        ConfigError: A folder cannot be written or Slurm refuses; what was sent is cancelled, what was written removed.
    """
    claimed: list[Job] = []
    sent: list[SubmittedJob] = []
    try:
        code = locate_code()
        git = describe_code(code["sama_mega"])
        for job in jobs:
            folder = claim_submission(job.script.run_folder)
            claimed.append(_at(job, folder))
            write_snapshot(folder, code, git, _files(claimed[-1]))
        for job in claimed:
            before = sent[-1] if sent else None
            options = dependency_options(job, before.job if before else None, before.job_id if before else "")
            sent.append(SubmittedJob(job, _send(job, options)))
            _note(sent[-1], options)
    except BaseException as error:
        _take_back(claimed, sent, error)
        raise
    return sent


def _prepare(plan: StagePlan, plans: Sequence[StagePlan], settings: ClusterSettings, num_nodes: int) -> Job:
    run_folder = Path(os.path.abspath(plan.run_folder))
    before = [Path(os.path.abspath(other.run_folder)) for other in plans if plan.follows and other.stage < plan.stage]
    folders = [Path.cwd(), run_folder, *before]
    return Job(
        plan,
        JobScript(
            stage=plan.stage,
            nodes=num_nodes,
            gpus_per_node=plan.gpus_per_node(settings),
            working_directory=Path.cwd(),
            run_folder=run_folder,
            submission=next_submission(run_folder),
            python=_python(settings),
            settings=settings,
            num_elements=len(plan.recipes) if plan.is_sweep else None,
            # Behind a link, the folder that it points to.
            mounted=(*folders, *(folder.resolve() for folder in folders)),
        ),
    )


def _python(settings: ClusterSettings) -> Path:
    if settings.python is not None:
        return settings.python.absolute()
    if settings.venv is not None:
        return settings.venv.absolute() / "bin" / "python"
    return CONTAINER_PYTHON if settings.container_image is not None else Path(sys.executable)


def _at(job: Job, submission: Path) -> Job:
    return replace(job, script=replace(job.script, submission=submission))


def _files(job: Job) -> dict[str, str]:
    """The small files of a submission, by their place in its folder."""
    recipes = [recipe_to_yaml(recipe) for recipe in job.plan.recipes]
    names = [f"recipes/{index}.yaml" for index in range(len(recipes))] if job.plan.is_sweep else ["recipe.yaml"]
    return {
        job.script.path.name: render(job.script),
        SUBMISSION_FILE: _as_json(describe_job(job)),
        **dict(zip(names, recipes, strict=True)),
    }


def _as_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _send(job: Job, options: Sequence[str]) -> str:
    """The number of the job that sbatch made."""
    output = _run_slurm(["sbatch", "--parsable", *options, str(job.script.path)], f"stage {job.plan.stage}")
    # `number`, or `number;cluster` where there are several clusters.
    job_id = output.strip().partition(";")[0]
    if not job_id.isdecimal():
        raise ConfigError(f"sbatch gave no job number for stage {job.plan.stage} but {output!r}: see `squeue --me`")
    return job_id


def _note(submitted: SubmittedJob, options: Sequence[str]) -> None:
    values = {**describe_job(submitted.job), "job_id": submitted.job_id, "sbatch_options": list(options)}
    RunFolder.write_atomically(submitted.job.script.submission / SUBMISSION_FILE, _as_json(values))


def _take_back(claimed: Sequence[Job], sent: Sequence[SubmittedJob], error: BaseException) -> None:
    """Cancel and remove what was done so far.

    Raises:
        ConfigError: `error`, which is the user's, with what became of the jobs; or one cannot be cancelled.
    """
    ids = [submitted.job_id for submitted in sent]
    if ids:
        try:
            _run_slurm(["scancel", *ids], f"to cancel {' '.join(ids)}")
        except ConfigError as refusal:
            # The job may run, so its code must stay.
            raise ConfigError(f"{error}; job {' '.join(ids)} stays submitted: {refusal}") from error
    for job in claimed:
        remove_submission(job.script.submission)
    if ids and isinstance(error, UserError):
        raise ConfigError(f"{error}; job {' '.join(ids)}, submitted before it, is cancelled") from error


def _run_slurm(command: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SLURM_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"{command[0]} gave no answer for {what} within {_SLURM_TIMEOUT_SECONDS} seconds: see `squeue --me`"
        ) from None
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise ConfigError(f"{command[0]} refused {what}: {reason}")
    return done.stdout
