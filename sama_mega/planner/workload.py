"""The work of one optimizer step: which micro-batches every data rank runs, of what shapes.

Without manifests, so all samples have the plan's worst case: the recipe's largest bucket, and clips of
`data.max_frames`. They are dealt to the data ranks by the functions that deal a run's samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sama_data.dealing import Work, deal_work
from sama_data.pretext import Motion, plan_source_frames
from sama_data.rows import Kind
from sama_data.shapes import Shape, cut_by_shape
from sama_mega.config.schema import FRAMES_PER_LATENT, LATENT_STRIDE, MotionRecipe, Recipe
from sama_mega.parallel.layout import Layout, samples_needed_per_rank
from sama_mega.parallel.token_layout import SOURCE, TARGET, Grid, TokenLayout
from sama_mega.train.loader_settings import cost_model


@dataclass(frozen=True)
class MicroBatchShape:
    """What one forward pass of the model sees.

    Attributes:
        kind: Of its samples.
        num_samples: How many there are.
        width: Pixels of source and target alike.
        height: Lines.
        num_frames: Frames of the target.
        source_frames: Frames of the source as the model sees it.
        source_grid: Patches of the source: latent frames, lines, columns.
        target_grid: Patches of the target.
        num_semantic: Semantic tokens of a sample.
        text_length: Text tokens of a sample.
        num_shards: Ranks that share the tokens between the matrices.
    """

    kind: Kind
    num_samples: int
    width: int
    height: int
    num_frames: int
    source_frames: int
    source_grid: Grid
    target_grid: Grid
    num_semantic: int
    text_length: int
    num_shards: int

    @cached_property
    def sequence(self) -> TokenLayout:
        """One sample's sequence and its shards, as the model cuts it."""
        return TokenLayout(self.source_grid, self.num_semantic, self.target_grid, self.num_shards)

    @property
    def source_tokens(self) -> int:
        """Of one sample's source."""
        return self.sequence.segment_lengths[SOURCE]

    @property
    def target_tokens(self) -> int:
        """Of one sample's target."""
        return self.sequence.segment_lengths[TARGET]

    @property
    def num_tokens(self) -> int:
        """Of one sample's sequence, without padding."""
        return self.sequence.num_tokens

    @property
    def tokens_per_shard(self) -> int:
        """Of one sample on one rank between the matrices, padding included."""
        return self.sequence.tokens_per_shard

    @property
    def num_padded_tokens(self) -> int:
        """Of one sample's sequence, with padding."""
        return self.sequence.num_padded_tokens


@dataclass(frozen=True)
class Workload:
    """One optimizer step.

    Attributes:
        data_ranks: By data rank, its micro-batches in order; some may have none.
        largest: Of each kind that is trained on, the largest micro-batch that dealing can give a rank.
    """

    data_ranks: tuple[tuple[MicroBatchShape, ...], ...]
    largest: tuple[MicroBatchShape, ...]

    @cached_property
    def distinct_ranks(self) -> Counter[tuple[MicroBatchShape, ...]]:
        """How many data ranks have the same micro-batches."""
        return Counter(self.data_ranks)

    @cached_property
    def samples(self) -> Counter[MicroBatchShape]:
        """Samples of the global batch by their micro-batch's shape."""
        counted: Counter[MicroBatchShape] = Counter()
        for batches, times in self.distinct_ranks.items():
            for batch in batches:
                counted[batch] += times * batch.num_samples
        return counted

    @property
    def num_samples(self) -> int:
        """Of the global batch."""
        return self.samples.total()

    @property
    def num_tokens(self) -> int:
        """Of the global batch, without padding."""
        return sum(count * batch.num_tokens for batch, count in self.samples.items())


def plan_workload(recipe: Recipe, layout: Layout) -> Workload:
    """Plans a step.

    Args:
        recipe: The whole recipe; of `parallel`, only the overlaps are read.
        layout: Resolved degrees.
    """
    shapes = _slots(recipe)
    data = recipe.data
    limits: dict[Kind, int] = {"image": data.micro_batch_images, "video": data.micro_batch_videos}
    dealt = _deal(recipe, layout, shapes, limits)
    at_least = layout.pipeline if layout.interleave > 1 else 1
    cut: dict[tuple[Shape, ...], tuple[MicroBatchShape, ...]] = {}
    ranks = []
    for slots in dealt:
        own = tuple(shapes[slot] for slot in slots)
        if own not in cut:
            groups = cut_by_shape(own, limits, at_least)
            cut[own] = tuple(micro_batch_shape(recipe, layout, own[group[0]], len(group)) for group in groups)
        ranks.append(cut[own])
    per_step: dict[Kind, int] = {"image": data.images_per_step, "video": data.videos_per_step}
    return Workload(
        data_ranks=tuple(ranks),
        largest=tuple(
            micro_batch_shape(recipe, layout, _largest_shape(recipe, kind), min(limits[kind], count))
            for kind, count in per_step.items()
            if count
        ),
    )


