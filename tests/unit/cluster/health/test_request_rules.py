"""A recipe that is wrong, and a layout that the ranks cannot form."""

from __future__ import annotations

import pytest

from sama_mega.cluster.health.facts import GpuFacts
from sama_mega.cluster.health.request_rules import suggest_request
from tests.support.health_reports import gpus, node_reports, status, told, two_nodes, with_degrees, world_of


def test_a_wrong_recipe_is_one_line_for_all() -> None:
    world = world_of(*[node_reports(f"node{index}", index, input_error="x.yaml: no") for index in range(3)])
    assert told(world) == ["error: x.yaml: no"] and status(world) == 2


def test_a_recipe_that_one_node_cannot_read_is_that_nodes_problem() -> None:
    world = two_nodes(input_error="x.yaml: no such recipe")
    assert told(world, with_degrees()) == [
        "error: node2: x.yaml: no such recipe: the same recipe and variables must be readable on every node, or leave "
        "it out with sbatch --exclude=node2"
    ]
    assert status(world, with_degrees()) == 1


def test_too_few_ranks_and_no_gpu() -> None:
    world = world_of(node_reports("node1"), node_reports("node2", 1))
    recipe = with_degrees(tensor=8)
    assert told(world, recipe) == [
        "error: the recipe needs at least 8 ranks (parallel.tensor x context x pipeline: 8 x 1 x 1), the job has 2 "
        "tasks on 2 nodes without GPUs: submit with --gpus-per-node=8 (on CPUs: --ntasks-per-node=8)"
    ]
    assert status(world, recipe) == 2


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (gpus(1), "with 1 GPU each"),
        (gpus(2, granted=None), "with 2 GPUs each"),
        (gpus(0, granted=4), "with 4 GPUs each"),
    ],
)
def test_too_few_ranks_and_some_gpus(facts: GpuFacts, said: str) -> None:
    world = world_of(node_reports("node1", gpus=facts), node_reports("node2", 1, gpus=facts))
    (line,) = [line for line in told(world, with_degrees(tensor=8)) if "recipe needs" in line]
    assert f"the job has 2 tasks on 2 nodes {said}: submit with --gpus-per-node=8" in line


def test_enough_ranks_that_do_not_divide() -> None:
    world = world_of(node_reports("node1", 0, 3))
    (line,) = told(world, with_degrees(tensor=2))
    assert line.startswith(
        "error: parallel.tensor x context x pipeline (2 x 1 x 1 = 2) must divide the number of ranks (3)"
    )
    assert line.endswith("submit with --gpus-per-node=8 (on CPUs: --ntasks-per-node=8)")


def test_a_fixed_data_degree_is_named() -> None:
    (line,) = told(world_of(node_reports("node1")), with_degrees(tensor=2, data=4))
    assert "needs at least 8 ranks (parallel.tensor x context x pipeline x data: 2 x 1 x 1 x 4)" in line


def test_a_look_by_hand_is_no_job() -> None:
    world = world_of(node_reports("node1", gpus=gpus(8, granted=None)), is_job=False)
    recipe = with_degrees(tensor=8)
    assert told(world, recipe) == [
        "warning: the recipe needs at least 8 ranks (parallel.tensor x context x pipeline: 8 x 1 x 1), this process is "
        "alone"
    ]
    assert status(world, recipe) == 0


@pytest.mark.parametrize(
    ("degrees", "num_nodes", "request_"),
    [
        ({"tensor": 8}, 2, (2, 8)),
        ({"tensor": 4, "context": 4}, 1, (2, 8)),
        ({"tensor": 2, "data": 1}, 1, (1, 2)),
        ({"tensor": 2, "data": 3}, 1, (3, 2)),
        ({"tensor": 2, "data": 1}, 4, None),
        ({"tensor": 3}, 1, None),
    ],
)
def test_the_request_that_would_be_right(
    degrees: dict[str, object], num_nodes: int, request_: tuple[int, int] | None
) -> None:
    assert suggest_request(with_degrees(**degrees), num_nodes) == request_
