"""What one optimizer step tells the hooks."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
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
        tokens: Sequence tokens of the global batch.
        num_images: Image samples in the global batch.
        num_videos: Video samples in the global batch.
        samples_seen: Samples of this step and all before it, earlier lives included.
        losses_by_task: Mean flow-matching loss of each task in the batch.
        sample_digest: Digest of the global batch's sample ids in their order.
        sample_ids: Those ids, or None when they are not logged.
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
    tokens: int
    num_images: int
    num_videos: int
    samples_seen: int
    losses_by_task: dict[str, float]
    sample_digest: str
    sample_ids: tuple[str, ...] | None = None

    def as_row(self) -> dict[str, Any]:
        """The row of metrics.jsonl: plain JSON values, null for a number that is not finite."""
        row = asdict(self)
        if self.sample_ids is None:
            del row["sample_ids"]
        else:
            row["sample_ids"] = list(self.sample_ids)
        row["losses_by_task"] = {task: _finite(loss) for task, loss in self.losses_by_task.items()}
        return {key: _finite(value) for key, value in row.items()}


def _finite(value: Any) -> Any:
    # NaN is no JSON; the step's `skipped` says what happened.
    return None if isinstance(value, float) and not math.isfinite(value) else value
