"""How fast a step went, and what share of the GPUs' peak that is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sama_mega.config.schema import Recipe
from sama_mega.observe.gpu_kinds import kind_of_device, load_gpu_kinds
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.report import StepReport


@dataclass(frozen=True)
class Throughput:
    """Turns a step's counts into rates.

    Attributes:
        num_ranks: Ranks of the run, one a GPU.
        rank_peak_tflops: What one rank's device can do at most, in 1e12 operations a second; None where that is not
            known: there is no MFU then.
    """

    num_ranks: int
    rank_peak_tflops: float | None = None

    @property
    def peak_tflops(self) -> float | None:
        """Of all ranks together."""
        return None if self.rank_peak_tflops is None else self.rank_peak_tflops * self.num_ranks

    def of(self, report: StepReport) -> dict[str, float]:
        """The row's `speed`: empty for a step that took no time."""
        seconds = report.step_seconds
        if not seconds > 0:
            return {}
        speed = {
            "samples_per_second": (report.num_images + report.num_videos) / seconds,
            "tokens_per_second": report.tokens / seconds,
            "tokens_per_second_per_rank": report.tokens / seconds / self.num_ranks,
            "data_wait_share": report.data_wait_seconds / seconds,
        }
        if report.model_tflop is not None:
            speed["tflops_per_rank"] = report.model_tflop / seconds / self.num_ranks
            if self.rank_peak_tflops is not None:
                speed["mfu"] = speed["tflops_per_rank"] / self.rank_peak_tflops
        return speed


def measure_throughput(recipe: Recipe, context: ParallelContext) -> Throughput:
    """The rates of this run; the peak is that of the device's kind in the table of GPUs.

    Raises:
        ConfigError: The user's table of GPUs is wrong.
    """
    if context.device.type != "cuda":
        return Throughput(context.world_size)
    kind = kind_of_device(torch.cuda.get_device_name(context.device), load_gpu_kinds())
    precision = recipe.train.precision
    # What tensor cores do with float32 products is not in the table.
    is_known = precision == "bfloat16" or recipe.train.float32_matmul_precision == "highest"
    peak = kind.peak_flops(precision) / 1e12 if kind is not None and is_known else None
    return Throughput(context.world_size, peak)
