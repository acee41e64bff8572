"""A run without training: a state that is given other numbers and saved."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sama_mega.config.schema import Recipe
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.checkpoint_saver import CheckpointSaver
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState, build_train_state


class RunSaver:
    """A run folder and a state to save in it."""

    def __init__(self, root: Path, recipe: Recipe, context: ParallelContext) -> None:
        self.folder = RunFolder.create(root)
        self.recipe, self.context = recipe, context
        self.life = self.folder.start_life({})
        self.state = build_train_state(recipe, context, initialize=True)
        self.checkpoints = CheckpointSaver(self.folder, recipe, context, self.life)

    def save(self, step: int) -> Path:
        """Saves as the state of a step, other numbers every time, to the end."""
        path = self.begin(step)
        self.checkpoints.wait()
        return path

    def begin(self, step: int) -> Path:
        """The part of `save` that the run waits for."""
        scramble(self.state, step)
        self.state.step, self.state.samples_seen = step, 4 * step
        return self.checkpoints.save(self.state)

    def start_life(self) -> None:
        """Goes on as the next life of the run."""
        self.life = self.folder.start_life({})
        self.checkpoints = CheckpointSaver(self.folder, self.recipe, self.context, self.life)

    def names(self) -> list[str]:
        """Everything in `checkpoints`, hidden or not."""
        return sorted(path.name for path in self.folder.checkpoints.iterdir())


@torch.no_grad()
def scramble(state: TrainState, seed: int) -> None:
    """Gives every tensor of a state numbers of its own."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(state).values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator))
    state.optimizer.finish_loading(100 + seed)
    state.average.num_updates = 200 + seed


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in state.stages[0].module.named_parameters()}
    tensors |= {f"ema.{place}": value for place, value in enumerate(state.average.values)}
    return tensors | {key: piece.data for key, piece in state.optimizer.sharded_state().items()}


def copies(state: TrainState) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors_of(state).items()}
