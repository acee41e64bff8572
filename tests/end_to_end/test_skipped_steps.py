"""Steps that a run refuses to take: in metrics.jsonl, in the checkpoint's counts, and not in the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sama_mega.parallel.checkpoint_io import read_plain
from sama_mega.train.run import train
from tests.support.tiny_recipe import assert_bitwise_equal, newest_checkpoint, read_rows, tiny_recipe, tiny_world

STEPS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def run(folder: Path, world: Path, **changes: Any) -> list[dict[str, Any]]:
    values = {key.replace("__", "."): value for key, value in changes.items()}
    train(tiny_recipe(0, folder, world / "raw.jsonl", STEPS, values))
    return read_rows(folder)


def saved_state(folder: Path) -> dict[str, Any]:
    return json.loads((newest_checkpoint(folder) / "state.json").read_text())


@pytest.mark.parametrize(("measure", "guard"), [("loss", "loss"), ("gradient_norm", "grad_norm")])
def test_steps_above_a_threshold_are_reported_and_not_taken(
    world: Path, tmp_path: Path, measure: str, guard: str
) -> None:
    # A rate this small leaves the numbers of later steps where they would be without the guard.
    values = [row[measure] for row in run(tmp_path / "plain", world, optimizer__learning_rate=1e-9)]
    limit = sorted(values)[STEPS // 2]
    key = f"skip_{guard}_above"
    rows = run(tmp_path / "guarded", world, optimizer__learning_rate=1e-9, **{f"train__{key}": limit})
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["skipped"] is not None for row in rows] == [row[measure] > limit for row in rows]
    reasons = [row["skipped"] for row in rows if row["skipped"]]
    assert 0 < len(reasons) < STEPS and all(f"train.{key}" in reason for reason in reasons)
    state = saved_state(tmp_path / "guarded")
    assert state["step"] == state["data_position"] == STEPS and state["samples_seen"] == 4 * STEPS
    assert state["optimizer_updates"] == state["average_updates"] == STEPS - len(reasons)


def test_a_run_that_skips_everything_ends_where_it_began(world: Path, tmp_path: Path) -> None:
    rows = run(tmp_path / "skipping", world, train__skip_loss_above=1e-6, optimizer__ema_decay=0.5)
    assert all(row["skipped"] for row in rows)
    end = newest_checkpoint(tmp_path / "skipping")
    assert_bitwise_equal(read_plain(end, "model."), read_plain(end, "ema."))
    moments = read_plain(end, "optimizer.")
    assert moments and not any(tensor.any() for tensor in moments.values())
    assert saved_state(tmp_path / "skipping")["optimizer_updates"] == 0


def test_the_moving_average_is_that_of_the_recipe(world: Path, tmp_path: Path) -> None:
    """With a decay of 0 it is the weights; with 0.5 it lags behind them."""
    for name, decay in (("none", 0.0), ("half", 0.5)):
        run(tmp_path / name, world, optimizer__ema_decay=decay, optimizer__ema_ramp=False)
    ends = {name: newest_checkpoint(tmp_path / name) for name in ("none", "half")}
    assert_bitwise_equal(read_plain(ends["none"], "model."), read_plain(ends["none"], "ema."))
    assert_bitwise_equal(read_plain(ends["none"], "model."), read_plain(ends["half"], "model."))
    model, average = read_plain(ends["half"], "model."), read_plain(ends["half"], "ema.")
    assert all(not (model[name] == average[name]).all() for name in model)


def test_a_loss_that_is_no_number_is_null_in_the_metrics(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sama_mega.train import step

    measure_errors, calls = step.measure_errors, []

    def poisoned(*arguments: Any) -> Any:
        errors = measure_errors(*arguments)
        calls.append(None)
        return (
            errors
            if len(calls) not in (5, 6)
            else type(errors)(errors.flow_matching * float("nan"), errors.semantic_share)
        )

    monkeypatch.setattr(step, "measure_errors", poisoned)
    rows = run(tmp_path, world)
    # The step was taken once more, and then nothing was wrong: what does not repeat is said to be the machine's fault.
    assert len(calls) == 2 * STEPS + 2 and "the step does not repeat itself" in (tmp_path / "log.txt").read_text()
    bad = rows[2]
    assert bad["loss"] is None and bad["gradient_norm"] is None and "not finite" in bad["skipped"]
    assert all(row["skipped"] is None and row["loss"] > 0 for row in rows if row is not bad)
    assert saved_state(tmp_path)["optimizer_updates"] == STEPS - 1
