"""What moves between host and device arrives unchanged; that the host need not wait is seen on a GPU."""

from __future__ import annotations

import pytest
import torch

from sama_mega.parallel.transfer import read_numbers, to_device


def test_a_host_tensor_stays_where_the_device_is_the_cpu() -> None:
    host = torch.arange(6).reshape(2, 3)
    assert to_device(host, "cpu") is host
    assert to_device(host, torch.device("cpu")) is host


def test_numbers_are_read_in_order() -> None:
    table = torch.tensor([[1.0, 2.5], [2.0**53 - 1, float("inf")]], dtype=torch.float64)
    assert read_numbers(table, torch.tensor(0.1, dtype=torch.float64)) == [1.0, 2.5, 2.0**53 - 1, float("inf"), 0.1]
    assert read_numbers(table.t()) == [1.0, 2.0**53 - 1, 2.5, float("inf")]


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
