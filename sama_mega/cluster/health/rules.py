"""All rules: what the ranks reported and the thresholds in, problems out. Pure functions."""

from __future__ import annotations

from sama_mega.cluster.health.agreement_rules import agreement_problems
from sama_mega.cluster.health.attendance_rules import attendance_problems
from sama_mega.cluster.health.gpu_rules import gpu_problems
from sama_mega.cluster.health.node_rules import node_problems
from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.request_rules import request_problems
from sama_mega.cluster.health.settings import Settings
from sama_mega.cluster.health.world import World
from sama_mega.config.schema import Recipe

HEALTHY, UNHEALTHY, WRONG_INPUT = 0, 1, 2


def find_problems(world: World, recipe: Recipe | None, settings: Settings) -> list[Problem]:
    """Holds every rule against every node.

    Args:
        world: The reports.
        recipe: None where rank 0 could not read it; then no rule about it is held.
        settings: The thresholds.
    """
    return [
        *attendance_problems(world),
        *request_problems(world, recipe),
        *gpu_problems(world, settings),
        *node_problems(world, settings),
        *agreement_problems(world),
    ]


def exit_status(problems: list[Problem]) -> int:
    """2 where the command line must change, 1 where the cluster is at fault, 0 where nothing is but warnings."""
    errors = [problem for problem in problems if problem.is_error]
    if any(problem.is_input for problem in errors):
        return WRONG_INPUT
    return UNHEALTHY if errors else HEALTHY
