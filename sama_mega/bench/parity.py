"""Whether a block computes what it should: its output and every gradient against float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_mega.bench.contenders import Build, chain
from sama_mega.bench.inputs import BlockInputs, draw_inputs, draw_weights
from sama_mega.bench.shapes import ModelSize, Workload

MAX_RATIO = 1.5
"""A block may be so many times as far from float64 as the unfused chain is in the same precision."""
FLOAT32_FLOOR = 2e-6
"""Relative, L2: in float32 both are rounding noise, and so is their ratio."""
LARGEST_DIFFERENCE = 0.1
"""Of a row, between contenders at the size that is timed; right ones in bfloat16 differ by a tenth of that."""
_ROWS_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class Parity:
    """One block against float64.

    Attributes:
        tensor: The worst one: ``output``, ``x``, ``time_modulation``, ``text`` or a weight, the latter by gradient.
        error: Its relative L2 error.
        limit: What is allowed for it.
    """

    tensor: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether every tensor is within its limit; not a number never is."""
        return self.error <= self.limit


class ParityCheck:
    """Holds the exact result and the unfused chain's errors, for one size and workload.

    Args:
        size: Of the block.
        work: Small enough for float64.
        device: Where all of it runs.
        dtype: The benchmark's precision.
    """

    def __init__(self, size: ModelSize, work: Workload, device: torch.device, dtype: torch.dtype) -> None:
        self._size, self._work = size, work
        self._floor = FLOAT32_FLOOR if dtype == torch.float32 else 0.0
        self.weights = round_weights(draw_weights(size, device), dtype)
        self._inputs = draw_inputs(size, work, device, dtype)
        weights = {name: tensor.double() for name, tensor in self.weights.items()}
        exact_inputs = BlockInputs(
            self._inputs.x.double(),
            self._inputs.time_modulation.double(),
            self._inputs.text.double(),
            self._inputs.upstream.double(),
        )
        self._exact = run_once(chain(), weights, size, work, exact_inputs)
        self._chain_errors = self._errors(run_once(chain(), self.weights, size, work, self._inputs))

    def of(self, build: Build) -> Parity:
        """Runs a contender and finds its worst tensor."""
        errors = self._errors(run_once(build, self.weights, self._size, self._work, self._inputs))
        limits = {name: max(MAX_RATIO * self._chain_errors[name], self._floor) for name in errors}
        # A NaN is worse than any number.
        worst = max(errors, key=lambda name: (errors[name] != errors[name], errors[name] / limits[name]))
        return Parity(worst, errors[worst], limits[worst])

    def _errors(self, results: Mapping[str, Tensor]) -> dict[str, float]:
        assert results.keys() == self._exact.keys(), sorted(results.keys() ^ self._exact.keys())
        return {
            name: ((results[name].double() - exact).norm() / exact.norm()).item() for name, exact in self._exact.items()
        }


class SizeCheck:
    """Holds contenders against each other at the size that is timed, which float64 cannot hold.

    Parity at a small size says nothing of an offset that overflows at a large one.
    """

    def __init__(self) -> None:
        self._expected: list[Tensor] | None = None

    def problem(self, results: Sequence[Tensor]) -> str | None:
        """What is wrong with a contender's results, or None; the first contender's are what is expected.

        Args:
            results: ``[..., width]`` each; every row counts by itself, as a share of the rows' mean size.
        """
        if self._expected is None:
            self._expected = [result.detach() for result in results]
        for result, expected in zip(results, self._expected, strict=True):
            for difference in _row_differences(result, expected):
                # Not a number fails too.
                if not difference <= LARGEST_DIFFERENCE:
                    return f"wrong at this size: a row differs by {difference:.2e} from the first contender's"
        return None


def _row_differences(result: Tensor, expected: Tensor) -> list[float]:
    """Of each stretch of rows the largest; the first contender's own are 0, or not a number."""
    mean_size = expected.float().norm() / (expected.numel() / expected.shape[-1]) ** 0.5
    # By stretches: float32 copies of all would take memory that contenders need.
    stretches = (tensor.reshape(-1, tensor.shape[-1]).split(_ROWS_AT_ONCE) for tensor in (result, expected))
    return [
        ((one.float() - right.float()).norm(dim=-1).max() / mean_size).item()
        for one, right in zip(*stretches, strict=True)
    ]


def round_weights(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the benchmark's precision, the modulation in float32."""
    return {name: one if name == "modulation" else one.to(dtype) for name, one in weights.items()}


def run_once(
    build: Build, weights: Mapping[str, Tensor], size: ModelSize, work: Workload, inputs: BlockInputs
) -> dict[str, Tensor]:
    """One forward and backward pass: output and every gradient."""
    contender = build(weights, size, work)
    leaves = [tensor.detach().requires_grad_() for tensor in (inputs.x, inputs.time_modulation, inputs.text)]
    output = contender.run(*leaves)
    output.backward(inputs.upstream)
    named = dict(zip(("x", "time_modulation", "text"), (leaf.grad for leaf in leaves), strict=True))
    return {"output": output.detach(), **{name: one for name, one in named.items() if one is not None}} | (
        contender.gradients()
    )
