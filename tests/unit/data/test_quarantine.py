"""The quarantine: one line a sample, whole lines only, whoever writes."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from sama_data.errors import ClipError, DataError, DecoderLostError
from sama_data.health import MIN_LOST_IN_A_ROW, MIN_TRIED, Health
from sama_data.media import Media
from sama_data.quarantine import Quarantine
from sama_data.rows import Row


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sample_is_written_once(tmp_path):
    path = tmp_path / "run" / "quarantine.jsonl"
    quarantine = Quarantine(path)
    assert not path.exists()
    assert quarantine.add("a", Path("clips/a.mp4"), "is empty", 3)
    assert not quarantine.add("a", Path("clips/a.mp4"), "is empty", 4)
    assert quarantine.add("b", Path("clips/b.mp4"), 'says "é"', 5)
    assert read_lines(path) == [
        {"sample_id": "a", "path": "clips/a.mp4", "reason": "is empty", "step": 3},
        {"sample_id": "b", "path": "clips/b.mp4", "reason": 'says "é"', "step": 5},
    ]


def test_other_ranks_and_earlier_lives_are_not_repeated(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    first, second = Quarantine(path), Quarantine(path)
    first.add("a", Path("a"), "r", 0)
    second.add("b", Path("b"), "r", 0)
    assert not first.add("b", Path("b"), "r", 1)
    assert not second.add("a", Path("a"), "r", 1)
    assert [line["sample_id"] for line in read_lines(path)] == ["a", "b"]


def test_a_torn_last_line_spoils_nothing(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add("a", Path("a"), "r", 0)
    with open(path, "a") as file:
        file.write('{"sample_id": "b", "pa')
    quarantine = Quarantine(path)
    assert quarantine.add("b", Path("b"), "r", 1)
    assert not quarantine.add("a", Path("a"), "r", 1)
    assert not Quarantine(path).add("b", Path("b"), "r", 1)
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["sample_id"] == "b"


def test_threads_write_whole_lines(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    writers = [Quarantine(path) for _ in range(4)]

    def write(quarantine: Quarantine) -> None:
        for number in range(25):
            quarantine.add(f"clip {number}", Path("x"), "r" * 200, number)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(line["step"] for line in read_lines(path)) == list(range(25))


def test_ranks_that_write_at_once_take_turns(tmp_path, monkeypatch):
    path = tmp_path / "quarantine.jsonl"
    both_have_read = threading.Barrier(2)
    read = Quarantine._read_new_lines

    def read_and_wait(self: Quarantine, file: BinaryIO) -> None:
        read(self, file)
        # Without turns, both ranks stand here at once, neither having seen the other's line.
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_read.wait(timeout=0.3)

    monkeypatch.setattr(Quarantine, "_read_new_lines", read_and_wait)
    ranks = [threading.Thread(target=Quarantine(path).add, args=("a", Path("a"), "r", 0)) for _ in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=30)
    assert len(read_lines(path)) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    quarantine = Quarantine(tmp_path / "file" / "quarantine.jsonl")
    with pytest.raises(DataError, match="cannot write the quarantine"):
        quarantine.add("a", Path("a"), "r", 0)


def row(index: int, kind: str = "video") -> Row:
    return Row(index, f"clip{index}", kind, None, Media(f"{index}.mp4"), "text")


def make_health(tmp_path: Path, share: float, videos: int = 100, images: int = 3) -> Health:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    return Health(videos + images, {"video": videos, "image": images}, share, quarantine)


def spoil(health: Health, spoiled: Row) -> None:
    health.record_bad(spoiled, ClipError(spoiled.target.name, "is empty"), 7)


def test_too_large_a_share_stops_the_run_but_not_before_enough_were_tried(tmp_path):
    health = make_health(tmp_path, share=0.25)
    for index in range(MIN_TRIED - 5):
        health.record_good(row(index))
    for index in range(90, 94):
        spoil(health, row(index))  # 4 of 19 is below the share; too few were tried as well
    spoil(health, row(94))  # 5 of 20 is the share, not above it
    spoil(health, row(94))  # known
    with pytest.raises(DataError) as caught:
        spoil(health, row(95))
    assert "6 of the 21 samples tried" in str(caught.value)
    assert "data.max_bad_share (0.25)" in str(caught.value)
    assert str(tmp_path / "quarantine.jsonl") in str(caught.value)
    assert health.num_bad == 6
    assert health.is_bad(94)
    assert not health.is_bad(0)


def test_a_few_bad_ones_first_do_not_stop_the_run(tmp_path):
    health = make_health(tmp_path, share=0.1)
    for index in range(MIN_TRIED - 1):
        spoil(health, row(index))
    with pytest.raises(DataError, match="20 of the 20"):
        spoil(health, row(50))


def test_when_all_of_a_kind_are_bad_the_run_stops_at_once(tmp_path):
    health = make_health(tmp_path, share=1.0)
    spoil(health, row(100, "image"))
    spoil(health, row(101, "image"))
    spoil(health, row(101, "image"))
    with pytest.raises(DataError, match=r"all 3 image samples are bad: see .*quarantine\.jsonl; the last one: 102"):
        spoil(health, row(102, "image"))


def lose(health: Health, lost: Row) -> None:
    health.record_bad(lost, DecoderLostError(lost.target.name, "took longer than 60 s to decode"), 7)


@pytest.mark.parametrize("between", ["a good sample", "a bad sample"])
def test_one_lost_decoder_after_the_other_stops_the_run(tmp_path, between):
    health = make_health(tmp_path, share=1.0)
    for index in range(MIN_LOST_IN_A_ROW - 1):
        lose(health, row(index))
    if between == "a good sample":
        health.record_good(row(98))
    else:
        spoil(health, row(98))  # its file could be read
    for index in range(50, 50 + MIN_LOST_IN_A_ROW - 1):
        lose(health, row(index))
    with pytest.raises(DataError) as caught:
        lose(health, row(97))
    assert f"{MIN_LOST_IN_A_ROW} samples in a row hung or crashed their decoder" in str(caught.value)
    assert "file system" in str(caught.value) and str(tmp_path / "quarantine.jsonl") in str(caught.value)
    assert "97.mp4: took longer than 60 s to decode" in str(caught.value)


def test_one_hang_that_all_threads_meet_is_not_one_after_the_other(tmp_path):
    health = Health(200, {"video": 200}, 1.0, Quarantine(tmp_path / "quarantine.jsonl"), num_threads=20)
    for index in range(39):
        lose(health, row(index))
    with pytest.raises(DataError, match="40 samples in a row"):
        lose(health, row(39))


def test_what_other_threads_were_reading_when_the_run_was_stopped_counts_no_more(tmp_path):
    health = make_health(tmp_path, share=1.0)
    for index in range(MIN_LOST_IN_A_ROW - 1):
        lose(health, row(index))
    with pytest.raises(DataError) as first:
        lose(health, row(50))
    with pytest.raises(DataError) as second:
        lose(health, row(51))
    assert second.value is first.value
    assert health.num_bad == MIN_LOST_IN_A_ROW and not health.is_bad(51)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == MIN_LOST_IN_A_ROW
