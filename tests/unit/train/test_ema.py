"""The moving average of the weights against a NumPy reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sama_mega.train.ema import WeightAverage

SIZES = (3, 17)


def make_optimizer(device: str = "cpu") -> Any:
    generator = torch.Generator().manual_seed(3)
    owned = [SimpleNamespace(master=torch.randn(size, generator=generator).to(device)) for size in SIZES]
    return SimpleNamespace(owned=tuple(owned))


def masters(optimizer: Any) -> list[np.ndarray]:
    return [owned.master.numpy().astype(np.float64) for owned in optimizer.owned]


def take_step(optimizer: Any, number: int) -> None:
    generator = torch.Generator().manual_seed(100 + number)
    for owned in optimizer.owned:
        owned.master.add_(torch.randn(owned.master.shape, generator=generator).to(owned.master.device))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("ramp", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9998])
def test_it_follows_the_formula(decay: float, ramp: bool, on_host: bool) -> None:
    optimizer = make_optimizer()
    average = WeightAverage(optimizer, decay, ramp, on_host)
    expected = masters(optimizer)
    for number in range(30):
        take_step(optimizer, number)
        average.update()
        used = min(decay, (1 + number) / (10 + number)) if ramp else decay
        expected = [used * old + (1 - used) * new for old, new in zip(expected, masters(optimizer), strict=True)]
        for ours, truth in zip(average.values, expected, strict=True):
            assert ours.dtype == torch.float32
            np.testing.assert_allclose(ours.numpy(), truth, rtol=2e-6, atol=2e-6)
    assert average.num_updates == 30


def test_the_ramp_forgets_the_start() -> None:
    """Why the demo uses one: after 100 updates at 0.9998 the average is still the initial weights."""
    shares = {}
    for ramp in (False, True):
        optimizer = make_optimizer()
        for owned in optimizer.owned:
            owned.master.fill_(1.0)
        average = WeightAverage(optimizer, 0.9998, ramp)
        for owned in optimizer.owned:
            owned.master.zero_()
        for _ in range(100):
            average.update()
        shares[ramp] = average.values[0][0].item()
    assert shares[False] == pytest.approx(0.9998**100, rel=1e-5)
    assert shares[True] < 1e-6


def test_it_starts_at_the_weights_and_owns_its_memory() -> None:
    optimizer = make_optimizer()
    before = masters(optimizer)
    average = WeightAverage(optimizer, 0.9, False)
    take_step(optimizer, 0)
    for ours, start in zip(average.values, before, strict=True):
        np.testing.assert_array_equal(ours.numpy(), start.astype(np.float32))
    after = masters(optimizer)
    average.update()
    for kept, now in zip(after, masters(optimizer), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_restarting_takes_the_present_weights_and_ramps_anew() -> None:
    optimizer = make_optimizer()
    average = WeightAverage(optimizer, 0.99, True)
    for number in range(5):
        take_step(optimizer, number)
        average.update()
    average.restart()
    assert average.num_updates == 0
    start = masters(optimizer)
    take_step(optimizer, 9)
    average.update()
    for ours, old, new in zip(average.values, start, masters(optimizer), strict=True):
        np.testing.assert_allclose(ours.numpy(), 0.1 * old + 0.9 * new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_the_host_it_is_the_same_to_the_last_bit(device: str) -> None:
    optimizer = make_optimizer(device)
    on_device, on_host = (WeightAverage(optimizer, 0.9, True, on_host=place) for place in (False, True))
    for number in range(20):
        take_step(optimizer, number)
        on_device.update()
        on_host.update()
        for ours, truth in zip(on_host.values, on_device.values, strict=True):
            assert ours.device.type == "cpu" and ours.is_pinned() == (device == "cuda")
            assert torch.equal(ours, truth.cpu())
    assert on_host.num_updates == 20


def test_on_the_host_it_is_read_after_the_device_has_written_it() -> None:
    average = WeightAverage(make_optimizer(), 0.9, False, on_host=True)
    waited: list[str] = []
    average._updated = cast(Any, SimpleNamespace(record=lambda: waited.append("record"), synchronize=waited.clear))
    average.update()
    assert waited == ["record"]
    assert average.values and waited == []
