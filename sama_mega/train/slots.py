"""The losses of one step, collected by each sample's slot in the global batch.

A slot's numbers are computed by one data-parallel rank and summed over ranks in one message, then averaged in slot
order: the reported losses do not depend on how samples were dealt to ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.parallel.collectives import all_reduce_in_place
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.batch import MicroBatch, modality_weight
from sama_mega.train.forward import SampleErrors

TASKS = ("none", "cube", "speed", "tube", "edit")
"""Every task a sample can have, by the code that travels between ranks."""

_FLOW_MATCHING, _SEMANTIC, _TIMESTEP, _SAMPLE_INDEX, _TASK, _TOKENS, _FILLED, _NUM_COLUMNS = range(8)


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step over the global batch, and per slot.

    Attributes:
        total: flow_matching + lambda * semantic, weighted over samples.
        flow_matching: With the timestep weights.
        semantic: Unweighted by lambda.
        slot_flow_matching: One value a slot.
        slot_semantic: One value a slot.
        slot_timesteps: One value a slot.
        slot_sample_indices: The dataset row that really filled each slot (a bad clip is replaced).
        slot_tasks: The task of each slot, one of TASKS.
        num_tokens: Sequence tokens of the global batch, without padding.
    """

    total: float
    flow_matching: float
    semantic: float
    slot_flow_matching: list[float]
    slot_semantic: list[float]
    slot_timesteps: list[float]
    slot_sample_indices: list[int]
    slot_tasks: list[str]
    num_tokens: int

    @property
    def flow_matching_by_task(self) -> dict[str, float]:
        """Mean flow-matching loss of each task in the batch."""
        by_task: dict[str, list[float]] = {}
        for task, loss in zip(self.slot_tasks, self.slot_flow_matching, strict=True):
            by_task.setdefault(task, []).append(loss)
        return {task: fmean(losses) for task, losses in sorted(by_task.items())}

    @property
    def sample_digest(self) -> str:
        """Digest of the dataset rows in slot order."""
        rows = ",".join(map(str, self.slot_sample_indices))
        return hashlib.blake2b(rows.encode(), digest_size=8).hexdigest()


class SlotStatistics:
    """Collects this rank's losses of one step.

    Args:
        drawn: The step's samples on this rank and its global counts.
        recipe: The whole recipe.
        context: The running layout.

    Attributes:
        total_weight: Sum of the modality weights over the global batch.
    """

    def __init__(self, drawn: StepSamples, recipe: Recipe, context: ParallelContext) -> None:
        self._recipe = recipe
        self._context = context
        kinds = ["image"] * drawn.num_image_slots + ["video"] * (drawn.num_slots - drawn.num_image_slots)
        self._weights = [modality_weight(kind, recipe) for kind in kinds]
        self.total_weight = sum(self._weights)
        self._table = torch.zeros(_NUM_COLUMNS, len(kinds), dtype=torch.float64, device=context.device)

    def record(self, batch: MicroBatch, errors: SampleErrors, timesteps: Tensor, tokens_per_sample: int) -> None:
        """Notes one micro-batch's errors; nothing waits for the device."""
        slots = torch.tensor(batch.slots, device=self._table.device)
        if self._context.reports_token_shares:
            self._table[_SEMANTIC, slots] = errors.semantic_share.detach().double()
        if self._context.reports_samples:
            self._table[_FILLED, slots] += 1
            self._table[_FLOW_MATCHING, slots] = errors.flow_matching.detach().double()
            self._table[_TIMESTEP, slots] = timesteps.double()
            self._table[_SAMPLE_INDEX, slots] = self._row(batch.sample_indices)
            self._table[_TASK, slots] = self._row([TASKS.index(task) for task in batch.tasks])
            self._table[_TOKENS, slots] = tokens_per_sample

    def reduce(self) -> StepLosses:
        """Sums over all ranks and averages in slot order; waits for the device.

        Raises:
            DataError: On every rank, when a slot was trained by no rank or by several.
        """
        all_reduce_in_place(self._table, self._context.world_group)
        flow_matching, semantic, timesteps, indices, tasks, tokens, filled = self._table.tolist()
        wrong = [slot for slot, count in enumerate(filled) if count != 1]
        if wrong:
            raise DataError(
                f"slot {wrong[0]} of the step was trained by {filled[wrong[0]]:.0f} ranks instead of one: the ranks"
                " deal samples differently; make the manifest the same file on every node"
            )
        mean_flow_matching = self._weighted_mean(flow_matching)
        mean_semantic = self._weighted_mean(semantic)
        return StepLosses(
            total=mean_flow_matching + self._recipe.anchor.weight * mean_semantic,
            flow_matching=mean_flow_matching,
            semantic=mean_semantic,
            slot_flow_matching=flow_matching,
            slot_semantic=semantic,
            slot_timesteps=timesteps,
            slot_sample_indices=[int(index) for index in indices],
            slot_tasks=[TASKS[int(task)] for task in tasks],
            num_tokens=int(sum(tokens)),
        )

    def _row(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=self._table.dtype, device=self._table.device)

    def _weighted_mean(self, values: list[float]) -> float:
        weighted = (weight * value for weight, value in zip(self._weights, values, strict=True))
        return sum(weighted) / self.total_weight
