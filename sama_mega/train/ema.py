"""Moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sama_mega.parallel.optimizer import MegatronAdamW


class WeightAverage:
    """Exponential moving average of the optimizer's float32 masters, sharded as they are and never gathered.

    Args:
        optimizer: Its masters are averaged; only read.
        decay: Share of the old average that stays at each update.
        ramp: True: the first updates use min(decay, (1 + k) / (10 + k)), so that a short run forgets its start.

    Attributes:
        values: One float32 tensor for each of `optimizer.owned`, same sizes.
        num_updates: Updates so far.
    """

    def __init__(self, optimizer: MegatronAdamW, decay: float, ramp: bool) -> None:
        self._optimizer = optimizer
        self._decay = decay
        self._ramp = ramp
        self.num_updates = 0
        self.values: list[Tensor] = []
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Starts again at the present weights."""
        self.values = [owned.master.detach().clone() for owned in self._optimizer.owned]
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves towards the present weights; called once a taken optimizer step."""
        decay = self._decay
        if self._ramp:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.values, [owned.master for owned in self._optimizer.owned], 1 - decay)
        self.num_updates += 1
