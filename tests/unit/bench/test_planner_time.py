"""The calibration of step times: the fit itself, the halves, and the command on made-up measurements."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sama_mega.bench import planner_time
from sama_mega.bench.planner_grid import CPU, CUDA, configurations
from sama_mega.bench.planner_rows import PlannerRow, summarize
from sama_mega.bench.planner_time import COSTS, fit_and_predict, fit_non_negative, work_of
from sama_mega.parallel.layout import resolve_layout

TRUTH = dict(zip(COSTS, (1.3e-11, 1.5e-11, 8e-11, 2e-9, 2e-3, 3e-3, 1.9e-9, 4e-4), strict=True))
"""Seconds a unit."""


@cache
def made_up() -> dict[planner_time.Configuration, float]:
    weights = np.array(list(TRUTH.values()))
    return {one: float(np.array(work_of(one, "cpu")) @ weights) for one in CPU}


def test_coefficients_are_found_again() -> None:
    found = fit_and_predict("cpu", made_up())
    assert found.coefficients == pytest.approx(TRUTH, rel=1e-3)
    assert max(abs(row.error) for row in found.rows) < 1e-6
    assert "gemm: 7.692e+10 operations a second" in found.in_words()


def test_held_out_measurements_change_no_coefficient() -> None:
    measured = made_up()
    spoiled = {one: seconds * (1 + place % 2) for place, (one, seconds) in enumerate(measured.items())}
    honest, other = fit_and_predict("cpu", measured), fit_and_predict("cpu", spoiled)
    assert honest.coefficients == other.coefficients
    held_out = [row for row in other.rows if row.split == "held out"]
    assert len(held_out) == len(CPU) // 2 and all(row.error == pytest.approx(-0.5) for row in held_out)


def test_the_fit_has_no_negative_coefficients() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert fit_non_negative(columns, np.array([3.0, 2.0, 1.0])).tolist() == [2.0, 0.0]
    assert fit_non_negative(columns, np.array([3.0, 5.0, 7.0])) == pytest.approx([1.0, 2.0])
    assert fit_non_negative(columns, np.array([-1.0, -1.0, -1.0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_both_halves_of_the_grid_have_every_kind(device_type: str) -> None:
    grid = configurations(device_type)
    assert len(set(grid)) == len(grid) and len({one.label for one in grid}) == len(grid)
    halves = [grid[::2], grid[1::2]]
    kinds = [
        {(one.recompute, one.tensor, one.data, bool(one.images), bool(one.videos)) for one in half} for half in halves
    ]
    assert kinds[0] == kinds[1]
    for one in grid:
        recipe = one.recipe(device_type)
        layout = resolve_layout(recipe, one.num_ranks)
        assert layout.data == one.data and one.images % one.data == one.videos % one.data == 0
    assert {one.num_ranks for one in CUDA} == {1}


def test_errors_are_summed_up_by_half() -> None:
    rows = [
        PlannerRow("time", "a", "fit", 1.1, 1.0, "seconds"),
        PlannerRow("time", "b", "held out", 0.8, 1.0, "seconds"),
    ]
    found = summarize(rows, "time", "held out")
    assert found is not None and found.number == 1 and found.largest == pytest.approx(0.2)
    assert summarize(rows, "memory", "fit") is None


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sama_mega.commands import bench_planner

    times = {one: [2 * seconds, seconds] for one, seconds in made_up().items()}
    monkeypatch.setattr(planner_time, "measure_steps", lambda device, rounds, report: times)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench_planner.run("time", 2, True, tmp_path) == 0
    out = capsys.readouterr().out
    last = json.loads(out.splitlines()[-1])
    document = json.loads(Path(last["file"]).read_text())
    assert document["errors"]["time, held out"]["largest"] < 1e-6 and len(document["rows"]) == len(CPU)
    assert set(document["spreads"].values()) == {2.0} and document["machine"]["command"]
    assert "held out" in out and "fitted: gemm" in out
