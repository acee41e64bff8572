"""Holds the planner's memory against what a training state and its forward and backward passes really take.

On a CPU every storage is counted as it is made and freed; on a GPU the allocator's peak is read. Nothing is fitted: the
activations are counted from the code. The half that is held out is so in name, for tables beside those of time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sama_mega.bench.held_bytes import HeldBytes
from sama_mega.bench.planner_rows import PlannerRow
from sama_mega.config import Recipe, build_recipe
from sama_mega.diffusion.losses import flow_matching_error, sama_loss
from sama_mega.model import ModelInput
from sama_mega.parallel.gradients import finalize_gradients
from sama_mega.parallel.layout import resolve_layout
from sama_mega.parallel.runtime import ParallelContext, form_groups, start_parallel, stop_parallel
from sama_mega.planner.activations import (
    BlockSizes,
    Kernels,
    attention_workspace_bytes,
    backward_bytes,
    block_bytes,
    embedding_bytes,
    head_bytes,
    rotary_bytes,
)
from sama_mega.planner.memory import state_bytes
from sama_mega.planner.workload import MicroBatchShape
from sama_mega.train.state import TrainState, build_train_state

_MODES = ("none", "selective", "selective_ffn", "full")


@dataclass(frozen=True)
class MemoryCase:
    """One configuration of the grid.

    Attributes:
        name: In words.
        model: Changes of the model section.
        batch: What one forward pass sees.
        recompute: Mode.
        precision: Of the weights.
        lora_rank: 0: everything is trained.
        attention: Backend.
    """

    name: str
    model: dict[str, Any]
    batch: MicroBatchShape
    recompute: str
    precision: str
    lora_rank: int = 0
    attention: str = "auto"

    @property
    def recipe(self) -> Recipe:
        """The recipe of it."""
        return build_recipe(
            {
                "model": self.model,
                "lora": {"rank": self.lora_rank},
                "kernels": {"attention": self.attention},
                "anchor": {"local_grid": 2},
                "train": {
                    "stage": 1,
                    "steps": 1,
                    "run_folder": "unused",
                    "precision": self.precision,
                    "recompute": self.recompute,
                },
            },
            "bench planner",
        )

    @property
    def label(self) -> str:
        """For the table."""
        lora = f", low rank {self.lora_rank}" if self.lora_rank else ""
        attention = f", attention {self.attention}" if self.attention != "auto" else ""
        return f"{self.name}, {self.precision}, recompute {self.recompute}{lora}{attention}"


def measure_memory(report: Callable[[str], None]) -> list[PlannerRow]:
    """Measures the grid on one rank: what a forward pass leaves to its backward pass, and the peak of a whole step.

    Args:
        report: Told which configuration is next.

    Returns:
        Two rows a configuration on a CPU, one (the peak) on a GPU.
    """
    cases = grid()
    first = start_parallel(cases[0].recipe, environ={})
    formed = {first.layout: first}
    try:
        rows = []
        for number, case in enumerate(cases):
            report(f"memory {number + 1}/{len(cases)}: {case.label}")
            layout = resolve_layout(case.recipe, 1)
            # Alike but for the number of blocks.
            if layout not in formed:
                formed[layout] = form_groups(layout, first.device, seed=0)
            rows += measure_case(case, formed[layout], "fit" if number % 2 == 0 else "held out")
        return rows
    finally:
        stop_parallel()


def grid(sizes: str = "all") -> list[MemoryCase]:
    """Widths, lengths, modes, precisions, micro-batches, images and videos, low rank, and text lengths.

    Args:
        sizes: ``all``, or ``small`` for tests.
    """
    small, wide = _model(96, 3, 4, 240, 16), _model(256, 4, 4, 688, 64)
    images, video = _batch("image", 3, 1, 6, 8, 16), _batch("video", 1, 3, 6, 8, 16)
    cases = [
        MemoryCase(f"width 96, {name}", small, batch, mode, precision)
        for (name, batch), mode, precision in product(
            (("3 images", images), ("a video", video)), _MODES, ("float32", "bfloat16")
        )
    ]
    cases += [MemoryCase("width 96, a video", small, video, "none", "float32", attention="reference")]
    cases += [MemoryCase("width 96, a video", small, video, mode, "bfloat16", 8) for mode in ("none", "selective")]
    if sizes == "small":
        return cases
    long, several = _batch("video", 1, 5, 10, 14, 64), _batch("image", 4, 1, 10, 14, 64)
    cases += [
        MemoryCase(f"width 256, {name}", wide, batch, mode, precision)
        for (name, batch), mode, precision in product(
            (("a long video", long), ("4 images", several)), _MODES, ("float32", "bfloat16")
        )
    ]
    return cases


def measure_case(case: MemoryCase, context: ParallelContext, split: Any) -> list[PlannerRow]:
    """Builds the training state and takes a step."""
    recipe = case.recipe
    on_gpu = context.device.type == "cuda"
    kernels = Kernels.of(recipe, on_gpu)
    predicted_state = sum(state_bytes(recipe, context.layout, 0).values())
    kept = predict_kept(recipe, context, case.batch, kernels)
    passing = predict_passing(recipe, context, case.batch, kernels)
    if on_gpu:
        peak = _measure_on_gpu(case, context)
        return [PlannerRow("memory", f"peak: {case.label}", split, predicted_state + kept + passing, peak, "bytes")]
    measured = _measure_on_cpu(case, context)
    return [
        PlannerRow("memory", f"kept: {case.label}", split, kept, measured.kept, "bytes"),
        PlannerRow("memory", f"peak: {case.label}", split, predicted_state + kept + passing, measured.peak, "bytes"),
    ]


def predict_kept(recipe: Recipe, context: ParallelContext, batch: MicroBatchShape, kernels: Kernels) -> int:
    """What the forward pass of one micro-batch leaves to its backward pass, of a model in one stage."""
    layout = context.layout
    sizes = BlockSizes.of(recipe, layout, batch)
    return (
        recipe.model.num_layers * block_bytes(recipe, sizes, kernels)
        + embedding_bytes(recipe, layout, batch, layout.stage(0))
        + rotary_bytes(recipe, layout, batch, kernels)
        + head_bytes(recipe, layout, batch, kernels)
    )


def predict_passing(recipe: Recipe, context: ParallelContext, batch: MicroBatchShape, kernels: Kernels) -> int:
    """What the backward pass needs besides, heads and losses being gone when it comes to the blocks."""
    sizes = BlockSizes.of(recipe, context.layout, batch)
    heads = head_bytes(recipe, context.layout, batch, kernels)
    backward = max(backward_bytes(recipe, sizes, kernels), heads)
    return backward - heads + attention_workspace_bytes(sizes, kernels, batch.num_tokens)


@dataclass(frozen=True)
class _Measured:
    kept: int
    peak: int


def _measure_on_cpu(case: MemoryCase, context: ParallelContext) -> _Measured:
    counter = HeldBytes()
    with counter:
        state = build_train_state(case.recipe, context, initialize=False)
        # The optimizer makes its moments in the first step, after that step's peak.
        for _ in _step(case, state, context):
            pass
        gc.collect()
        counter.peak = before = counter.held
        for _ in _step(case, state, context):
            kept = counter.held - before
    del state
    gc.collect()
    return _Measured(kept, counter.peak)


def _measure_on_gpu(case: MemoryCase, context: ParallelContext) -> int:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    state = build_train_state(case.recipe, context, initialize=False)
    for _ in _step(case, state, context):
        pass
    torch.cuda.reset_peak_memory_stats()
    for _ in _step(case, state, context):
        pass
    peak = torch.cuda.max_memory_allocated() - before
    del state
    gc.collect()
    return peak


def _step(case: MemoryCase, state: TrainState, context: ParallelContext) -> Iterator[None]:
    """One optimizer step on random inputs; pauses between the passes."""
    [stage], recipe = state.stages, case.recipe
    state.optimizer.zero_grad()
    loss = _loss(case, stage, context, recipe)
    yield
    loss.backward()
    del loss
    finalize_gradients(state.stages, state.optimizer.owned, context)
    state.optimizer.step(1e-4, None)
    state.average.update()


def _loss(case: MemoryCase, stage: Any, context: ParallelContext, recipe: Recipe) -> Tensor:
    model, batch, device = recipe.model, case.batch, context.device
    samples = batch.num_samples

    def latents(grid: tuple[int, int, int]) -> Tensor:
        patches = zip(grid, model.patch_size, strict=True)
        return torch.randn(samples, model.in_channels, *(count * size for count, size in patches), device=device)

    semantic = (samples, batch.num_semantic, model.semantic_dim)
    given = ModelInput(
        noisy_latents=latents(batch.target_grid),
        timesteps=torch.full((samples,), 500.0, device=device),
        text=torch.randn(samples, batch.text_length, model.text_dim, device=device),
        source_latents=latents(batch.source_grid),
        noisy_semantic=torch.randn(semantic, device=device),
        semantic_target=torch.randn(semantic, device=device),
    )
    output = stage(given)
    weights = torch.ones(samples, device=device)
    error = flow_matching_error(output.velocity, latents(batch.target_grid), weights, backend=recipe.kernels.ops)
    return sama_loss(error, output.semantic_loss_share, weights, float(samples), recipe.anchor.weight).total


def _model(dim: int, num_layers: int, num_heads: int, ffn_dim: int, text_length: int) -> dict[str, Any]:
    return {
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "ffn_dim": ffn_dim,
        "text_dim": 2 * dim,
        "text_length": text_length,
        "time_features": 64,
        "semantic_dim": 48,
        "semantic_hidden_dim": 64,
    }


def _batch(kind: Any, samples: int, frames: int, lines: int, columns: int, text_length: int) -> MicroBatchShape:
    grid = (frames, lines, columns)
    pixels = 4 * (frames - 1) + 1
    return MicroBatchShape(
        kind, samples, 16 * columns, 16 * lines, pixels, pixels, grid, grid, 5, text_length, num_shards=1
    )
