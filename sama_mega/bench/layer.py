"""`bench layer`: one transformer block, forward and backward, against its peers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_mega.bench.clock import Spread, time_in_turns
from sama_mega.bench.contenders import Build, Contender
from sama_mega.bench.inputs import BlockInputs, draw_inputs
from sama_mega.bench.parity import Parity, ParityCheck, SizeCheck
from sama_mega.bench.shapes import PARITY_WORKLOAD, ModelSize, Workload
from sama_mega.observe.flops import block_flops

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class LayerRow:
    """One contender at one workload.

    Attributes:
        contender: Its name.
        workload: The workload's label.
        parity: Against float64; None where it could not be run.
        seconds: Of forward and backward; None without parity.
        forward_seconds: Of the forward pass; None without parity.
        activation_bytes: Allocated after the forward pass beyond what was before; None off CUDA.
        peak_bytes: The most allocated at a time, beyond what was before; None off CUDA.
        flops_per_second: Of the formula in `sama_mega.observe.flops`; None without parity.
        problem: Why there is no time.
    """

    contender: str
    workload: str
    parity: Parity | None
    seconds: Spread | None = None
    forward_seconds: Spread | None = None
    activation_bytes: int | None = None
    peak_bytes: int | None = None
    flops_per_second: float | None = None
    problem: str | None = None


def run_layer_bench(
    contenders: Mapping[str, Build],
    size: ModelSize,
    workloads: Mapping[str, Workload],
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    report: Callable[[str], None],
) -> list[LayerRow]:
    """Holds every contender against float64, and against the first one at the size itself; times those that pass.

    Args:
        contenders: By name.
        size: Of the block.
        workloads: By name.
        device: Where it runs.
        dtype: Activations and weights.
        rounds: Timed runs of each.
        report: Told what is going on.

    Returns:
        A row for every contender at every workload, in order.
    """
    check = ParityCheck(size, PARITY_WORKLOAD, device, dtype)
    parities: dict[str, Parity | None] = {}
    problems: dict[str, str | None] = {}
    for name, build in contenders.items():
        report(f"parity: {name}")
        parities[name], problems[name] = _parity(check, build)
    rows = []
    for work in workloads.values():
        inputs, at_this_size = draw_inputs(size, work, device, dtype), SizeCheck()
        for name, build in contenders.items():
            parity = parities[name]
            if parity is None or not parity.ok:
                rows.append(LayerRow(name, work.label, parity, problem=problems[name]))
                continue
            report(f"{work.label} tokens: {name}")
            rows.append(_measure(name, build, check.weights, size, work, inputs, parity, at_this_size, device, rounds))
            # The next contender gets all of the memory.
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def _parity(check: ParityCheck, build: Build) -> tuple[Parity | None, str | None]:
    try:
        parity = check.of(build)
    except ImportError as error:
        return None, f"not installed: {error.name}"
    red = f"parity is red: {parity.tensor} is {parity.error:.2e} from float64, at most {parity.limit:.2e}"
    return parity, None if parity.ok else red


def _measure(
    name: str,
    build: Build,
    weights: Mapping[str, Tensor],
    size: ModelSize,
    work: Workload,
    inputs: BlockInputs,
    parity: Parity,
    at_this_size: SizeCheck,
    device: torch.device,
    rounds: int,
) -> LayerRow:
    contender = build(weights, size, work)
    try:
        problem = at_this_size.problem(_output_and_gradient(contender, inputs))
        if problem is not None:
            return LayerRow(name, work.label, parity, problem=problem)
        activation_bytes, peak_bytes = _memory(contender, inputs, device)
        both, forward = time_in_turns(
            [lambda: _forward_backward(contender, inputs), lambda: _forward(contender, inputs)], device, 2, rounds
        )
    except torch.OutOfMemoryError:
        return LayerRow(name, work.label, parity, problem=OUT_OF_MEMORY)
    per_sample = block_flops(size.dim, size.ffn_dim, work.num_tokens, size.text_length)
    flops_per_second = work.batch * per_sample.total / both.median
    return LayerRow(name, work.label, parity, both, forward, activation_bytes, peak_bytes, flops_per_second)


def _output_and_gradient(contender: Contender, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
    """What it returns, and the gradient of the residual stream."""
    leaves = _leaves(inputs)
    output = contender.run(*leaves)
    output.backward(inputs.upstream)
    assert leaves[0].grad is not None
    return output.detach(), leaves[0].grad


def _leaves(inputs: BlockInputs) -> tuple[Tensor, Tensor, Tensor]:
    x, modulation, text = (one.detach().requires_grad_() for one in (inputs.x, inputs.time_modulation, inputs.text))
    return x, modulation, text


def _forward(contender: Contender, inputs: BlockInputs) -> Tensor:
    return contender.run(*_leaves(inputs))


def _forward_backward(contender: Contender, inputs: BlockInputs) -> None:
    for weight in contender.weights:
        weight.grad = None
    _forward(contender, inputs).backward(inputs.upstream)


def _memory(contender: Contender, inputs: BlockInputs, device: torch.device) -> tuple[int | None, int | None]:
    """Bytes that a forward pass leaves, its output among them, and the peak of both passes; None off CUDA."""
    if device.type != "cuda":
        return None, None
    _forward_backward(contender, inputs)
    for weight in contender.weights:
        weight.grad = None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    output = _forward(contender, inputs)
    torch.cuda.synchronize(device)
    kept = torch.cuda.memory_allocated(device) - before
    output.backward(inputs.upstream)
    torch.cuda.synchronize(device)
    return kept, torch.cuda.max_memory_allocated(device) - before
