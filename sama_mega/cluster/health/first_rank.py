"""The health check from rank 0's side: it hears all ranks, holds the rules, and tells everybody the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sama_mega.cluster.health.bandwidth import (
    Bandwidth,
    bandwidth_problems,
    listen_for_store,
    measure,
    plan_groups,
    summarize,
)
from sama_mega.cluster.health.facts import RankReport
from sama_mega.cluster.health.folder_probe import FirstLook, probe_first
from sama_mega.cluster.health.host import Host, Received
from sama_mega.cluster.health.problems import Finding, Problem, group_problems
from sama_mega.cluster.health.rank import Rank, complete, describe_rank
from sama_mega.cluster.health.rules import HEALTHY, UNHEALTHY, exit_status, find_problems
from sama_mega.cluster.health.world import Attendance, ClockOffset, Node, World, group_by_node
from sama_mega.cluster.node_list import expand_nodes
from sama_mega.cluster.occupied import occupied_by
from sama_mega.config.errors import ConfigError

_CLOCK_SECONDS = 5.0
# What the measurement's processes may need to start and to end, besides the time that collectives may take.
_MEASURE_SPARE_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What rank 0 has to tell.

    Attributes:
        status: Exit status of all ranks.
        findings: One line a problem, errors first.
        world: The reports.
        bandwidth: What was measured; None: nothing.
        seconds: How long the check took.
    """

    status: int
    findings: tuple[Finding, ...]
    world: World
    bandwidth: Bandwidth | None
    seconds: float


def check_as_first(rank: Rank, tell: Callable[[Outcome], None]) -> int:
    """Runs the check as rank 0, alone or with all others.

    Args:
        rank: This rank.
        tell: Called with what was found, before any other rank hears the verdict: where it is bad they end, and srun
            then ends this rank too.

    Returns:
        The exit status of all ranks.

    Raises:
        MeetingError: The port cannot be had.
    """
    started = time.monotonic()
    # Before anybody can reach this rank: whoever does finds the marker in place.
    look = None if rank.recipe is None else probe_first(rank.recipe.train.run_folder)
    status = UNHEALTHY
    with ExitStack() as probing:
        if look is not None:
            probing.callback(lambda: look.tidy(keep_folder=rank.is_job and status == HEALTHY))
        port = rank.place.master_port if rank.place.world_size > 1 else None
        with Host(port, rank.key, rank.place.world_size, {"marker": look.marker if look else None}) as host:
            outcome = _examine(host, rank, look, started)
            status = outcome.status
            probing.close()
            tell(outcome)
            host.close_door()
            for guest in host.guests:
                host.tell(guest, {"kind": "verdict", "status": status})
    return status


def _examine(host: Host, rank: Rank, look: FirstLook | None, started: float) -> Outcome:
    """Hears all ranks, holds the rules, and measures where all is well so far."""
    world = _hear_all(host, rank, look)
    problems = [*find_problems(world, rank.recipe, rank.settings), *_occupant(rank)]
    bandwidth = None
    if exit_status(problems) == HEALTHY and _wants_measurement(world, rank):
        bandwidth, more = _measure(host, world, rank)
        problems += more
    findings = tuple(group_problems(problems, world.node_names))
    return Outcome(exit_status(problems), findings, world, bandwidth, time.monotonic() - started)


def _occupant(rank: Rank) -> list[Problem]:
    """Another job that trains in the run folder: this one would take it over."""
    if rank.recipe is None or not rank.is_job:
        return []
    occupied = occupied_by(rank.recipe.train.run_folder, rank.environ.get("SLURM_JOB_ID"))
    if occupied is None:
        return []
    return [Problem("occupied", None, occupied, "scancel it first, or choose another train.run_folder", is_input=True)]


