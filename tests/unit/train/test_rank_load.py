"""Memory of this process, and what lies in the quarantine by reason."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sama_mega.train.rank_load import QuarantineTally, RankLoad, measure_memory, most_memory


def quarantine(path: Path, *reasons: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"sample_id": str(n), "reason": reason}) + "\n" for n, reason in enumerate(reasons))


def test_reasons_are_counted_by_their_first_words(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    tally = QuarantineTally(path)
    assert tally.read() == {"quarantined": 0}
    quarantine(path, "cannot be decoded: end of file", "cannot be decoded: bad header", "is empty (0 bytes)")
    expected = {"quarantined": 3, "quarantined/cannot be decoded": 2, "quarantined/is empty": 1}
    assert tally.read() == expected
    with path.open("a") as file:
        file.write('{"sample_id": "torn", "rea')  # a kill, and the next life's line after it
    assert tally.read() == expected
    with path.open("a") as file:
        file.write("\n")
    quarantine(path, "is empty (0 bytes)")
    assert tally.read() == expected | {"quarantined": 4, "quarantined/is empty": 2}


def test_many_reasons_are_no_many_names(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine(path, *(f"is {chr(97 + n)}" for n in range(20)), "is a")
    counts = QuarantineTally(path).read()
    assert len(counts) == 14 and counts["quarantined/is a"] == 2 and counts["quarantined/other reasons"] == 8


def test_this_process_has_memory() -> None:
    used = measure_memory(torch.device("cpu"))
    assert 0.05 < used["resident_gib"] < 1000


def test_the_rank_with_most_memory_is_shown() -> None:
    loads = [RankLoad({"a": 1.0, "b": 5.0}), RankLoad({"a": 2.0, "b": 4.0})]
    assert most_memory(loads) == {"a": 2.0, "b": 5.0}
