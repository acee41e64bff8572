"""From decoded samples to encoded micro-batches of one shape each.

Shape legend: B samples; C T H W latents; M semantic tokens, F their features; L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sama_data.loader import Sample
from sama_data.rows import Kind
from sama_data.shapes import cut_by_shape
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.noising import draw_text_dropout
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.encoders.interface import Encoders
from sama_mega.parallel.transfer import to_device
from sama_mega.train.encode import SampleEncoder
from sama_mega.train.shared_encoding import EncodingJob, Sharing, share_step


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
        semantic_features: ``[B, M, F]`` float32 of the target's anchor frames; None where there are none.
        text: ``[B, L, text_dim]`` float32.
        weights: ``[B]`` float32 modality weights in the loss.
    """

    slots: tuple[int, ...]
    sample_indices: tuple[int, ...]
    epochs: tuple[int, ...]
    tasks: tuple[str, ...]
    latents: Tensor
    source_latents: Tensor
    semantic_features: Tensor | None
    text: Tensor
    weights: Tensor


class Batcher:
    """Encodes samples of one shape into a micro-batch.

    Args:
        recipe: The whole recipe.
        encoders: Frozen encoders, on the same device.
        device: Where the encoded tensors live.
        sharing: Among whom `encode_step` shares the work; None: this rank does all of it.
        cache: Features that need not be encoded.
    """

    def __init__(
        self,
        recipe: Recipe,
        encoders: Encoders,
        device: torch.device,
        sharing: Sharing | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        self._recipe = recipe
        self._text = encoders.text
        self._encoder = SampleEncoder(recipe, encoders, device, cache)
        self._device = device
        self._sharing = sharing
        self._truncated: set[int] = set()

    @property
    def num_truncated_prompts(self) -> int:
        """Distinct samples so far whose prompt was longer than the text encoder takes."""
        return len(self._truncated)

    def encode_step(self, micro_batches: Sequence[Sequence[Sample]]) -> list[Callable[[], MicroBatch]]:
        """Plans the encoding of a step.

        Args:
            micro_batches: Samples of one shape each, the same on every rank that shares.

        Returns:
            A call for each micro-batch that gives it encoded: to be made once, in order, alike on every rank.
        """
        if self._sharing is None:
            return [partial(self.encode, samples) for samples in micro_batches]
        return share_step(micro_batches, self._jobs, self._assemble, self._sharing)

    @torch.no_grad()
    def encode(self, samples: Sequence[Sample]) -> MicroBatch:
        """Encodes samples of one shape, on this rank alone."""
        return self._assemble(samples, [job.run() for job in self._jobs(samples)])

    def _jobs(self, samples: Sequence[Sample]) -> list[EncodingJob]:
        """What `_assemble` needs."""
        num_tokens = sum(self._count_tokens(sample) for sample in samples)
        return self._encoder.jobs(samples, self._prompts(samples), num_tokens)

    def _assemble(self, samples: Sequence[Sample], encoded: Sequence[Tensor]) -> MicroBatch:
        """Puts what `_jobs` gave beside what is known of the samples."""
        latents, source_latents, *semantic_features, text = encoded
        weights = torch.tensor([modality_weight(sample.kind, self._recipe) for sample in samples])
        return MicroBatch(
            slots=tuple(sample.slot for sample in samples),
            sample_indices=tuple(sample.index for sample in samples),
            epochs=tuple(sample.epoch for sample in samples),
            tasks=tuple(sample.task for sample in samples),
            latents=latents,
            source_latents=source_latents,
            semantic_features=semantic_features[0] if semantic_features else None,
            text=text,
            weights=to_device(weights, self._device),
        )

    def _prompts(self, samples: Sequence[Sample]) -> list[str]:
        dropped = draw_text_dropout(
            self._recipe.train.seed,
            [sample.index for sample in samples],
            [sample.epoch for sample in samples],
            self._recipe.data.text_dropout,
        )
        return [sample.prompt_prefix if drop else sample.prompt for sample, drop in zip(samples, dropped, strict=True)]

    def _count_tokens(self, sample: Sample) -> int:
        """Tokens that the encoder reads of a sample's prompt; notes where it reads no more."""
        text = self._text
        num_tokens = text.count_tokens(sample.prompt)
        if num_tokens > text.max_tokens:
            self._truncated.add(sample.index)
        return min(num_tokens, text.max_tokens)


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
