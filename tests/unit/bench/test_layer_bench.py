"""The layer benchmark: what it counts, and that nothing wrong gets a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_mega.bench import contenders as contenders_module
from sama_mega.bench.chart import Bar, draw_bars
from sama_mega.bench.clock import Spread, time_in_turns
from sama_mega.bench.contenders import Build, Contender, chain, diffusers, ours
from sama_mega.bench.inputs import draw_inputs
from sama_mega.bench.layer import run_layer_bench
from sama_mega.bench.parity import MAX_RATIO, ParityCheck
from sama_mega.bench.results import write_results
from sama_mega.bench.shapes import MODELS, PARITY_WORKLOAD, WORKLOADS, one_rank_recipe
from sama_mega.commands import bench_layer
from sama_mega.config import Recipe, build_recipe
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

CPU = torch.device("cpu")
TOY = MODELS["toy"]


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(build_recipe(one_rank_recipe(), "test"), environ={})
    stop_parallel()


@pytest.fixture(scope="module")
def check() -> ParityCheck:
    return ParityCheck(TOY, PARITY_WORKLOAD, CPU, torch.float32)


def changed(build: Build, change: str) -> Build:
    """A contender with one bug."""

    def built(weights: dict[str, Tensor], size: object, work: object) -> Contender:
        contender = build(weights, size, work)

        def run(x: Tensor, modulation: Tensor, text: Tensor) -> Tensor:
            if change == "gate":
                modulation = torch.cat([modulation[:, :5], 1.001 * modulation[:, 5:]], dim=1)
            output = contender.run(x, modulation, text)
            return output * float("nan") if change == "nan" else output

        def gradients() -> dict[str, Tensor]:
            found = contender.gradients()
            if change == "gradient":
                found["ffn.0.bias"] = found["ffn.0.bias"] * 1.001
            return found

        return replace(contender, run=run, gradients=gradients)

    return built


def test_shapes_are_those_of_training() -> None:
    assert {name: work.num_tokens for name, work in WORKLOADS.items() if name != "toy"} == {
        "81-frames": 65_585,
        "49-frames": 40_625,
        "images": 3_185,
    }
    assert WORKLOADS["images"].label == "3,185 x 8"


@pytest.mark.parametrize("mode", bench_layer.MODES)
def test_our_block_is_right_in_every_mode(mode: str, check: ParityCheck, context: ParallelContext) -> None:
    assert check.of(ours(context, mode, "auto", "float32")).ok


def test_peers_compute_the_same(check: ParityCheck) -> None:
    """Or their times would say nothing."""
    for build in (chain(recompute=True), diffusers(), diffusers(recompute=True)):
        assert check.of(build).ok


@pytest.mark.parametrize(("change", "tensor"), [("gate", "output"), ("gradient", "ffn.0.bias"), ("nan", "output")])
def test_a_wrong_block_is_found(change: str, tensor: str, check: ParityCheck) -> None:
    parity = check.of(changed(chain(), change))
    assert not parity.ok
    if change != "gate":  # which is felt in every gradient before it
        assert parity.tensor == tensor


def test_the_limit_is_the_chains_own_error(check: ParityCheck) -> None:
    parity = check.of(chain())
    assert parity.error <= parity.limit / MAX_RATIO or parity.limit == 2e-6


def test_a_wrong_block_gets_no_time() -> None:
    contenders = {"right": chain(), "wrong": changed(chain(), "gradient")}
    right, wrong = run_layer_bench(
        contenders, TOY, {"toy": WORKLOADS["toy"]}, CPU, torch.float32, rounds=2, report=lambda what: None
    )
    assert right.seconds is not None and right.seconds.runs == 2 and right.flops_per_second
    assert wrong.seconds is None and wrong.problem is not None and "ffn.0.bias" in wrong.problem


def test_a_peer_is_compiled_for_the_shape_that_is_timed(check: ParityCheck, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity comes first, at another one, after which torch would compile for any."""
    sizes: list[list[int]] = []

    def backend(graph: Any, examples: list[Any]) -> Callable[..., Any]:
        sizes.append([example for example in examples if not isinstance(example, Tensor)])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    build, work = diffusers(compiled=True), WORKLOADS["toy"]
    assert check.of(build).ok
    inputs = draw_inputs(TOY, work, CPU, torch.float32)
    build(check.weights, TOY, work).run(inputs.x, inputs.time_modulation, inputs.text)
    assert sizes == [[], []]


def test_attention_is_chosen_for_the_mode_that_is_timed(
    check: ParityCheck, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for a repeated pass must be keepable, or the row attends twice."""
    modes: list[str] = []

    def build_model(recipe: Recipe, *given: Any, **options: Any) -> Any:
        modes.append(recipe.train.recompute)
        return build(recipe, *given, **options)

    build = contenders_module.build_model
    monkeypatch.setattr(contenders_module, "build_model", build_model)
    for mode in bench_layer.MODES:
        ours(context, mode, "auto", "float32")(check.weights, TOY, PARITY_WORKLOAD)
    assert modes == list(bench_layer.MODES)


@pytest.mark.parametrize("part", ["output", "gradient"])
@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_a_block_that_is_wrong_at_the_timed_size_alone_gets_no_time(part: str, factor: float) -> None:
    """As by an offset that overflows: in one token of many."""

    def build(weights: dict[str, Tensor], size: object, work: object) -> Contender:
        contender = chain()(weights, TOY, work)
        spoiled = torch.ones(work.batch, work.num_tokens, 1)
        spoiled[0, -1] = 1.0 if work is PARITY_WORKLOAD else factor

        def run(x: Tensor, modulation: Tensor, text: Tensor) -> Tensor:
            if part == "gradient":
                x.register_hook(lambda gradient: gradient * spoiled)
                return contender.run(x, modulation, text)
            return contender.run(x, modulation, text) * spoiled

        return replace(contender, run=run)

    contenders = {"right": chain(), "wrong": build, "also right": diffusers()}
    rows = run_layer_bench(contenders, TOY, {"toy": WORKLOADS["toy"]}, CPU, torch.float32, 1, lambda what: None)
    right, wrong, also_right = rows
    assert right.seconds and also_right.seconds and wrong.parity is not None and wrong.parity.ok
    assert wrong.seconds is None and wrong.problem is not None and wrong.problem.startswith("wrong at this size")


def test_functions_take_turns() -> None:
    order: list[str] = []
    spreads = time_in_turns([lambda: order.append("a"), lambda: order.append("b")], CPU, warmups=1, rounds=3)
    assert order == ["a", "b", *"ab" * 3] and [spread.runs for spread in spreads] == [3, 3]
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(1.0, 2.0, 3.0, 3)


def test_results_of_a_day_are_numbered(tmp_path: Path) -> None:
    first, second = (write_results(tmp_path / "results", "layer", {"run": run}) for run in (1, 2))
    assert first != second and second.name == first.name.replace("-layer", ".2-layer")
    assert [json.loads(path.read_text())["run"] for path in (first, second)] == [1, 2]


def test_a_chart_shows_every_bar_in_proportion() -> None:
    picture = draw_bars("A & B", [Bar("theirs", 2.0, "2 s", own=False), Bar("ours", 1.0, "1 s", own=True)])
    assert 'width="520.0"' in picture and 'width="260.0"' in picture
    assert "A &amp; B" in picture and "1 s" in picture
