"""What moves between host and device arrives unchanged; that the host need not wait is seen on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_mega.parallel.transfer import read_numbers, to_device
from tests.support.host_waits import HostWaits


def test_a_host_tensor_stays_where_the_device_is_the_cpu() -> None:
    host = torch.arange(6).reshape(2, 3)
    assert to_device(host, "cpu") is host
    assert to_device(host, torch.device("cpu")) is host


def test_numbers_are_read_in_order() -> None:
    table = torch.tensor([[1.0, 2.5], [2.0**53 - 1, float("inf")]], dtype=torch.float64)
    assert read_numbers(table, torch.tensor(0.1, dtype=torch.float64)) == [1.0, 2.5, 2.0**53 - 1, float("inf"), 0.1]
    assert read_numbers(table.t()) == [1.0, 2.0**53 - 1, 2.5, float("inf")]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool((x > 1).any()),
        lambda x: float(x[0]),
        lambda x: range(x[1].long()),
        lambda x: torch.nonzero(x),
        lambda x: torch.equal(x, x),
        lambda x: x[x > 1],
        lambda x: x[[2, 0]],
        lambda x: x[:, None][[2, 0], 0],
        lambda x: x.to(x.device),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
)
def test_a_wait_is_recorded_with_its_place(work: Callable[[Tensor], Any]) -> None:
    with HostWaits() as waits:
        work(torch.arange(3.0))
    (place,) = waits.places
    assert place.startswith(f"{__file__}:")


def test_what_stays_on_one_side_is_not_recorded() -> None:
    x = torch.arange(3.0)
    with HostWaits() as waits:
        to_device(torch.tensor([1.0, 2.0]), x.device)
        torch.zeros(3, device=x.device)[1:].to(torch.float64)
        x[None, 1:, ...].masked_fill_(x[1:] > 1, 0).numpy().tolist()
    assert waits.places == []


@pytest.mark.gpu
def test_the_host_waits_for_a_read_and_not_for_a_copy() -> None:
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = to_device(torch.arange(6, dtype=torch.float64), "cuda")
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            read_numbers(copy)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read_numbers(copy) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
