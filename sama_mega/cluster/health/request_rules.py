"""What was asked for: a recipe that can be read everywhere, and as many ranks as its layout needs."""

from __future__ import annotations

from collections.abc import Iterator

from sama_mega.cluster.health.problems import Problem
from sama_mega.cluster.health.world import World
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import fewest_ranks, resolve_layout

_GPUS_PER_NODE = (8, 4, 2, 1)
_MOST_NODES_TRIED = 4096


def request_problems(world: World, recipe: Recipe | None) -> list[Problem]:
    """A recipe that is wrong, or wrong on some nodes only; a layout that the ranks cannot form."""
    problems = list(_recipe_problems(world))
    if recipe is not None:
        problems += _layout_problems(world, recipe)
    return problems


def suggest_request(recipe: Recipe, num_nodes: int) -> tuple[int, int] | None:
    """The fewest nodes, these at least, and the most GPUs on each, that the recipe's layout fits; None: it fits none.

    Args:
        recipe: Its degrees.
        num_nodes: Nodes of the job.
    """
    for nodes in range(num_nodes, max(num_nodes, fewest_ranks(recipe), 1) + 1)[:_MOST_NODES_TRIED]:
        for gpus in _GPUS_PER_NODE:
            try:
                resolve_layout(recipe, nodes * gpus)
            except ConfigError:
                continue
            return nodes, gpus
    return None


def _recipe_problems(world: World) -> Iterator[Problem]:
    reports = [report for node in world.nodes for report in node.reports]
    errors = {report.input_error for report in reports if report.input_error is not None}
    if len(errors) == 1 and all(report.input_error is not None for report in reports):
        yield Problem("recipe", None, errors.pop(), is_input=True)
        return
    for node in world.nodes:
        wrong = next((report.input_error for report in node.reports if report.input_error is not None), None)
        if wrong is not None:
            yield Problem("recipe", node.name, wrong, "the same recipe and variables must be readable on every node")


def _layout_problems(world: World, recipe: Recipe) -> Iterator[Problem]:
    try:
        resolve_layout(recipe, world.world_size)
    except ConfigError as error:
        # A look at one node by hand starts no ranks: that the recipe needs more is worth a word only.
        yield Problem(
            "layout",
            None,
            _describe_layout(world, recipe, str(error)),
            _layout_fix(world, recipe) if world.is_job else "",
            is_error=world.is_job,
            is_input=True,
        )


def _describe_layout(world: World, recipe: Recipe, message: str) -> str:
    needed, parallel = fewest_ranks(recipe), recipe.parallel
    if world.world_size >= needed:
        return message
    degrees = f"{parallel.tensor} x {parallel.context} x {parallel.pipeline}"
    axes = "parallel.tensor x context x pipeline"
    if parallel.data != "auto":
        degrees, axes = f"{degrees} x {parallel.data}", f"{axes} x data"
    return f"the recipe needs at least {needed} ranks ({axes}: {degrees}), {_describe_job(world)}"


def _describe_job(world: World) -> str:
    num_nodes = len(world.node_names)
    if not world.is_job:
        return "this process is alone"
    tasks = f"{world.world_size} task{'s' if world.world_size > 1 else ''}"
    return f"the job has {tasks} on {num_nodes} node{'s' if num_nodes > 1 else ''}{_describe_gpus(world)}"


def _describe_gpus(world: World) -> str:
    counts = sorted({node.gpus.granted or len(node.gpus.gpus) for node in world.nodes if node.gpus is not None})
    if not counts:
        return ""
    if counts == [0]:
        return " without GPUs"
    each = " or ".join(map(str, counts))
    return f" with {each} GPU{'' if each == '1' else 's'} each"


def _layout_fix(world: World, recipe: Recipe) -> str:
    num_nodes = max(1, len(world.node_names))
    request = suggest_request(recipe, num_nodes)
    if request is None:
        return ""
    nodes, gpus = request
    more = f"--nodes={nodes} " if nodes > num_nodes else ""
    return f"submit with {more}--gpus-per-node={gpus} (on CPUs: {more}--ntasks-per-node={gpus})"
