"""The learning rate as a pure function of the step."""

from __future__ import annotations

from sama_mega.config.schema import OptimizerRecipe


def learning_rate_at(step: int, total_steps: int, optimizer: OptimizerRecipe) -> float:
    """Linear warm-up, constant, then a linear decay to zero over the run's last share.

    Args:
        step: 0-based optimizer step.
        total_steps: Steps of the whole run.
        optimizer: The recipe's section.

    Returns:
        The rate for this step.
    """
    warmup = min(1.0, (step + 1) / optimizer.warmup_steps) if optimizer.warmup_steps else 1.0
    decay_steps = optimizer.decay_share * total_steps
    decay = min(1.0, (total_steps - step) / decay_steps) if decay_steps else 1.0
    return optimizer.learning_rate * warmup * decay
