"""`bench kernels`: every operation by every backend that runs here: parity first, then time, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sama_kernels.attention import unavailable
from sama_kernels.dispatch import ATTENTION, BUILT, choose_backend
from sama_mega.bench.clock import Spread, time_in_turns
from sama_mega.bench.kernel_cases import Inputs, KernelCase, Outputs, Shard
from sama_mega.bench.parity import FLOAT32_FLOOR, MAX_RATIO, SizeCheck

Run = Callable[[Inputs, Shard], Outputs]
CHAIN = "authors' chain"
EAGER, COMPILED = "reference", "reference, compiled"


@dataclass(frozen=True)
class KernelRow:
    """One operation by one contender.

    Attributes:
        kernel: The case's name.
        contender: A backend, the compiled reference, or the unfused chain.
        error: The worst relative L2 error against float64, of outputs and gradients; None where it did not run.
        limit: What is allowed for that tensor.
        forward: Seconds; None without parity.
        backward: Seconds; None without parity or without a backward pass.
        forward_bytes_per_second: Of the bytes that must be moved.
        backward_bytes_per_second: Likewise.
        forward_flops_per_second: Where products bound it.
        backward_flops_per_second: Likewise.
        problem: Why there is no time.
        broken: Whether it is there, and yet raised an error or is wrong.
    """

    kernel: str
    contender: str
    error: float | None = None
    limit: float | None = None
    forward: Spread | None = None
    backward: Spread | None = None
    forward_bytes_per_second: float | None = None
    backward_bytes_per_second: float | None = None
    forward_flops_per_second: float | None = None
    backward_flops_per_second: float | None = None
    problem: str | None = None
    broken: bool = False


def contenders_of(
    case: KernelCase, device: torch.device, dtype: torch.dtype, compile_reference: bool
) -> dict[str, Run | str]:
    """Who computes an operation on this device: a function, or why it cannot."""
    found: dict[str, Run | str] = {}
    for backend in BUILT[case.operation]:
        reason = _why_not(case.operation, backend, device, dtype)
        found[backend] = reason or partial(_by_backend, case, backend)
    if compile_reference:
        # Every case calls the same function: after a few recompilations torch would run it uncompiled, without an
        # error. And a second shape would be compiled for any size, which is slower than for the one that is timed.
        torch.compiler.reset()
        found[COMPILED] = torch.compile(partial(_by_backend, case, EAGER), dynamic=False)
    return found | {CHAIN: case.chain}


def _why_not(operation: str, backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    try:
        choose_backend(operation, backend, device.type)
    except ValueError as error:
        return str(error)
    return unavailable(backend, device, dtype) if operation == ATTENTION else None


def _by_backend(case: KernelCase, backend: str, given: Inputs, shard: Shard) -> Outputs:
    return case.run(given, shard, backend)


def bench_kernel(
    name: str,
    case: KernelCase,
    contenders: Mapping[str, Run | str],
    small: Shard,
    shard: Shard,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> list[KernelRow]:
    """Holds every contender against float64 at a small size, and the chain at the timed one; times those that pass.

    Args:
        name: Of the case.
        case: The operation.
        contenders: By name: functions, or why there is none.
        small: What float64 can hold.
        shard: What is timed.
        device: Where it runs.
        dtype: Of activations and weights.
        rounds: Timed runs of each.

    Returns:
        A row a contender.
    """
    errors = _KernelParity(case, small, device, dtype)
    rows: dict[str, KernelRow] = {}
    right: dict[str, Run] = {}
    for contender, run in contenders.items():
        if isinstance(run, str):
            rows[contender] = KernelRow(name, contender, problem=run)
            continue
        try:
            error, limit = errors.of(run)
        except (ImportError, NotImplementedError, RuntimeError) as failure:
            lines = str(failure).splitlines() or [type(failure).__name__]
            broken = not isinstance(failure, ImportError)
            rows[contender] = KernelRow(name, contender, problem=lines[0], broken=broken)
            continue
        rows[contender] = KernelRow(name, contender, error, limit)
        if error <= limit:
            right[contender] = run
        else:
            rows[contender] = KernelRow(name, contender, error, limit, problem="parity is red", broken=True)
    timed = _time(name, case, right, rows, shard, device, dtype, rounds)
    return [timed.get(contender, rows[contender]) for contender in contenders]


def _time(
    name: str,
    case: KernelCase,
    right: Mapping[str, Run],
    rows: Mapping[str, KernelRow],
    shard: Shard,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
) -> dict[str, KernelRow]:
    given = case.draw(shard, device, dtype)
    leaves = [given[key].requires_grad_() for key in case.differentiable]
    timed = _held_against_the_chain(case, right, rows, given, leaves, shard)
    right = {contender: run for contender, run in right.items() if contender not in timed}
    if not right:
        return timed
    forward = time_in_turns([partial(run, given, shard) for run in right.values()], device, 3, rounds)
    backward: Sequence[Spread | None] = [None] * len(right)
    if case.backward_bytes is not None:
        passes = [_backward_of(run(given, shard), leaves) for run in right.values()]
        backward = time_in_turns(passes, device, 3, rounds)
    for contender, ahead, back in zip(right, forward, backward, strict=True):
        row = rows[contender]
        rates = _rates(case, shard, dtype.itemsize, ahead, back)
        timed[contender] = KernelRow(name, contender, row.error, row.limit, ahead, back, **rates)
    return timed


def _held_against_the_chain(
    case: KernelCase,
    right: Mapping[str, Run],
    rows: Mapping[str, KernelRow],
    given: Inputs,
    leaves: Sequence[Tensor],
    shard: Shard,
) -> dict[str, KernelRow]:
    """Runs both passes of every contender at the size that is timed.

    Returns:
        Rows of those that are wrong there, or do not fit: written out, attention's scores take hundreds of GiB.
    """
    failed, at_this_size = {}, SizeCheck()
    for contender in sorted(right, key=lambda name: name != CHAIN):
        try:
            outputs = right[contender](given, shard)
            gradients = () if case.backward_bytes is None else _backward_of(outputs, leaves)()
            problem = at_this_size.problem([*(output.detach() for output in outputs), *gradients])
        except torch.OutOfMemoryError:
            failed[contender] = replace(rows[contender], problem="out of memory")
            continue
        if problem is not None:
            failed[contender] = replace(rows[contender], problem=problem, broken=True)
    return failed


def _backward_of(outputs: Outputs, leaves: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    # The same for every contender.
    generator = torch.Generator(outputs[0].device).manual_seed(7)
    upstream = [
        torch.randn(output.shape, generator=generator, device=output.device).to(output.dtype) for output in outputs
    ]
    return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)


def _rates(case: KernelCase, shard: Shard, itemsize: int, forward: Spread, backward: Spread | None) -> dict[str, Any]:
    rates: dict[str, Any] = {"forward_bytes_per_second": case.forward_bytes(shard, itemsize) / forward.median}
    if backward is not None and case.backward_bytes is not None:
        rates["backward_bytes_per_second"] = case.backward_bytes(shard, itemsize) / backward.median
    if case.flops is not None:
        rates["forward_flops_per_second"] = case.flops(shard) / forward.median
        if backward is not None:
            rates["backward_flops_per_second"] = 2.5 * case.flops(shard) / backward.median
    return rates


class _KernelParity:
    """The exact result of one operation and the unfused chain's errors."""

    def __init__(self, case: KernelCase, shard: Shard, device: torch.device, dtype: torch.dtype) -> None:
        self._case, self._shard = case, shard
        self._given = case.draw(shard, device, dtype)
        wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in self._given.items()}
        self._exact = self._results(case.chain, wide)
        # What is computed in float32 throughout need not be as exact as another order of summation happens to be.
        self._floor = FLOAT32_FLOOR
        self._chain = self._errors(self._results(case.chain, self._given))

    def of(self, run: Run) -> tuple[float, float]:
        """The error that is largest for its limit, and that limit."""
        errors = self._errors(self._results(run, self._given))
        limits = [max(MAX_RATIO * error, self._floor) for error in self._chain]
        return max(zip(errors, limits, strict=True), key=lambda pair: (pair[0] != pair[0], pair[0] / pair[1]))

    def _results(self, run: Run, given: Inputs) -> list[Tensor]:
        given = {name: tensor.detach().clone() for name, tensor in given.items()}
        leaves = [given[name].requires_grad_() for name in self._case.differentiable]
        outputs = run(given, self._shard)
        if not leaves:
            return list(outputs)
        generator = torch.Generator(outputs[0].device).manual_seed(6)
        upstream = [
            torch.randn(output.shape, generator=generator, device=output.device).bfloat16().to(output.dtype)
            for output in outputs
        ]
        return [*(output.detach() for output in outputs), *torch.autograd.grad(outputs, leaves, upstream)]

    def _errors(self, results: Sequence[Tensor]) -> list[float]:
        return [
            ((result.double() - exact.double()).norm() / exact.double().norm()).item()
            for result, exact in zip(results, self._exact, strict=True)
        ]
