"""`sama-mega bench train` on a machine without a GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_mega.bench import train as bench
from sama_mega.bench.clock import Spread
from sama_mega.bench.shapes import MODELS, WORKLOADS
from sama_mega.bench.train import Trainer, TrainRow, run_train_bench
from sama_mega.commands import bench_train
from sama_mega.commands.bench_layer import MODES


def test_the_command_trains_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bench_train.run("toy", "toy", 2, "auto", 1, compile_peers=False, as_json=True, results=tmp_path)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0
    rows = {row["contender"]: row for row in json.loads(Path(printed["file"]).read_text())["rows"]}
    ours = [rows[f"sama-mega, {mode}"] for mode in MODES]
    assert all(row["losses"] == ours[0]["losses"] and len(row["losses"]) == 3 for row in ours)
    assert rows[bench_train.REFERENCE]["losses"] == ours[0]["losses"]
    assert all(row["seconds"]["runs"] == 1 and row["losses"][-1] < row["losses"][0] for row in rows.values())
    # The peer has no semantic tokens.
    assert ours[0]["num_tokens"] - rows["diffusers"]["num_tokens"] == WORKLOADS["toy"].num_semantic


@pytest.mark.parametrize(("loss", "wrong"), [(1.5, False), (1.5001, True), (float("nan"), True)])
def test_another_loss_than_plain_torchs_is_wrong(loss: float, wrong: bool) -> None:
    seconds = Spread.of([1.0])
    rows = [
        TrainRow("diffusers", 1, (9.0, 8.0), seconds),
        TrainRow("sama-mega, none", 1, (2.0, loss), seconds),
        TrainRow(bench_train.REFERENCE, 1, (2.0, 1.5), seconds),
    ]
    assert bench_train._wrong(rows, torch.float32) == wrong


def test_without_plain_torchs_loss_nothing_is_shown() -> None:
    rows = [
        TrainRow("sama-mega, none", 1, (2.0, 1.5), Spread.of([1.0])),
        TrainRow(bench_train.REFERENCE, 0, problem="out of memory"),
    ]
    assert bench_train._wrong(rows, torch.float32)


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


def test_the_peer_gets_the_attention_that_it_gets_in_the_layer_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    around: list[str] = []

    @contextmanager
    def attention(x: Tensor) -> Iterator[None]:
        around.append("begin")
        yield
        around.append("end")

    without_hook = bench.mse_loss

    def loss(output: Tensor, target: Tensor) -> Tensor:
        error = without_hook(output, target)
        error.register_hook(lambda gradient: around.append("backward"))
        return error

    monkeypatch.setattr(bench, "cudnn_attention", attention)
    monkeypatch.setattr(bench, "mse_loss", loss)
    trainer = bench.diffusers()(MODELS["toy"], WORKLOADS["toy"], 1, torch.device("cpu"), torch.float32)
    trainer.step()
    assert around == ["begin", "backward", "end"]
