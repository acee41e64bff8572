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
        on_host: Whether the average lies in pinned host memory, and passes through the masters' CUDA device tensor by
            tensor at each update. On a CPU both are the same memory.

    Attributes:
        num_updates: Updates so far.
    """

    def __init__(self, optimizer: MegatronAdamW, decay: float, ramp: bool, on_host: bool = False) -> None:
        self._optimizer = optimizer
        self._decay = decay
        self._ramp = ramp
        self._on_host = on_host
        self.num_updates = 0
        pinned = on_host and any(owned.master.is_cuda for owned in optimizer.owned)
        self._updated = torch.cuda.Event() if pinned else None
        self._values = [self._memory_like(owned.master) for owned in optimizer.owned]
        self.restart()

    @property
    def values(self) -> list[Tensor]:
        """One float32 tensor for each of `optimizer.owned`, same sizes; to read or fill until the next update.

        Waits for the device where an update of host memory is still under way.
        """
        if self._updated is not None:
            self._updated.synchronize()
        return self._values

    @torch.no_grad()
    def restart(self) -> None:
        """Starts again at the present weights."""
        for average, owned in zip(self.values, self._optimizer.owned, strict=True):
            average.copy_(owned.master)
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves towards the present weights; called once a taken optimizer step."""
        decay = self._decay
        if self._ramp:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        if self._on_host:
            self._stream_through_device(1 - decay)
        else:
            torch._foreach_lerp_(self._values, [owned.master for owned in self._optimizer.owned], 1 - decay)
        self.num_updates += 1

    def _stream_through_device(self, share: float) -> None:
        """Queues the update behind what the device does now: it holds one tensor at a time, and nobody waits here."""
        for average, owned in zip(self._values, self._optimizer.owned, strict=True):
            moved = average.to(owned.master.device, non_blocking=True)
            # The same function as without streaming, so that both give the same bits.
            torch._foreach_lerp_([moved], [owned.master], share)
            average.copy_(moved, non_blocking=True)
        if self._updated is not None:
            self._updated.record()

    def _memory_like(self, master: Tensor) -> Tensor:
        if not self._on_host:
            return torch.empty_like(master)
        return torch.empty(master.shape, dtype=master.dtype, pin_memory=master.is_cuda)
