"""`sama-mega bench kernels` on a machine without a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sama_kernels.dispatch import BUILT
from sama_mega.bench.kernel_cases import CASES, Inputs, Outputs, Shard
from sama_mega.bench.kernels import CHAIN, bench_kernel, contenders_of
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

    contenders = contenders_of(case, "cpu", compile_reference=False) | {"wrong": run}
    rows = bench_kernel("case", case, contenders, SMALL, SMALL, CPU, torch.float32, rounds=1)
    found = {row.contender: row for row in rows}
    assert found["wrong"].forward is None and found["wrong"].problem == "parity is red"
    assert found[CHAIN].forward is not None and found[CHAIN].forward_bytes_per_second


def test_bytes_and_flops_of_a_14b_shard() -> None:
    shard = Shard(MODELS["14b"], WORKLOADS["81-frames"], tensor=8)
    assert shard.rows == (8199, 1, 5120) and shard.heads == (65_585, 1, 5, 128)
    assert CASES["adaln"].forward_bytes(shard, 2) == 2 * 8199 * 5120 * 2
    attention = CASES["attention"]
    assert attention.flops is not None and attention.flops(shard) == 4 * 65_585**2 * 5 * 128
    assert replace(shard, tensor=1).rows[0] == 65_585
