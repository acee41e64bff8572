"""`bench train`: whole optimizer steps of a model of few layers, against diffusers' model with torch's AdamW.

What `train` runs after encoding: noising, model, losses, backward pass, gradient norm, optimizer, moving average.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sama_data.pretext import identity_plan
from sama_data.samples import Sample, StepSamples
from sama_mega.bench.clock import Spread, seconds_of
from sama_mega.bench.contenders import cudnn_attention
from sama_mega.bench.inputs import EPS
from sama_mega.bench.shapes import ModelSize, Workload
from sama_mega.config import build_recipe
from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import block_flops
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.batch import Batcher, MicroBatch
from sama_mega.train.state import build_train_state
from sama_mega.train.step import TrainStep

TEXT_DIM, LATENT_CHANNELS, SEMANTIC_DIM = 4096, 16, 1152
_LEARNING_RATE = 2e-5


@dataclass(frozen=True)
class TrainRow:
    """One contender.

    Attributes:
        contender: Its name.
        num_tokens: Of a sample, as it trains.
        losses: Of every step, warm-up included; they must fall for the time to count.
        seconds: Of an optimizer step; None where there is none.
        tokens_per_second: By the middle step.
        flops_per_second: Of the blocks alone, by the formula in `sama_mega.observe.flops`.
        peak_bytes: The most allocated at a time; None off CUDA.
        problem: Why there is no time.
    """

    contender: str
    num_tokens: int
    losses: tuple[float, ...] = ()
    seconds: Spread | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    peak_bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Trainer:
    """A model that trains.

    Attributes:
        step: Makes one optimizer step and returns its loss.
        num_tokens: Of a sample.
    """

    step: Callable[[], float]
    num_tokens: int


BuildTrainer = Callable[[ModelSize, Workload, int, torch.device, torch.dtype], Trainer]
"""From size, workload, number of layers, device and precision."""


class _Encoded(Batcher):
    """Hands over one micro-batch that is encoded already."""

    def __init__(self, batch: MicroBatch) -> None:
        self._batch = batch

    def encode_step(self, micro_batches: Sequence[Sequence[Sample]]) -> list[Callable[[], MicroBatch]]:
        """See `Batcher.encode_step`."""
        return [lambda: self._batch for _ in micro_batches]


def ours(context: ParallelContext, recompute: str, attention: str, ops: str = "auto") -> BuildTrainer:
    """The step that `train` makes.

    Args:
        context: One rank.
        recompute: `train.recompute`.
        attention: `kernels.attention`.
        ops: `kernels.ops`.
    """

    def build(size: ModelSize, work: Workload, num_layers: int, device: torch.device, dtype: torch.dtype) -> Trainer:
        kernels = {"attention": attention, "ops": ops}
        recipe = _recipe_of(size, work, num_layers, dtype, recompute, kernels)
        state = build_train_state(recipe, context, initialize=True)
        step = TrainStep(recipe, context, state, _Encoded(_micro_batch(size, work, device)))
        drawn = _samples(work)
        return Trainer(lambda: step.run(drawn, _LEARNING_RATE).losses.total, work.num_tokens)

    return build


def diffusers(recompute: bool = False, compiled: bool = False) -> BuildTrainer:
    """The WanTransformer3DModel of diffusers on source and target frames in a row, weights and AdamW in the precision.

    It has no semantic tokens, no float32 copy of the weights and no moving average: it does a little less.
    """

    def build(size: ModelSize, work: Workload, num_layers: int, device: torch.device, dtype: torch.dtype) -> Trainer:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        model: Any = WanTransformer3DModel(
            num_attention_heads=size.num_heads,
            attention_head_dim=size.head_dim,
            ffn_dim=size.ffn_dim,
            num_layers=num_layers,
            eps=EPS,
        )
        model.to(device)
        for name, parameter in model.named_parameters():
            # As its own loader does.
            if not any(kept in name for kept in model._keep_in_fp32_modules):
                parameter.data = parameter.data.to(dtype)
        if recompute:
            model.enable_gradient_checkpointing()
        if compiled:
            model.compile_repeated_blocks(fullgraph=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=device.type == "cuda")
        batch = _micro_batch(size, work, device)
        noise, sigma = torch.randn_like(batch.latents), 0.7
        noisy = (1 - sigma) * batch.latents + sigma * noise
        frames = torch.cat([batch.source_latents, noisy], dim=2).to(dtype)
        timestep = torch.full((work.batch,), 1000 * sigma, device=device)
        target, text = noise - batch.latents, batch.text.to(dtype)

        def step() -> float:
            optimizer.zero_grad()
            # Around both passes: a checkpointed block runs again in the second.
            with cudnn_attention(frames):
                output = model(frames, timestep, text, return_dict=False)[0]
                loss = mse_loss(output[:, :, work.grid[0] :].float(), target)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return loss.item()

        return Trainer(step, work.num_tokens - work.num_semantic)

    return build


def run_train_bench(
    contenders: Mapping[str, BuildTrainer],
    size: ModelSize,
    work: Workload,
    num_layers: int,
    device: torch.device,
    dtype: torch.dtype,
    rounds: int,
    report: Callable[[str], None],
) -> list[TrainRow]:
    """Trains every contender for a few steps on one batch and times them; a loss that does not fall gets no time.

    Args:
        contenders: By name.
        size: Of the blocks.
        work: The batch.
        num_layers: Blocks of the model.
        device: Where it trains.
        dtype: Of activations and weights.
        rounds: Timed steps.
        report: Told what is going on.

    Returns:
        A row a contender.
    """
    flops = work.batch * num_layers * block_flops(size.dim, size.ffn_dim, work.num_tokens, size.text_length).total
    rows = []
    for name, build in contenders.items():
        report(name)
        row = _measure(name, partial(build, size, work, num_layers, device, dtype), device, rounds)
        rows.append(_with_rates(row, work.batch, flops))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def _measure(name: str, build: Callable[[], Trainer], device: torch.device, rounds: int) -> TrainRow:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trainer = build()
        losses = [trainer.step(), trainer.step()]
        seconds = [seconds_of(lambda: losses.append(trainer.step()), device) for _ in range(rounds)]
    except torch.OutOfMemoryError:
        return TrainRow(name, 0, problem="out of memory")
    except ImportError as error:
        return TrainRow(name, 0, problem=f"not installed: {error.name}")
    if not losses[-1] < losses[0]:
        return TrainRow(name, trainer.num_tokens, tuple(losses), problem="the loss does not fall")
    peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return TrainRow(name, trainer.num_tokens, tuple(losses), Spread.of(seconds), peak_bytes=peak_bytes)


def _with_rates(row: TrainRow, batch: int, flops: float) -> TrainRow:
    if row.seconds is None:
        return row
    tokens_per_second = batch * row.num_tokens / row.seconds.median
    return replace(row, tokens_per_second=tokens_per_second, flops_per_second=flops / row.seconds.median)


def _recipe_of(
    size: ModelSize, work: Workload, num_layers: int, dtype: torch.dtype, recompute: str, kernels: dict[str, str]
) -> Recipe:
    return build_recipe(
        {
            "model": {
                "dim": size.dim,
                "ffn_dim": size.ffn_dim,
                "num_heads": size.num_heads,
                "num_layers": num_layers,
                "text_dim": TEXT_DIM,
                "text_length": size.text_length,
                "semantic_dim": SEMANTIC_DIM,
                "norm_eps": EPS,
            },
            "data": {"micro_batch_images": work.batch, "micro_batch_videos": work.batch},
            "train": {
                "stage": 1,
                "steps": 1,
                "run_folder": "unused",
                "precision": str(dtype).removeprefix("torch."),
                "recompute": recompute,
            },
            "kernels": kernels,
        },
        "bench train",
    )


def _micro_batch(size: ModelSize, work: Workload, device: torch.device) -> MicroBatch:
    generator = torch.Generator(device).manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    frames, lines, columns = work.grid
    latents = (work.batch, LATENT_CHANNELS, frames, 2 * lines, 2 * columns)
    indices = tuple(range(work.batch))
    return MicroBatch(
        slots=indices,
        sample_indices=indices,
        epochs=(0,) * work.batch,
        tasks=("edit",) * work.batch,
        latents=normal(*latents),
        source_latents=normal(*latents),
        semantic_features=normal(work.batch, work.num_semantic, SEMANTIC_DIM),
        text=normal(work.batch, size.text_length, TEXT_DIM),
        weights=torch.ones(work.batch, device=device),
    )


def _samples(work: Workload) -> StepSamples:
    """Edits of the workload's shape whose pixels nobody reads."""
    frames, lines, columns = work.grid
    num_frames = 4 * (frames - 1) + 1
    pixels = np.broadcast_to(np.zeros((), np.uint8), (num_frames, 16 * lines, 16 * columns, 3))
    samples = [
        Sample(
            sample_id=f"{slot}",
            index=slot,
            epoch=0,
            slot=slot,
            kind="video",
            task="edit",
            source_frames=pixels,
            target_frames=pixels,
            plan=identity_plan(num_frames),
            prompt="",
            prompt_prefix="",
        )
        for slot in range(work.batch)
    ]
    return StepSamples(0, samples, num_slots=work.batch, num_image_slots=0)
