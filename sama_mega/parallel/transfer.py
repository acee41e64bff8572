"""Moves numbers between the host and the device; where the host waits for the device is decided here.

A plain `tensor.to("cuda")` or `torch.tensor(numbers, device="cuda")` copies from pageable memory: the host waits until
the device has taken the copy, and with it everything queued before. A step would stop at each of them.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device | str) -> Tensor:
    """Copies a host tensor to a device without making the host wait.

    Args:
        host: Any shape and dtype, in host memory; not changed. On a CPU `device` the result is the same tensor.
        device: Where the copy lives.

    Returns:
        Same shape and dtype, on `device`; later work of the current stream sees it filled.
    """
    if torch.device(device).type != "cuda":
        return host.to(device)
    # torch keeps the pinned pages until the copy is done: `host` may be dropped or overwritten at once.
    return host.pin_memory().to(device, non_blocking=True)


class InUse:
    """Keeps memory that another library would take back at once until the device is done with it.

    torch's own memory needs no such care: torch knows which stream uses it.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def keep(self, tensor: Tensor) -> None:
        """Holds a tensor until the current stream has done what it was given so far; lets go of earlier ones."""
        if tensor.is_cuda:
            done = torch.cuda.Event()
            done.record()
            self._held.append((done, tensor))
        while self._held and self._held[0][0].query():
            self._held.popleft()


def read_numbers(*tensors: Tensor) -> list[float]:
    """Reads tensors as Python numbers with one copy; the host waits for the device, once.

    Args:
        *tensors: float64, any shapes, on one device.

    Returns:
        The elements of the first tensor in row-major order, then those of the next.
    """
    numbers: list[float] = torch.cat([tensor.reshape(-1) for tensor in tensors]).tolist()
    return numbers
