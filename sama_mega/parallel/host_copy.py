"""Copies of a rank's tensors in host memory, so that they can be written while training changes the tensors."""

from __future__ import annotations

from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.mapping import is_main_replica

from sama_mega.parallel.sharded_state import ShardedState


class HostCopy:
    """Host memory for the pieces of one state, taken at the first copy and used again for every later one.

    Args:
        device: Where the state is; for a CUDA device the memory is pinned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def take(self, state: ShardedState) -> ShardedState:
        """Copies what this rank is to write; the state may change once this returns.

        Args:
            state: This rank's pieces; those that another rank writes (its replicas) are left out.

        Returns:
            The same pieces over host memory, which the next call **overwrites**.
        """
        copies: ShardedState = {}
        for name, piece in state.items():
            if is_main_replica(piece.replica_id):
                memory = self._memory_like(name, piece.data)
                memory.copy_(piece.data, non_blocking=True)
                copies[name] = replace(piece, data=memory)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return copies

    def _memory_like(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        memory = self._memory.get(name)
        if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
            memory = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._device.type == "cuda")
            self._memory[name] = memory
        return memory
