"""Who trains on what in a step: drawn, predicted and dealt, the same on every rank, without reading a clip."""

from __future__ import annotations

import numpy as np

from sama_data.dataset import Dataset
from sama_data.dealing import Work, deal_work
from sama_data.predicted import PredictedShapes, predict_shapes
from sama_data.rows import Kind
from sama_data.settings import LoaderSettings
from sama_data.streams import Draw, make_streams


class StepPlanner:
    """Plans any step of a run.

    Stateless but for caches: the slots of a step are the same for any number of ranks.

    Args:
        dataset: The rows.
        settings: How to draw and deal them.

    Raises:
        DataError: No stream has both rows and slots.
    """

    def __init__(self, dataset: Dataset, settings: LoaderSettings) -> None:
        self._dataset = dataset
        self._settings = settings
        self.streams = make_streams(dataset, settings)
        self.num_slots = sum(stream.per_step for stream in self.streams)
        self.num_image_slots = sum(stream.per_step for stream in self.streams if stream.kind == "image")

    def draws(self, step: int) -> list[Draw]:
        """Returns a step's draws over all ranks, by slot."""
        drawn: list[Draw] = []
        for stream in self.streams:
            drawn += stream.draw(step, first_slot=len(drawn))
        return drawn

    def shapes(self, step: int) -> PredictedShapes:
        """Returns the predicted shapes of a step's slots; of the drawn samples, also where one turns out bad."""
        parts = [stream.rows(step) for stream in self.streams]
        rows, epochs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return predict_shapes(self._dataset, rows, epochs, self._settings)

    def work(self, predicted: PredictedShapes) -> Work:
        """Returns what dealing needs to know of a step's slots."""
        cost = self._settings.cost
        costs = cost.nanoseconds(cost.tokens(*predicted.columns()))
        limits: dict[Kind, int] = self._settings.micro_batch_limits
        return Work(
            shape_of=tuple(predicted.shape_of.tolist()),
            costs=tuple(costs.tolist()),
            limits=tuple(limits[shape.kind] for shape in predicted.shapes),
            call_cost=cost.call_nanoseconds,
        )

    def deal(self, step: int, num_ranks: int) -> list[list[int]]:
        """Returns the slots of each data-parallel rank in a step, ascending."""
        return deal_work(self.work(self.shapes(step)), num_ranks, self._settings.at_least_per_rank)