def micro_batch_shape(recipe: Recipe, layout: Layout, shape: Shape, num_samples: int) -> MicroBatchShape:
    """Gives the tokens of samples of one shape."""
    _, patch_height, patch_width = recipe.model.patch_size
    lines, columns = shape.height // (LATENT_STRIDE * patch_height), shape.width // (LATENT_STRIDE * patch_width)
    source, target = (1 + (frames - 1) // FRAMES_PER_LATENT for frames in (shape.source_frames, shape.num_frames))
    return MicroBatchShape(
        kind=shape.kind,
        num_samples=num_samples,
        width=shape.width,
        height=shape.height,
        num_frames=shape.num_frames,
        source_frames=shape.source_frames,
        source_grid=(source, lines, columns),
        target_grid=(target, lines, columns),
        num_semantic=recipe.anchor.num_tokens,
        text_length=recipe.model.text_length,
        num_shards=layout.sequence_shards,
    )


def _slots(recipe: Recipe) -> list[Shape]:
    """The shapes of a step's slots: images first; of stage 0's raw clips, as many sped up as the weights say."""
    data = recipe.data
    slots = [_largest_shape(recipe, "image")] * data.images_per_step
    whole = _largest_shape(recipe, "video")
    share = _sped_up_share(recipe.motion) if recipe.train.stage == 0 else 0.0
    sped_up = whole._replace(source_frames=_sped_up_frames(recipe.motion, whole))
    num_sped_up = round(share * data.videos_per_step) if sped_up != whole else 0
    return slots + [whole] * (data.videos_per_step - num_sped_up) + [sped_up] * num_sped_up


def _largest_shape(recipe: Recipe, kind: Kind) -> Shape:
    """Of one sample: in stage 0 too a run may draw a clip that is not sped up, whatever the weights."""
    width, height = max(recipe.data.buckets, key=lambda bucket: bucket[0] * bucket[1])
    frames = 1 if kind == "image" else recipe.data.max_frames
    return Shape(kind, width, height, frames, frames)


def encoded_again(recipe: Recipe, batch: MicroBatchShape) -> float:
    """The share of a micro-batch's sources that stage 0 perturbs: they are encoded whatever `data.cache` holds."""
    motion = recipe.motion
    if recipe.train.stage != 0 or batch.kind != "video":
        return 0.0
    if batch.source_frames != batch.num_frames:
        return 1.0
    perturbed = motion.cube + motion.tube + (motion.speed if motion.keep_length else 0.0)
    return perturbed / (motion.none + perturbed) if perturbed else 0.0


def _sped_up_share(motion: MotionRecipe) -> float:
    return motion.speed / (motion.none + motion.cube + motion.speed + motion.tube)


def _sped_up_frames(motion: MotionRecipe, whole: Shape) -> int:
    """The source's frames of a clip that is sped up for certain."""
    only = Motion(none=0.0, cube=0.0, speed=1.0, tube=0.0, keep_length=motion.keep_length)
    return plan_source_frames(only, 0, "", 0, whole.num_frames, whole.height, whole.width)


def _deal(recipe: Recipe, layout: Layout, slots: list[Shape], limits: dict[Kind, int]) -> list[list[int]]:
    distinct = list(dict.fromkeys(slots))
    place = {shape: number for number, shape in enumerate(distinct)}
    cost = replace(cost_model(recipe), ranks_per_sample=layout.tensor * layout.context)
    columns = np.array([shape[1:] for shape in distinct], np.int64).T
    costs = cost.nanoseconds(cost.tokens(*columns))
    work = Work(
        shape_of=tuple(place[shape] for shape in slots),
        costs=tuple(costs.tolist()),
        limits=tuple(limits[shape.kind] for shape in distinct),
        call_cost=cost.call_nanoseconds,
    )
    degrees = {"pipeline": layout.pipeline, "interleave": layout.interleave}
    return deal_work(work, layout.data, samples_needed_per_rank(recipe.parallel.model_copy(update=degrees)))
