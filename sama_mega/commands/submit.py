"""`sama-mega submit`: checks recipes for the nodes asked for and sends them to Slurm. Needs no torch."""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sama_mega.cluster.job_script import render
from sama_mega.cluster.occupied import occupied_by
from sama_mega.cluster.plan import START_KEY, SWEEP_FOLDER, StagePlan, plan_stages
from sama_mega.cluster.settings import load_cluster_settings
from sama_mega.cluster.submission import (
    Job,
    SubmittedJob,
    dependency_options,
    describe_job,
    prepare_jobs,
    require_slurm,
    submit,
)
from sama_mega.commands.check import Finding, count_samples, examine
from sama_mega.commands.check_plan import GpuRequest, find_misfit, require_gpu_kind
from sama_mega.config import Recipe
from sama_mega.config.errors import ConfigError
from sama_mega.parallel.layout import Layout


def run(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    stages: str | None = None,
    num_nodes: int = 1,
    cluster: Path | None = None,
    options: Mapping[str, Any] | None = None,
    sweeps: Sequence[str] = (),
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Submits a recipe, or stage 1 after stage 0.

    Args:
        recipe: YAML file of one of the stages.
        overrides: `a.b=value` items; `0:a.b=value` for one stage.
        stages: `0`, `1` or `0,1`; None takes the recipe's own.
        num_nodes: Nodes of each job.
        cluster: File of the cluster's settings.
        options: Settings of the command line, by key; None where one was not given.
        sweeps: `a.b=value,value` items.
        dry_run: Whether the scripts are only shown.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: A recipe, a setting or Slurm refuses; nothing stays written or submitted.
        DataError: A manifest exists but cannot be used.
    """
    settings = load_cluster_settings(cluster, options or {}, os.environ)
    if settings.gpu is not None:
        require_gpu_kind(settings.gpu)
    plans = plan_stages(recipe, stages, overrides, sweeps)
    jobs = prepare_jobs(plans, settings, num_nodes)
    warnings = _check(jobs, may_stop=dry_run)
    scripts = [render(job.script) for job in jobs]
    for warning in warnings:
        print(f"warning    {warning}")
    if dry_run:
        _show_scripts(jobs, scripts)
        sent = [SubmittedJob(job, _placeholder(job)) for job in jobs]
    else:
        require_slurm()
        _require_free_folders(jobs)
        sent = submit(jobs)
        _show_table(sent)
    if as_json:
        described = [_describe(submitted, dry_run) for submitted in sent]
        print(json.dumps({"ok": True, "dry_run": dry_run, "stages": described, "warnings": warnings}))
    return 0


def _check(jobs: Sequence[Job], may_stop: bool) -> list[str]:
    """Warnings of `check` for every recipe on its ranks.

    Raises:
        ConfigError: A recipe breaks a rule, or `train` would stop at once and `may_stop` is false.
    """
    count = functools.cache(count_samples)
    warnings: dict[str, None] = {}
    for job in jobs:
        ranks_per_node, script = job.script.ranks_per_node, job.script
        for recipe, overrides in zip(job.plan.recipes, job.plan.overrides, strict=True):
            try:
                found = examine(recipe, script.nodes * ranks_per_node, ranks_per_node, count)
            except ConfigError as error:
                raise ConfigError(f"{job.plan.path} on {script.size}: {error}") from None
            findings = [*_relevant(found.findings, job.plan), *_misfits(recipe, found.layout, job, overrides)]
            for finding in findings:
                text = f"stage {job.plan.stage}: {finding.text}"
                if finding.stops_training and not may_stop:
                    raise ConfigError(f"{text}: put it right first, or look at the scripts with --dry-run")
                warnings[text] = None
    return list(warnings)


def _require_free_folders(jobs: Sequence[Job]) -> None:
    for job in jobs:
        for planned in job.plan.recipes:
            if occupied := occupied_by(planned.train.run_folder, None):
                raise ConfigError(f"{occupied}: scancel it first, or choose another train.run_folder")


def _relevant(findings: Sequence[Finding], plan: StagePlan) -> list[Finding]:
    """What a stage starts from is not there yet where the stage before it makes it."""
    return [finding for finding in findings if not (plan.follows and finding.key == START_KEY)]


def _misfits(recipe: Recipe, layout: Layout, job: Job, overrides: Sequence[str]) -> Iterator[Finding]:
    """What a GPU's memory is too small for; that of an assumed GPU stops nobody."""
    script, gpu = job.script, job.script.settings.gpu
    if not script.gpus_per_node:
        return
    misfit = find_misfit(recipe, layout, GpuRequest(name=gpu, gpus_per_node=script.gpus_per_node))
    if misfit is not None:
        ranks = ["--gpus", str(layout.world_size), "--gpus-per-node", str(script.gpus_per_node)]
        kind = [] if gpu is None else ["--gpu", gpu]
        asked = shlex.join(["sama-mega", "check", job.plan.path, *overrides, *ranks, *kind])
        yield Finding("parallel", f"{misfit}: `{asked}` names layouts that fit", stops_training=gpu is not None)


def _placeholder(job: Job) -> str:
    return f"JOB_OF_STAGE_{job.plan.stage}"


def _show_scripts(jobs: Sequence[Job], scripts: Sequence[str]) -> None:
    for job, script in zip(jobs, scripts, strict=True):
        print(f"==> {job.script.path} <==\n{script}")
    before: Job | None = None
    for job in jobs:
        options = dependency_options(job, before, _placeholder(before) if before else "")
        print(f"would run  {shlex.join(['sbatch', '--parsable', *options, str(job.script.path)])}")
        before = job


def _show_table(sent: Sequence[SubmittedJob]) -> None:
    rows = [("stage", "job", "size", "run folder", "script")]
    for submitted in sent:
        plan, script = submitted.job.plan, submitted.job.script
        folder = plan.run_folder / SWEEP_FOLDER if plan.is_sweep else plan.run_folder
        rows.append((str(plan.stage), _queue_name(submitted), script.size, str(folder), _from_here(script.path)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("watch      squeue --me")
    for submitted in sent:
        # -F: the file is there once the job starts.
        print(f"           tail -F {shlex.quote(_from_here(submitted.job.script.log(submitted.job_id)))}")
    print(f"cancel     scancel {' '.join(submitted.job_id for submitted in sent)}")


def _queue_name(submitted: SubmittedJob) -> str:
    """`1234`, or `1234_[0-5]` for an array."""
    num_elements = submitted.job.script.num_elements
    return submitted.job_id if num_elements is None else f"{submitted.job_id}_[0-{num_elements - 1}]"


def _from_here(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _describe(submitted: SubmittedJob, dry_run: bool) -> dict[str, Any]:
    job_id = None if dry_run else submitted.job_id
    log = None if dry_run else str(submitted.job.script.log(submitted.job_id))
    return {**describe_job(submitted.job), "job_id": job_id, "log": log}
