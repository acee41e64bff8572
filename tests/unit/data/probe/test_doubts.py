"""Whether clips or the machine are to blame when decoders are lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_data.errors import DataError
from sama_data.media import Media
from sama_data.probe.doubts import Doubts, Loss
from sama_data.probe.findings import Findings
from sama_data.probe.row import Finding
from sama_data.rows import Row

WORKERS, MOST = 5, 10
BAD = Finding(rejected="decoding took longer than 60 s")
ROW = Row(0, "good", "video", None, Media(Path("a.mp4")), "text")


class World:
    """Losses in order, and what asking once more says."""

    def __init__(self, is_well: bool) -> None:
        self.findings = Findings(None, 60)
        self.asked: list[str] = []
        self.is_well = is_well
        self.doubts = Doubts(self.findings, WORKERS, self.ask)
        self.num_lost = 0

    def ask(self, row: Row) -> bool:
        self.asked.append(row.sample_id)
        return self.is_well

    def lose(self, count: int) -> None:
        for _ in range(count):
            self.num_lost += 1
            self.doubts.add(Loss(self.num_lost, f"row {self.num_lost}", BAD, 60))

    def num_kept(self) -> int:
        return sum(key in self.findings for key in range(1, self.num_lost + 1))


def test_losses_are_kept_once_another_row_is_seen() -> None:
    world = World(is_well=False)
    for _ in range(3):
        world.lose(MOST - 1)
        assert world.num_kept() == world.num_lost - MOST + 1
        world.doubts.clear(ROW)
        assert world.num_kept() == world.num_lost
    assert world.asked == [] and world.findings[1] == BAD


def test_bad_neighbours_do_not_stop_a_machine_that_is_well() -> None:
    world = World(is_well=True)
    world.doubts.clear(ROW)
    world.lose(3 * MOST + 1)
    assert world.asked == ["good"] * 3 and world.num_kept() == 3 * MOST
    world.doubts.clear()
    assert world.num_kept() == world.num_lost


@pytest.mark.parametrize("has_seen", [False, True])
def test_a_machine_that_is_not_well_stops_and_blames_no_row(has_seen: bool) -> None:
    world = World(is_well=False)
    if has_seen:
        world.doubts.clear(ROW)
    with pytest.raises(DataError, match=r"10 rows in a row hung or crashed .* row 10: decoding took longer than 60 s"):
        world.lose(MOST)
    assert world.num_kept() == 0 and world.asked == ["good"] * has_seen
