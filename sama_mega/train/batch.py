"""From decoded samples to encoded micro-batches of one shape each.

Shape legend: B samples; C T H W latents; M semantic tokens, F their features; L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_data.loader import Sample
from sama_data.rows import Kind
from sama_data.shapes import cut_by_shape
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.noising import draw_text_dropout
from sama_mega.encoders.interface import Encoders
from sama_mega.parallel.transfer import to_device


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one shape, encoded; what one forward pass sees.

    Attributes:
        slots: Position of each sample in the global step.
        sample_indices: Row of each sample in the dataset; keys its noise.
        epochs: How often each sample's stream was seen before; keys its noise.
        tasks: What each sample's source went through: a pretext task, or ``edit``.
        latents: ``[B, C, T, H, W]`` float32 clean target.
        source_latents: ``[B, C, Ts, H, W]`` float32 source, perturbed where the task says so.
        semantic_features: ``[B, M, F]`` float32 of the target's anchor frames.
        text: ``[B, L, text_dim]`` float32.
        weights: ``[B]`` float32 modality weights in the loss.
    """

    slots: tuple[int, ...]
    sample_indices: tuple[int, ...]
    epochs: tuple[int, ...]
    tasks: tuple[str, ...]
    latents: Tensor
    source_latents: Tensor
    semantic_features: Tensor
    text: Tensor
    weights: Tensor


class Batcher:
    """Encodes samples of one shape into a micro-batch.

    Args:
        recipe: The whole recipe.
        encoders: Frozen encoders, on the same device.
        device: Where the encoded tensors live.
    """

    def __init__(self, recipe: Recipe, encoders: Encoders, device: torch.device) -> None:
        self._recipe = recipe
        self._encoders = encoders
        self._device = device
        self._truncated: set[int] = set()

    @property
    def num_truncated_prompts(self) -> int:
        """Distinct samples so far whose prompt was longer than the text encoder takes."""
        return len(self._truncated)

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample]) -> MicroBatch:
        """Encodes samples of one shape."""
        sources = torch.stack([self._pixels(sample, perturbed=True) for sample in samples])
        targets = torch.stack([self._pixels(sample, perturbed=False) for sample in samples])
        # Frame by frame: a list as an index would travel to the device, and the host would wait for it.
        anchors = [targets[:, :, frame] for frame in anchor_frames(targets.shape[2], self._recipe.anchor.num_frames)]
        latents, source_latents = self._encode_videos(targets, sources)
        return MicroBatch(
            slots=tuple(sample.slot for sample in samples),
            sample_indices=tuple(sample.index for sample in samples),
            epochs=tuple(sample.epoch for sample in samples),
            tasks=tuple(sample.task for sample in samples),
            latents=latents,
            source_latents=source_latents,
            semantic_features=self._encoders.semantic.encode(torch.stack(anchors, dim=1)),
            text=self._encoders.text.encode(self._prompts(samples)),
            weights=to_device(
                torch.tensor([modality_weight(sample.kind, self._recipe) for sample in samples]), self._device
            ),
        )

    def _encode_videos(self, targets: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of both; in one call where they have one shape, as all but sped-up clips do."""
        if targets.shape != sources.shape:
            return self._encoders.video.encode(targets), self._encoders.video.encode(sources)
        latents, source_latents = self._encoders.video.encode(torch.cat([targets, sources])).chunk(2)
        return latents, source_latents

    def _pixels(self, sample: Sample, perturbed: bool) -> Tensor:
        """``[3, T, H, W]`` float32 in [-1, 1]."""
        frames = torch.from_numpy(sample.source_frames if perturbed else sample.target_frames)
        if perturbed:
            indices, order = sample.plan.frame_indices, sample.plan.tube_order
        else:
            indices, order = tuple(range(frames.shape[0])), None
        return pretext(to_device(frames, self._device), indices, order, backend=self._recipe.kernels.ops)

    def _prompts(self, samples: Sequence[Sample]) -> list[str]:
        dropped = draw_text_dropout(
            self._recipe.train.seed,
            [sample.index for sample in samples],
            [sample.epoch for sample in samples],
            self._recipe.data.text_dropout,
        )
        text = self._encoders.text
        self._truncated |= {s.index for s in samples if text.count_tokens(s.prompt) > text.max_tokens}
        return [sample.prompt_prefix if drop else sample.prompt for sample, drop in zip(samples, dropped, strict=True)]


def modality_weight(kind: str, recipe: Recipe) -> float:
    """Weight of one sample of a kind (``image`` or ``video``) in the step's loss."""
    return recipe.data.image_weight if kind == "image" else 1.0


def group_by_shape(samples: Sequence[Sample], recipe: Recipe) -> list[list[Sample]]:
    """Cuts samples into micro-batches: equal shapes, at most `data.micro_batch_*` samples, ordered by slot.

    Interleaved pipeline stages need a micro-batch for every pipeline rank: larger ones are halved until there are.
    """
    ordered = sorted(samples, key=lambda sample: sample.slot)
    limits: dict[Kind, int] = {"image": recipe.data.micro_batch_images, "video": recipe.data.micro_batch_videos}
    at_least = recipe.parallel.pipeline if recipe.parallel.interleave > 1 else 1
    cut = cut_by_shape([sample.shape for sample in ordered], limits, at_least)
    return [[ordered[place] for place in places] for places in cut]


def anchor_frames(num_frames: int, num_anchors: int) -> list[int]:
    """Uniformly spaced anchor frames; one anchor is frame 0, an image anchors itself.

    Source: SAMA section 3.3; ``linspace`` in Cynthiazxy123/SAMA@5c6bb5b.
    """
    return torch.linspace(0, num_frames - 1, num_anchors).long().numpy().tolist()
