"""What one optimizer step tells the hooks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """One finished optimizer step, the same on every rank.

    Attributes:
        step: Count of finished optimizer steps, 1 for the first.
        loss: Total loss, the weighted mean over the global batch.
        flow_matching_loss: Its flow-matching part, timestep weights included.
        semantic_loss: Its semantic part, before the factor lambda.
        gradient_norm: Global norm before clipping.
        learning_rate: Used in this step.
        skipped: Why the optimizer left the weights alone, or None when it moved them.
        step_seconds: Wall time of the whole step, waiting for data included.
        data_wait_seconds: The part of it spent waiting for samples.
        ended_at_seconds: When the step had finished, in seconds since 1970.
        tokens: Sequence tokens of the global batch.
        model_tflop: Operations (1e12) that the model's mathematics needs for the step, see `observe.flops`; None where
            they are not known, as with low-rank training.
        num_images: Image samples in the global batch.
        num_videos: Video samples in the global batch.
        samples_seen: Samples of this step and all before it, earlier lives included.
        grouped_losses: Means over parts of the batch, see `StepLosses.grouped`.
        sample_digest: Digest of the global batch's sample ids in their order.
        sample_ids: Those ids, or None when they are not logged.
        measured: Groups of numbers about this step's run on this machine, such as ``speed``. **Mutated**: a hook adds
            a group for the hooks that run after it. On the first rank only.
        files: What hooks made of the run in this step for people to look at. **Mutated** likewise.
    """

    step: int
    loss: float
    flow_matching_loss: float
    semantic_loss: float
    gradient_norm: float
    learning_rate: float
    skipped: str | None
    step_seconds: float
    data_wait_seconds: float
    ended_at_seconds: float
    tokens: int
    model_tflop: float | None
    num_images: int
    num_videos: int
    samples_seen: int
    grouped_losses: dict[str, dict[str, float]]
    sample_digest: str
    sample_ids: tuple[str, ...] | None = None
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def as_row(self) -> dict[str, Any]:
        """The row of metrics.jsonl: plain JSON values, null for a number that is not finite."""
        row = {key: _finite(getattr(self, key)) for key in _PLAIN}
        for name, numbers in {**self.grouped_losses, **self.measured}.items():
            row[name] = {key: _finite(value) for key, value in numbers.items()}
        if self.sample_ids is not None:
            row["sample_ids"] = list(self.sample_ids)
        return row


_PLAIN = tuple(
    part.name for part in fields(StepReport) if part.name not in ("grouped_losses", "measured", "files", "sample_ids")
)


def _finite(value: Any) -> Any:
    # NaN is no JSON; the step's `skipped` says what happened.
    return None if isinstance(value, float) and not math.isfinite(value) else value
