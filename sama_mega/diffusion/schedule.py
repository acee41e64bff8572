"""Noise levels for training and sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TimestepWeight = Literal["bell", "none"]


class FlowMatchingSchedule:
    """The shifted flow-matching schedule; tensors are float32 on the CPU, from noise to clean.

    Attributes:
        train_sigmas: ``[num_train_timesteps]`` noise levels, 1 first.
        train_timesteps: ``[num_train_timesteps]`` what the model is told: sigma * num_train_timesteps.
        train_weights: ``[num_train_timesteps]`` weights of the flow-matching loss, mean 1.

    Source: Cynthiazxy123/SAMA@5c6bb5b, FlowMatchScheduler with extra_one_step (equal bit by bit).
    """

    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 5.0, timestep_weight: TimestepWeight = "bell"
    ) -> None:
        """Computes the training levels.

        Args:
            num_train_timesteps: Number of training levels, and the timestep at pure noise.
            shift: Above 1 moves levels towards noise, 1 leaves them evenly spaced.
            timestep_weight: ``bell`` or ``none`` (ones).

        Raises:
            ValueError: An argument is out of range.
        """
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps ({num_train_timesteps}) must be at least 2")
        if not shift > 0:
            raise ValueError(f"shift ({shift}) must be greater than 0")
        self.num_train_timesteps = num_train_timesteps
        self.shift = shift
        self.train_sigmas = _shifted_sigmas(num_train_timesteps, shift)
        self.train_timesteps = self.train_sigmas * num_train_timesteps
        self.train_weights = _timestep_weights(self.train_timesteps, num_train_timesteps, timestep_weight)

    def sampling_schedule(self, num_steps: int) -> tuple[Tensor, Tensor]:
        """Levels of a sampling run.

        Args:
            num_steps: Euler steps.

        Returns:
            sigmas ``[num_steps + 1]``, from 1 to 0 inclusive, and timesteps ``[num_steps]``; float32, CPU.

        Raises:
            ValueError: num_steps is less than 1.
        """
        if num_steps < 1:
            raise ValueError(f"sampling steps ({num_steps}) must be at least 1")
        sigmas = _shifted_sigmas(num_steps, self.shift)
        return torch.cat([sigmas, torch.zeros(1)]), sigmas * self.num_train_timesteps


def _shifted_sigmas(num_levels: int, shift: float) -> Tensor:
    even = _even_levels(num_levels)
    return shift * even / (1 + (shift - 1) * even)


def _even_levels(num_levels: int) -> Tensor:
    """torch.linspace(1, 0, num_levels + 1)[:-1] in float32, the same on every machine.

    torch rounds once where the processor has fused multiply-add and twice where not. Here the sum is made in
    float64, where the product is exact, so it is rounded once everywhere, as in the released code's numbers.
    """
    position = torch.arange(num_levels, dtype=torch.float64)
    step = torch.tensor(-1.0 / num_levels, dtype=torch.float32).double()
    from_start = 1.0 + step * position
    from_end = -step * (num_levels - position)
    return torch.where(position < (num_levels + 1) // 2, from_start, from_end).float()


def _timestep_weights(timesteps: Tensor, num_levels: int, kind: TimestepWeight) -> Tensor:
    if kind == "none":
        return torch.ones_like(timesteps)
    if kind != "bell":
        raise ValueError(f"timestep_weight ({kind!r}) must be 'bell' or 'none'")
    bell = torch.exp(-2 * ((timesteps - num_levels / 2) / num_levels) ** 2)
    bell = bell - bell.min()
    return bell * (num_levels / bell.sum())
