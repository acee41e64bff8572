"""`sama-mega bench train` on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sama_mega.bench.shapes import MODELS, WORKLOADS
from sama_mega.bench.train import Trainer, run_train_bench
from sama_mega.commands import bench_train
from sama_mega.commands.bench_layer import MODES


def test_the_command_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bench_train.run("toy", "toy", 2, "auto", 1, compile_peers=False, as_json=True, results=tmp_path)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0
    rows = {row["contender"]: row for row in json.loads(Path(printed["file"]).read_text())["rows"]}
    ours = [rows[f"sama-mega, {mode}"] for mode in MODES]
    assert all(row["losses"] == ours[0]["losses"] and len(row["losses"]) == 3 for row in ours)
    assert all(row["seconds"]["runs"] == 1 and row["losses"][-1] < row["losses"][0] for row in rows.values())
    # The peer has no semantic tokens.
    assert ours[0]["num_tokens"] - rows["diffusers"]["num_tokens"] == WORKLOADS["toy"].num_semantic


def test_a_model_that_does_not_learn_gets_no_time() -> None:
    (row,) = run_train_bench(
        {"stuck": lambda *_: Trainer(lambda: 1.0, 7)},
        MODELS["toy"],
        WORKLOADS["toy"],
        num_layers=1,
        device=torch.device("cpu"),
        dtype=torch.float32,
        rounds=1,
        report=lambda what: None,
    )
    assert row.seconds is None and row.problem == "the loss does not fall"
