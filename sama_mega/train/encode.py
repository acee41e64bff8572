"""What is encoded of samples of one shape: target, source, anchor frames, prompt. What the cache has is read instead.

Shape legend: B samples; C T H W latents; M semantic tokens, F their features; L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sama_data.graph.frames import DeviceFrames, Frames
from sama_data.loader import Sample
from sama_data.pretext import PretextPlan, identity_plan
from sama_kernels.pretext import pretext
from sama_mega.config.schema import Recipe
from sama_mega.encoders.feature_cache import Content, FeatureCache, Kind
from sama_mega.encoders.interface import Encoders
from sama_mega.parallel.transfer import InUse, to_device
from sama_mega.train.shared_encoding import EncodingJob, anchors_cost, pixels_cost, tokens_cost

HostOrDevice = NDArray[np.uint8] | Tensor
"""uint8 frames ``[T, H, W, 3]``: an array, or a tensor on the device over memory that DALI filled."""
ClipFrames = TypeVar("ClipFrames", NDArray[np.uint8], Tensor, HostOrDevice)


class FrameEncoders:
    """The encoders for frames and prompts as the loader gives them.

    Args:
        recipe: `anchor` and `kernels` are read.
        encoders: Frozen encoders, on the same device.
        device: Where the results live.
    """

    def __init__(self, recipe: Recipe, encoders: Encoders, device: torch.device) -> None:
        self._encoders = encoders
        self._device = device
        self._num_anchors = recipe.anchor.num_frames
        self._backend = recipe.kernels.ops
        self._in_use = InUse()

    def clips(self, clips: Sequence[HostOrDevice], plans: Sequence[PretextPlan | None]) -> Tensor:
        """Latents ``[B, C, T, H, W]`` of clips ``[T, H, W, 3]`` of one shape, perturbed where there is a plan."""
        pixels = [self._pixels(frames, plan) for frames, plan in zip(clips, plans, strict=True)]
        return self._encoders.video.encode(torch.stack(pixels))

    def anchors(self, anchors: Sequence[HostOrDevice]) -> Tensor:
        """Semantic features ``[B, M, F]`` of anchor frames ``[N, H, W, 3]``."""
        pixels = [self._pixels(frames, None).transpose(0, 1) for frames in anchors]
        return self._encoders.semantic.encode(torch.stack(pixels))

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings ``[B, L, text_dim]``."""
        return self._encoders.text.encode(list(prompts))

    def anchors_of(self, frames: ClipFrames) -> ClipFrames:
        """The anchor frames ``[N, H, W, 3]`` of a clip; a copy."""
        numbers = anchor_frames(len(frames), self._num_anchors)
        if isinstance(frames, np.ndarray):
            return frames[numbers]
        # One by one: a list of numbers would first have to cross to the device, with the host waiting.
        anchors = torch.stack([frames[number] for number in numbers])
        self._in_use.keep(frames)
        return anchors

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the latents of one clip."""
        codec = self._encoders.video
        times = 1 + (num_frames - 1) // codec.temporal_stride
        return codec.latent_channels, times, height // codec.spatial_stride, width // codec.spatial_stride

    @property
    def semantic_shape(self) -> tuple[int, ...]:
        """Shape of the semantic features of one sample."""
        semantic = self._encoders.semantic
        return self._num_anchors * semantic.tokens_per_anchor, semantic.semantic_dim

    @property
    def text_shape(self) -> tuple[int, ...]:
        """Shape of one prompt's embedding."""
        return self._encoders.text.max_tokens, self._encoders.text.text_dim

    def _pixels(self, frames: HostOrDevice, plan: PretextPlan | None) -> Tensor:
        """``[3, T, H, W]`` float32 in [-1, 1]."""
        plan = plan or identity_plan(len(frames))
        given = frames if isinstance(frames, Tensor) else to_device(torch.from_numpy(frames), self._device)
        pixels = pretext(given, plan.frame_indices, plan.tube_order, backend=self._backend)
        if isinstance(frames, Tensor):
            self._in_use.keep(frames)
        return pixels


