"""The passes of a guided step, spread over data ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.distributed as dist

from sama_mega.diffusion.sampler import Condition, Prediction
from sama_mega.parallel.collectives import gather_tensors


class PassesOverRanks:
    """Every rank makes some of a step's passes and receives the others'; all then go on with the same numbers.

    Nothing is summed between ranks, so the result is that of one rank to the last bit.

    Args:
        group: Ranks that hold the same model and sample the same clip.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, predict: Callable[[Condition], Prediction], conditions: Sequence[Condition]) -> list[Prediction]:
        """Returns the predictions of all conditions, in their order."""
        predictions: list[Prediction] = []
        for start in range(0, len(conditions), self._group.size()):
            # A rank for which no pass is left repeats the last one: it has to know the shapes that it receives.
            own = min(start + self._group.rank(), len(conditions) - 1)
            velocity, semantic = predict(conditions[own])
            velocities = gather_tensors(velocity, self._group)
            semantics = [None] * len(velocities) if semantic is None else gather_tensors(semantic, self._group)
            predictions += zip(velocities, semantics, strict=True)
        return predictions[: len(conditions)]
