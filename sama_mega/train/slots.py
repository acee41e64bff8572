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
from sama_mega.parallel.transfer import to_device
from sama_mega.train.batch import MicroBatch, modality_weight
from sama_mega.train.forward import SampleErrors

TASKS = ("none", "cube", "speed", "tube", "edit")
"""Every task a sample can have, by the code that travels between ranks."""
NOISE_BANDS = ("0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0")
"""Shares of the timestep of pure noise, by which losses are told apart; the last one includes 1."""

# Rows of the step's table: what the device measures, then what the host knows.
_FLOW_MATCHING, _SEMANTIC, _TIMESTEP, _NUM_MEASURED = range(4)
_SAMPLE_INDEX, _TASK, _TOKENS, _FILLED, _NUM_KNOWN = range(5)


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
        slot_modalities: ``image`` or ``video``.
        slot_noise_bands: One of NOISE_BANDS, by the slot's timestep.
        slot_tokens: Sequence tokens of each slot's sample, without padding.
    """

    total: float
    flow_matching: float
    semantic: float
    slot_flow_matching: list[float]
    slot_semantic: list[float]
    slot_timesteps: list[float]
    slot_sample_indices: list[int]
    slot_tasks: list[str]
    slot_modalities: list[str]
    slot_noise_bands: list[str]
    slot_tokens: list[int]

    @property
    def num_tokens(self) -> int:
        """Sequence tokens of the global batch, without padding."""
        return sum(self.slot_tokens)

    @property
    def grouped(self) -> dict[str, dict[str, float]]:
        """Mean flow-matching and semantic losses of each task, modality and noise band in the batch."""
        labels = {"task": self.slot_tasks, "modality": self.slot_modalities, "timestep": self.slot_noise_bands}
        losses = {"losses": self.slot_flow_matching, "semantic_losses": self.slot_semantic}
        return {
            f"{name}_by_{label}": _means_by(of_slots, values)
            for name, values in losses.items()
            for label, of_slots in labels.items()
        }

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
        self._modalities = kinds
        self._weights = [modality_weight(kind, recipe) for kind in kinds]
        self.total_weight = sum(self._weights)
        self._measured = torch.zeros(_NUM_MEASURED, len(kinds), dtype=torch.float64, device=context.device)
        self._known = [[0] * len(kinds) for _ in range(_NUM_KNOWN)]

    def record(self, batch: MicroBatch, errors: SampleErrors, timesteps: Tensor, tokens_per_sample: int) -> None:
        """Notes one micro-batch's errors; nothing waits for the device."""
        slots = to_device(torch.tensor(batch.slots), self._context.device)
        if self._context.reports_token_shares:
            self._measured[_SEMANTIC, slots] = errors.semantic_share.detach().double()
        if self._context.reports_samples:
            self._measured[_FLOW_MATCHING, slots] = errors.flow_matching.detach().double()
            self._measured[_TIMESTEP, slots] = timesteps.double()
            for slot, index, task in zip(batch.slots, batch.sample_indices, batch.tasks, strict=True):
                self._known[_SAMPLE_INDEX][slot] = index
                self._known[_TASK][slot] = TASKS.index(task)
                self._known[_TOKENS][slot] = tokens_per_sample
                self._known[_FILLED][slot] += 1

    def reduce(self) -> Tensor:
        """Sums the step's table over all ranks, in one message; nothing waits for the device.

        Returns:
            ``[rows, slots]`` float64, the same on every rank; read on the host, `losses` takes it.
        """
        known = to_device(torch.tensor(self._known, dtype=torch.float64), self._context.device)
        return all_reduce_in_place(torch.cat([self._measured, known]), self._context.world_group)

    def losses(self, numbers: Sequence[float]) -> StepLosses:
        """Averages in slot order.

        Args:
            numbers: The elements of the reduced table, row after row.

        Raises:
            DataError: On every rank, when a slot was trained by no rank or by several.
        """
        num_slots = len(self._weights)
        rows = [list(numbers[start : start + num_slots]) for start in range(0, len(numbers), num_slots)]
        flow_matching, semantic, timesteps, indices, tasks, tokens, filled = rows
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
            slot_modalities=self._modalities,
            slot_noise_bands=[self._noise_band(timestep) for timestep in timesteps],
            slot_tokens=[int(count) for count in tokens],
        )

    def _noise_band(self, timestep: float) -> str:
        share = timestep / self._recipe.diffusion.num_train_timesteps
        return NOISE_BANDS[min(int(share * len(NOISE_BANDS)), len(NOISE_BANDS) - 1)]

    def _weighted_mean(self, values: list[float]) -> float:
        weighted = (weight * value for weight, value in zip(self._weights, values, strict=True))
        return sum(weighted) / self.total_weight


def _means_by(labels: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Means of the values of each label, labels in order."""
    grouped: dict[str, list[float]] = {}
    for label, value in zip(labels, values, strict=True):
        grouped.setdefault(label, []).append(value)
    return {label: fmean(members) for label, members in sorted(grouped.items())}
