"""Every rank's own time, and who is named the slowest."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_mega.train import pace as module
from sama_mega.train.hooks import pace as hook_module
from sama_mega.train.hooks.pace import PaceHook
from sama_mega.train.pace import Pace, RankPace, describe_pace
from sama_mega.train.rank_load import RankLoad
from sama_mega.train.run_folder import RunFolder


class Clock:
    """perf_counter of a test that says how long things take."""

    def __init__(self) -> None:
        self.seconds = 70.0

    def perf_counter(self) -> float:
        return self.seconds

    def step(self, pace: Pace, reading: float, computing: float, rest: float = 0.0) -> None:
        with pace.reading():
            self.seconds += reading
        with pace.computing():
            self.seconds += computing
        self.seconds += rest
        pace.end_step()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_means_over_the_steps_without_the_rest_of_them(clock: Clock) -> None:
    pace = Pace(torch.device("cpu"))
    clock.step(pace, reading=1.0, computing=2.0, rest=50.0)
    clock.step(pace, reading=3.0, computing=5.0, rest=50.0)
    assert pace.steps == 2
    taken = pace.take("a")
    assert taken == RankPace("a", 2.0, 3.5)
    assert taken.seconds == 5.5


def test_a_step_that_is_taken_again_counts_once(clock: Clock) -> None:
    """As on a GPU, whose newest events are read."""
    pace = Pace(torch.device("cpu"))
    with pace.computing():
        clock.seconds += 7.0
    clock.step(pace, reading=1.0, computing=2.0)
    clock.step(pace, reading=1.0, computing=4.0)
    assert pace.take("a") == RankPace("a", 1.0, 3.0)


def test_taking_starts_over(clock: Clock) -> None:
    pace = Pace(torch.device("cpu"))
    clock.step(pace, reading=1.0, computing=2.0)
    pace.take("a")
    assert pace.steps == 0
    assert pace.take("a") == RankPace("a", 0.0, 0.0)
    clock.step(pace, reading=4.0, computing=6.0)
    assert pace.take("a") == RankPace("a", 4.0, 6.0)


def test_on_a_gpu_its_own_clock_is_read_once_it_has_finished(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(milliseconds=0.0, finished=False)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = device.milliseconds

        def elapsed_time(self, later: Event) -> float:
            assert device.finished, "the host would wait for the device"
            return float(later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    pace = Pace(torch.device("cuda", 0))
    for milliseconds in (500.0, 1500.0):
        device.finished = False
        with pace.computing():
            device.milliseconds += milliseconds
            clock.seconds += 40.0  # of the host, which runs ahead or behind
        device.finished = True
        pace.end_step()
    assert pace.take("a") == RankPace("a", 0.0, 1.0)


# --- who is named ---------------------------------------------------------------------------------


def ranks(*seconds: tuple[float, float]) -> list[RankPace]:
    """Two ranks a node."""
    return [RankPace(f"node{rank // 2}", *parts) for rank, parts in enumerate(seconds)]


def test_the_slowest_rank_is_named_with_its_node() -> None:
    said = describe_pace(ranks((0.1, 0.9), (0.1, 0.9), (0.1, 0.9), (0.2, 1.3)), 50)
    assert said == (
        "own time of 4 ranks over 50 steps: median 1.000 s a step; slowest rank 3 on node1, 1.500 s (+50 %), most of"
        " it computing"
    )


def test_a_rank_that_reads_slowly_is_told_from_one_that_computes_slowly() -> None:
    said = describe_pace(ranks((0.1, 1.0), (2.0, 1.0), (0.1, 1.5)), 10)
    assert "slowest rank 1 on node0, 3.000 s" in said and said.endswith("most of it reading")


def test_nothing_measured_is_no_division_by_zero() -> None:
    assert "slowest rank 0 on node0, 0.000 s (+0 %)" in describe_pace(ranks((0.0, 0.0), (0.0, 0.0)), 1)


# --- the hook -------------------------------------------------------------------------------------


class Ranks:
    """A hook on rank 0 of a world whose other rank takes twice as long."""

    def __init__(
        self, folder: Path, clock: Clock, every: int, world_size: int = 2, is_main: bool = True, start_step: int = 0
    ) -> None:
        self.pace, self.clock = Pace(torch.device("cpu")), clock
        context: Any = SimpleNamespace(world_size=world_size, host_world_group="everyone on the host")
        load: Any = SimpleNamespace(measure=lambda: RankLoad({"resident_gib": 1.0}, num_truncated_prompts=3))
        self.hook = PaceHook(self.pace, load, context)
        self.measured: list[dict[str, dict[str, float]]] = []
        train = SimpleNamespace(pace_every=every)
        recipe = SimpleNamespace(train=train)
        self.run: Any = SimpleNamespace(recipe=recipe, folder=RunFolder(folder), is_main=is_main, start_step=start_step)

    def steps(self, *steps: int) -> None:
        self.hook.on_run_start(self.run)
        for step in steps:
            with self.pace.reading():
                self.clock.seconds += 0.5
            with self.pace.computing():
                self.clock.seconds += step
            report: Any = SimpleNamespace(step=step, measured={})
            self.hook.on_step_end(self.run, report)
            self.measured.append(report.measured)

    def rows(self) -> list[dict[str, Any]]:
        path = self.run.folder.pace_path
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[RankPace]:
    """What rank 0 sent; the other one is called elsewhere."""
    sent: list[RankPace] = []

    def gather(mine: tuple[RankPace, RankLoad], group: object) -> list[tuple[RankPace, RankLoad]]:
        assert group == "everyone on the host"
        pace = mine[0]
        sent.append(pace)
        slow = RankPace("elsewhere", pace.reading_seconds, 2 * pace.computing_seconds)
        return [mine, (slow, RankLoad({"resident_gib": 2.5}, num_truncated_prompts=1))]

    monkeypatch.setattr(hook_module, "gather_objects_on_first", gather)
    return sent


def test_every_few_steps_all_ranks_are_gathered(
    tmp_path: Path, clock: Clock, gathered: list[RankPace], caplog: pytest.LogCaptureFixture
) -> None:
    world = Ranks(tmp_path, clock, every=2)
    with caplog.at_level(logging.INFO):
        world.steps(5, 6, 7, 8, 9)
    here = socket.gethostname()
    # Of the first report's steps only 5 and 6: the run was resumed after 4.
    assert gathered == [RankPace(here, 0.5, 5.5), RankPace(here, 0.5, 7.5)]
    assert world.rows()[0] == {
        "step": 6,
        "ranks": [
            {"node": here, "reading_seconds": 0.5, "computing_seconds": 5.5},
            {"node": "elsewhere", "reading_seconds": 0.5, "computing_seconds": 11.0},
        ],
    }
    assert [row["step"] for row in world.rows()] == [6, 8]
    assert world.measured[0] == world.measured[2] == {}
    assert world.measured[1] == {
        "ranks": {"median_seconds": 8.75, "slowest_seconds": 11.5, "slowest_rank": 1, "spread": 11.5 / 8.75 - 1},
        "memory": {"resident_gib": 2.5},
        "data": {"truncated_prompts": 4, "quarantined": 0},
    }
    assert len(caplog.messages) == 2
    assert all("over 2 steps" in line and "slowest rank 1 on elsewhere" in line for line in caplog.messages)


@pytest.mark.parametrize(("every", "world_size"), [(0, 2), (2, 1)])
def test_nobody_is_asked_where_it_is_off_or_there_is_one_rank(
    tmp_path: Path, clock: Clock, gathered: list[RankPace], every: int, world_size: int
) -> None:
    world = Ranks(tmp_path, clock, every, world_size)
    world.steps(1, 2, 3, 4)
    assert gathered == [] and world.rows() == []
    told = {"memory": {"resident_gib": 1.0}, "data": {"truncated_prompts": 3, "quarantined": 0}}
    assert world.measured == ([{}] * 4 if every == 0 else [{}, told, {}, told])


def test_other_ranks_write_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hook_module, "gather_objects_on_first", lambda mine, group: None)
    world = Ranks(tmp_path, clock, every=1, is_main=False)
    with caplog.at_level(logging.INFO):
        world.steps(1, 2)
    assert world.rows() == [] and caplog.messages == []


def test_steps_that_are_run_again_are_there_once(tmp_path: Path, clock: Clock, gathered: list[RankPace]) -> None:
    first = Ranks(tmp_path, clock, every=1)
    first.steps(1, 2, 3, 4)
    # The kill came in the middle of a row, and the newest checkpoint is of step 2.
    path = first.run.folder.pace_path
    path.write_text(path.read_text() + '{"step": 5, "ra')
    again = Ranks(tmp_path, clock, every=1, start_step=2)
    again.steps(3, 4)
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_said_and_ends_nothing(
    tmp_path: Path, clock: Clock, gathered: list[RankPace], caplog: pytest.LogCaptureFixture
) -> None:
    world = Ranks(tmp_path / "absent", clock, every=1)
    world.steps(1, 2)
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(world.run.folder.pace_path) in said.getMessage() and "No such file" in said.getMessage()
