"""The bus bandwidth: its formula, and its figures on two ranks over gloo (tests/unit/commands/test_health.py)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sama_mega.parallel import bandwidth


@pytest.mark.parametrize(("num_ranks", "expected"), [(2, 0.8), (8, 1.4)])
def test_bus_bandwidth(num_ranks: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    repeats_seen = []

    def fake_time(reduce: Any, repeats: int, group: Any, device: torch.device) -> float:
        repeats_seen.append(repeats)
        return 0.2 * repeats

    monkeypatch.setattr(bandwidth, "_time", fake_time)
    group: Any = SimpleNamespace(size=lambda: num_ranks)
    # 160 MB in 0.2 s, of which a ring sends 2 (n - 1) / n through each link.
    assert bandwidth.measure_group(group, torch.device("meta"), 160_000_000) == pytest.approx(expected)
    assert repeats_seen == [1, 1, 5]


def test_one_rank_measures_nothing() -> None:
    group: Any = SimpleNamespace(size=lambda: 1)
    assert bandwidth.measure_group(group, torch.device("cpu"), 1000) is None
