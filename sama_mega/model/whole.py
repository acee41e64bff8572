"""Predictions with all pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sama_mega.model.sama_dit import ModelInput, ModelOutput, SamaDiT


class WholeModel:
    """The model of all stages; every rank of its samples calls it alike, and each gets the whole output.

    Args:
        stages: This rank's, from `build_model`.
    """

    def __init__(self, stages: Sequence[SamaDiT]) -> None:
        self._stages = {stage.stage.index: stage for stage in stages}
        self._context = stages[0].context

    @torch.no_grad()
    def __call__(self, given: ModelInput) -> ModelOutput:
        """Predicts velocities, without gradients; ``given.semantic_target`` must be None.

        Stages run one after the other: with one micro-batch there is nothing to overlap.
        """
        assert given.semantic_target is None
        output: ModelOutput | Tensor | None = None
        for index in range(self._context.layout.num_stages):
            if index in self._stages:
                output = self._run(index, given)
        return self._share(output, given)

    def _run(self, index: int, given: ModelInput) -> ModelOutput | Tensor:
        """Receives from the stage before, runs one of this rank's stages, sends to the stage after."""
        stage, group, num_ranks = self._stages[index], self._context.pipeline_group, self._context.layout.pipeline
        if not stage.stage.is_first:
            hidden = torch.empty(
                stage.hidden_shape(given), dtype=stage.config.pipeline_dtype, device=self._context.device
            )
            dist.recv(hidden, dist.get_global_rank(group, (index - 1) % num_ranks), group=group)
            stage.set_input_tensor(hidden)
        output: ModelOutput | Tensor = stage(given)
        if isinstance(output, Tensor):
            dist.send(output.contiguous(), dist.get_global_rank(group, (index + 1) % num_ranks), group=group)
        return output

    def _share(self, output: ModelOutput | Tensor | None, given: ModelInput) -> ModelOutput:
        """Gives all pipeline ranks the last one's output."""
        if self._context.layout.num_stages == 1:
            assert isinstance(output, ModelOutput)
            return output
        velocity = torch.empty_like(given.noisy_latents)
        semantic = None if given.noisy_semantic is None else torch.empty_like(given.noisy_semantic)
        if isinstance(output, ModelOutput):
            velocity, semantic = output.velocity.contiguous(), output.semantic_velocity
        group = self._context.pipeline_group
        source = dist.get_global_rank(group, self._context.layout.pipeline - 1)
        dist.broadcast(velocity, source, group=group)
        if semantic is not None:
            semantic = semantic.contiguous()
            dist.broadcast(semantic, source, group=group)
        return ModelOutput(velocity, semantic, None)