def expected_tasks(environ: Mapping[str, str]) -> dict[str, int]:
    """How many ranks srun started on each node; empty where its variables do not say."""
    try:
        nodes = expand_nodes(environ.get("SLURM_STEP_NODELIST", ""))
        counts = _expand_counts(environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    except (ConfigError, ValueError):
        return {}
    return dict(zip(nodes, counts, strict=True)) if len(nodes) == len(counts) else {}


def _hear_all(host: Host, rank: Rank, look: FirstLook | None) -> World:
    """Collects the reports of all ranks, and the time on every node."""
    own = describe_rank(rank)
    others = range(1, rank.place.world_size)
    arrived = host.collect("report", others, time.monotonic() + rank.settings.timeout_seconds)
    own = complete(own, rank, look.facts if look else None, host.local_address)
    reports, misfits = [own], set()
    for guest, received in arrived.items():
        try:
            reports.append(RankReport.model_validate(received.message.get("report")))
        except ValidationError:
            misfits.add(guest)
    nodes = group_by_node(reports)
    clock_offsets = _compare_clocks(host, nodes)
    came = {0: rank.node, **{guest: str(hello.get("node")) for guest, hello in host.guests.items()}}
    attendance = Attendance(
        timeout_seconds=rank.settings.timeout_seconds,
        came=came,
        left=frozenset(host.left),
        misfits=frozenset(misfits),
        tasks_by_node=expected_tasks(rank.environ) if rank.place.source == "srun" else {},
        refusals=tuple(host.refusals),
    )
    return World(rank.place.world_size, nodes, clock_offsets, attendance, rank.is_job)


def _compare_clocks(host: Host, nodes: tuple[Node, ...]) -> dict[str, ClockOffset]:
    """Asks one rank of every other node for the time; half of the round trip is the way there."""
    names = {node.reports[0].rank: node.name for node in nodes[1:]}
    asked_at = {}
    for guest in names:
        asked_at[guest] = time.time()
        host.tell(guest, {"kind": "clock"})
    answers = host.collect("clock", names, time.monotonic() + _CLOCK_SECONDS)
    return {names[guest]: _offset(asked_at[guest], answer) for guest, answer in answers.items()}


def _offset(asked_at: float, answer: Received) -> ClockOffset:
    half = (answer.at - asked_at) / 2
    return ClockOffset(float(answer.message["time"]) - (asked_at + half), abs(half))


def _wants_measurement(world: World, rank: Rank) -> bool:
    return world.world_size > 1 and (world.uses_gpus or rank.settings.min_all_reduce is not None)


def _measure(host: Host, world: World, rank: Rank) -> tuple[Bandwidth, list[Problem]]:
    """Has all ranks measure at the same time, and judges the figures."""
    ranks_by_node = [[report.rank for report in node.reports] for node in world.nodes]
    local_ranks = {report.rank: report.local_rank for node in world.nodes for report in node.reports}
    listener = listen_for_store()
    common = {
        "world_size": world.world_size,
        "backend": "nccl" if world.uses_gpus else "gloo",
        "address": rank.place.master_address,
        "port": listener.getsockname()[1],
        "seconds": rank.settings.timeout_seconds,
    }
    plans: dict[int, dict[str, Any]] = {
        each: {**common, "rank": each, "local_rank": local, **plan_groups(each, ranks_by_node)}
        for each, local in local_ranks.items()
    }
    limit = rank.settings.timeout_seconds + _MEASURE_SPARE_SECONDS
    for guest in host.guests:
        host.tell(guest, {"kind": "measure", "plan": plans[guest], "seconds": limit})
    results = {0: measure(plans[0], limit, listener)}
    for guest, received in host.collect("bandwidth", host.guests, time.monotonic() + limit).items():
        results[guest] = received.message["result"]
    return summarize(results, world.nodes), bandwidth_problems(results, world.nodes, rank.settings)


def _expand_counts(text: str) -> list[int]:
    """[8, 8, 4] for Slurm's `8(x2),4`."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * (int(times.rstrip(")")) if times else 1)
    return counts
