"""What a run changes as it trains."""

from __future__ import annotations

from dataclasses import dataclass

from sama_mega.config.schema import Recipe
from sama_mega.model import WholeModel, build_model
from sama_mega.parallel.data_parallel import DistributedDataParallel, wrap_data_parallel
from sama_mega.parallel.optimizer import MegatronAdamW, build_optimizer
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.ema import WeightAverage


@dataclass
class TrainState:
    """Weights, optimizer, moving average and position of a run on this rank; mutated by training.

    Attributes:
        stages: This rank's pipeline stages (one, unless they are interleaved), each inside megatron's
            DistributedDataParallel.
        optimizer: Its optimizer.
        average: Moving average of the weights.
        step: Finished optimizer steps.
        samples_seen: Samples of all of them, over all ranks.
        rows_digest: Of the rows that `step` is a position in; "" where there are none to train on.
    """

    stages: list[DistributedDataParallel]
    optimizer: MegatronAdamW
    average: WeightAverage
    step: int = 0
    samples_seen: int = 0
    rows_digest: str = ""

    @property
    def model(self) -> WholeModel:
        """The model of all stages, for predictions."""
        return WholeModel([stage.module for stage in self.stages])


def build_train_state(recipe: Recipe, context: ParallelContext, *, initialize: bool) -> TrainState:
    """Builds a run's state.

    Args:
        recipe: The whole recipe.
        context: The running layout.
        initialize: Whether to draw fresh weights; False when a checkpoint fills them.
    """
    stages = [
        wrap_data_parallel(recipe, stage, stage.config, context)
        for stage in build_model(recipe, context, initialize=initialize)
    ]
    optimizer = build_optimizer(recipe, stages, context)
    settings = recipe.optimizer
    average = WeightAverage(optimizer, settings.ema_decay, settings.ema_ramp, on_host=settings.ema_device == "host")
    return TrainState(stages, optimizer, average)
