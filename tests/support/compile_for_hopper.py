"""Compiles the operations' kernels for an H100 or H200 on a machine that need not have one.

Calls every operation forward and backward with tensors of the CPU, with Triton told that there is a device and kept
from launching: what is compiled is exactly what a GPU would be given, alignment and number of warps included.

Run as a program, without TRITON_INTERPRET: prints one JSON object, resources by kernel and width.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sama_kernels.adaln.autograd import adaln_triton, layer_norm_triton
from sama_kernels.flow_matching import Address
from sama_kernels.flow_matching.autograd import add_noise_triton, weighted_mse_triton
from sama_kernels.gate_residual.autograd import (
    gate_residual_norm_triton,
    gate_residual_triton,
    residual_adaln_triton,
)
from sama_kernels.pretext.launch import pretext_triton
from sama_kernels.semantic_loss.autograd import absolute_error_triton

EPS = 1e-6
WIDTHS = (5120, 1536, 1531)
FEATURES = 1152


class HopperWithoutDevice:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack a thread (what is spilled lies there)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: re.search(rf"{name}:(\d+)", listing) for name in ("REG", "STACK")}
    return {name.lower(): int(match.group(1)) for name, match in found.items() if match}


def rows(width: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(*shape, width, dtype=dtype, requires_grad=True)


def backward(*results: Tensor) -> None:
    torch.autograd.backward(results, [torch.zeros_like(result) for result in results])


def run_rows(width: int) -> None:
    """The row-wise operations, tokens in bfloat16."""
    x, branch, (shift, scale, gate) = rows(width, 4, 2), rows(width, 4, 2), rows(width, 3, 2, dtype=torch.float32)
    weight, bias = rows(width), rows(width)
    backward(adaln_triton(x, shift, scale, EPS))
    backward(layer_norm_triton(x, weight, bias, EPS))
    backward(gate_residual_triton(x, branch, gate))
    backward(*gate_residual_norm_triton(x, branch, gate, weight, bias, EPS))
    backward(*residual_adaln_triton(x, branch, shift, scale, EPS))


def run_others() -> None:
    backward(absolute_error_triton(rows(FEATURES, 4, 2), torch.zeros(4, 2, FEATURES)))
    latents, sigma = torch.zeros(2, 16, 64), torch.zeros(2)
    add_noise_triton(latents, Address(1, [2, 3], 0, 1), sigma)
    add_noise_triton(latents, latents, sigma)
    backward(weighted_mse_triton(latents.clone().requires_grad_(), latents, None))
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    for order in (None, (1, 0, 3, 2, 5, 4, 7, 6)):
        pretext_triton(frames, [0, 1], order, torch.bfloat16)


def compile_all() -> dict[str, dict[str, int]]:
    """Resources by kernel; with the width where kernels are compiled for one, and numbered where that is not all."""
    triton.runtime.driver.set_active(HopperWithoutDevice())
    compiled: list[tuple[str, Any]] = []
    run, place = JITFunction.run, ""

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((f"{self.__name__}{place}", kernel))

    JITFunction.run = compile_only
    try:
        for width in WIDTHS:
            place = f" {width}"
            run_rows(width)
        place = ""
        run_others()
    finally:
        JITFunction.run = run
    by_name: dict[str, dict[str, int]] = {}
    for name, kernel in compiled:
        variant = sum(other.partition(" #")[0] == name for other in by_name)
        usage = resources(kernel.asm["cubin"]) | {"shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}
        by_name[f"{name} #{variant + 1}"] = usage
    return by_name


if __name__ == "__main__":
    print(json.dumps(compile_all()))
