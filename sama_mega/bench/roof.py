"""What the device can do at best, measured in the same run: the roof that kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sama_mega.bench.clock import time_in_turns

_ROUNDS, _WARMUPS = 20, 5


@dataclass(frozen=True)
class Roof:
    """Measured rates of one device.

    Attributes:
        copy_bytes_per_second: Read and written by a copy of one large tensor.
        matmul_flops_per_second: Of one large square product, in the benchmark's precision.
    """

    copy_bytes_per_second: float
    matmul_flops_per_second: float


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Times a copy and a product: 4 GiB and 8192 cubed on CUDA, 64 MiB and 1024 cubed on a CPU."""
    num_bytes, width = (4 << 30, 8192) if device.type == "cuda" else (64 << 20, 1024)
    source = torch.ones(num_bytes // dtype.itemsize, dtype=dtype, device=device)
    copy = torch.empty_like(source)
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    copied, multiplied = time_in_turns([lambda: copy.copy_(source), lambda: left @ right], device, _WARMUPS, _ROUNDS)
    return Roof(2 * num_bytes / copied.median, 2 * width**3 / multiplied.median)
