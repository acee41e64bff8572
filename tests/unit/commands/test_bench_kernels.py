"""`sama-mega bench kernels` on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sama_kernels.dispatch import BUILT
from sama_mega.bench.kernel_cases import CASES, Inputs, Outputs, Shard
from sama_mega.bench.kernels import CHAIN, COMPILED, bench_kernel, contenders_of
from sama_mega.bench.shapes import MODELS, PARITY_WORKLOAD, WORKLOADS
from sama_mega.commands import bench_kernels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def without_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels have tests of their own, and take their time."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


SMALL = Shard(MODELS["toy"], PARITY_WORKLOAD)


def test_every_operation_is_benchmarked() -> None:
    assert {case.operation for case in CASES.values()} == set(BUILT)


@pytest.mark.parametrize("tensor", [1, 2])
def test_the_command_times_what_runs_here(tensor: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["adaln", "qk_norm_rope", "add_noise"] if tensor == 2 else []
    status = bench_kernels.run(chosen, "toy", "toy", tensor, 1, compile_reference=False, as_json=True, results=tmp_path)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0
    document = json.loads(Path(printed["file"]).read_text())
    assert document["tensor"] == tensor and document["roof"]["copy_bytes_per_second"] > 0
    ran = [row for row in document["rows"] if row["problem"] is None]
    assert {row["kernel"] for row in ran if row["contender"] == CHAIN} == set(chosen or CASES)
    for row in ran:
        assert row["error"] <= row["limit"] and row["forward"]["runs"] == 1
        assert (row["backward"] is None) == (CASES[row["kernel"]].backward_bytes is None)


@pytest.mark.parametrize("wrong", ["output", "gradient", "nan"])
def test_a_wrong_kernel_gets_no_time(wrong: str) -> None:
    case = CASES["gate_residual_norm"]

    def run(given: Inputs, shard: Shard) -> Outputs:
        if wrong == "gradient":
            given = given | {"gate": given["gate"].detach() + 0 * given["gate"]}
        residual, normed = case.chain(given, shard)
        return residual, normed * {"output": 1.001, "nan": float("nan")}.get(wrong, 1.0)

    contenders = contenders_of(case, CPU, torch.float32, compile_reference=False) | {"wrong": run}
    rows = bench_kernel("case", case, contenders, SMALL, SMALL, CPU, torch.float32, rounds=1)
    found = {row.contender: row for row in rows}
    assert found["wrong"].forward is None and found["wrong"].problem == "parity is red"
    assert found[CHAIN].forward is not None and found[CHAIN].forward_bytes_per_second


@pytest.mark.parametrize("part", ["output", "gradient"])
def test_a_kernel_that_is_wrong_at_the_timed_size_alone_gets_no_time(part: str) -> None:
    case, timed = CASES["gate_residual"], replace(SMALL, work=WORKLOADS["toy"])

    def run(given: Inputs, shard: Shard) -> Outputs:
        (output,) = case.chain(given, shard)
        spoiled = torch.ones_like(output)
        spoiled[-1] = 1.0 if shard is SMALL else float("nan")
        if part == "gradient":
            return (output + (spoiled - 1).nan_to_num(1.0) * (given["x"] - given["x"].detach()),)
        return (output * spoiled,)

    rows = bench_kernel("case", case, {"wrong": run, CHAIN: case.chain}, SMALL, timed, CPU, torch.float32, rounds=1)
    wrong, chain = rows
    assert chain.forward is not None and chain.problem is None
    assert wrong.forward is None and wrong.broken and str(wrong.problem).startswith("wrong at this size")


def test_bytes_and_flops_of_a_14b_shard() -> None:
    shard = Shard(MODELS["14b"], WORKLOADS["81-frames"], tensor=8)
    assert shard.rows == (8199, 1, 5120) and shard.heads == (65_585, 1, 5, 128)
    assert CASES["adaln"].forward_bytes(shard, 2) == 2 * 8199 * 5120 * 2
    attention = CASES["attention"]
    assert attention.flops is not None and attention.flops(shard) == 4 * 65_585**2 * 5 * 128
    assert replace(shard, tensor=1).rows[0] == 65_585


def test_an_absent_library_is_a_row_without_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too, where the name alone says nothing."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("flash_attn") else name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = contenders_of(CASES["attention"], torch.device("cuda"), torch.bfloat16, compile_reference=False)
    assert isinstance(found["flash4"], str) and "flash-attn-4" in found["flash4"]
    assert callable(found["triton"]) and callable(found["te"])


def test_a_backend_that_fails_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(given: Inputs, shard: Shard) -> Outputs:
        raise RuntimeError("out of resources\nand more")

    monkeypatch.setattr(bench_kernels, "contenders_of", lambda case, *_: {"triton": fail, CHAIN: case.chain})
    assert bench_kernels.run(["adaln"], "toy", "toy", 1, 1, compile_reference=True, as_json=False, results=tmp_path)


def test_the_compiled_reference_is_compiled_for_the_shape_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For every case: torch gives up on a function that it compiled eight times, and says so in a log only."""
    sizes: list[list[int]] = []

    def backend(graph: Any, examples: list[Any]) -> Callable[..., Any]:
        sizes.append([example for example in examples if not isinstance(example, torch.Tensor)])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    for name in ("adaln", "gate_residual", "gate_residual_norm", "residual_adaln", "semantic_loss"):
        case, count = CASES[name], len(sizes)
        compiled = contenders_of(case, CPU, torch.float32, compile_reference=True)[COMPILED]
        timed = replace(SMALL, work=WORKLOADS["toy"])
        bench_kernel(name, case, {COMPILED: compiled}, SMALL, timed, CPU, torch.float32, rounds=1)
        assert sizes[count:] == [[], []], "one graph a shape, none with a size to be filled in"