class SampleEncoder:
    """Plans the encoding of samples.

    Args:
        recipe: The whole recipe.
        encoders: Frozen encoders, on the same device.
        device: Where the results live.
        cache: Features that need not be encoded.
    """

    def __init__(
        self, recipe: Recipe, encoders: Encoders, device: torch.device, cache: FeatureCache | None = None
    ) -> None:
        self._encode = FrameEncoders(recipe, encoders, device)
        self._device = device
        self._num_anchors = recipe.anchor.num_frames
        self._cache = cache

    def jobs(self, samples: Sequence[Sample], prompts: Sequence[str], num_tokens: int) -> list[EncodingJob]:
        """Plans what is to be encoded.

        Args:
            samples: Of one shape.
            prompts: What the text encoder reads of each.
            num_tokens: Of all prompts together.

        Returns:
            A job for each of the targets' latents, the sources' latents, perturbed as planned, the semantic features
            of the targets' anchor frames (none where there are no such frames), and the text.
        """
        encode, target = self._encode, samples[0].target_frames.shape[:3]
        source = (len(samples[0].plan.frame_indices), *target[1:])
        targets = [as_clip(sample.target_frames) for sample in samples]
        sources = [as_clip(sample.source_frames) for sample in samples]
        unperturbed = [
            frames if is_unperturbed(sample) else None for sample, frames in zip(samples, sources, strict=True)
        ]
        anchors = [encode.anchors_of(frames) for frames in targets] if self._num_anchors else []

        def encode_targets(places: list[int]) -> Tensor:
            return encode.clips([targets[place] for place in places], [None] * len(places))

        def encode_sources(places: list[int]) -> Tensor:
            return encode.clips([sources[place] for place in places], [samples[place].plan for place in places])

        def encode_anchors(places: list[int]) -> Tensor:
            return encode.anchors([anchors[place] for place in places])

        def encode_prompts(places: list[int]) -> Tensor:
            return encode.prompts([prompts[place] for place in places])

        text_cost = tokens_cost(num_tokens) / len(samples)
        jobs = [
            self._job("latents", targets, encode_targets, encode.latent_shape(*target), pixels_cost(target)),
            self._job("latents", unperturbed, encode_sources, encode.latent_shape(*source), pixels_cost(source)),
        ]
        if anchors:
            cost = anchors_cost(self._num_anchors)
            jobs.append(self._job("semantic", anchors, encode_anchors, encode.semantic_shape, cost))
        jobs.append(self._job("text", prompts, encode_prompts, encode.text_shape, text_cost))
        return jobs

    def _job(
        self,
        kind: Kind,
        contents: Sequence[Content | Tensor | None],
        encode: Callable[[list[int]], Tensor],
        shape: tuple[int, ...],
        cost: float,
    ) -> EncodingJob:
        """A job for contents of which each has this shape and cost; None: one that no cache holds."""
        num_encoded = len(contents) if self._cache is None else sum(content is None for content in contents)
        return EncodingJob(
            cost * num_encoded, (len(contents), *shape), lambda: self._recall_or_encode(kind, contents, encode)
        )

    def _recall_or_encode(
        self, kind: Kind, contents: Sequence[Content | Tensor | None], encode: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """Reads what the cache has and encodes the others together."""
        places = list(range(len(contents)))
        if self._cache is None:
            return encode(places)
        found = [self._find(kind, content) for content in contents]
        missing = [place for place in places if found[place] is None]
        encoded = iter(encode(missing)) if missing else iter(())
        return torch.stack([next(encoded) if one is None else to_device(one, self._device) for one in found])

    def _find(self, kind: Kind, content: Content | Tensor | None) -> Tensor | None:
        assert self._cache is not None
        assert not isinstance(content, Tensor), "a recipe with a cache decodes with PyAV"
        return None if content is None else self._cache.find(kind, content)


def as_clip(frames: Frames) -> HostOrDevice:
    """Returns a sample's frames as they are, or those that lie on a GPU as a tensor over the same memory.

    What is done with the tensor has to be done, and not only begun, when the last of it goes: see `InUse`.
    """
    clip: HostOrDevice = torch.from_dlpack(frames) if isinstance(frames, DeviceFrames) else frames
    return clip


def is_unperturbed(sample: Sample) -> bool:
    """Whether the model sees a sample's source as it was decoded."""
    plan = sample.plan
    return plan.tube_order is None and plan.frame_indices == tuple(range(len(sample.source_frames)))


def anchor_frames(num_frames: int, num_anchors: int) -> list[int]:
    """Uniformly spaced anchor frames; one anchor is frame 0, an image anchors itself.

    Source: SAMA section 3.3; ``linspace`` in Cynthiazxy123/SAMA@5c6bb5b.
    """
    return torch.linspace(0, num_frames - 1, num_anchors).long().numpy().tolist()
