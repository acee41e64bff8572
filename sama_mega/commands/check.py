"""`sama-mega check`: is this recipe right for this many ranks? Needs no GPU and no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sama_data.manifest import load_manifest
from sama_kernels.dispatch import require_built
from sama_mega.cluster.node_list import join_ranges
from sama_mega.config import Recipe, load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BUILT_IN_ENCODERS, FRAMES_PER_LATENT, LATENT_STRIDE, DataRecipe, EncodersRecipe
from sama_mega.parallel.layout import (
    Layout,
    fewest_ranks,
    resolve_layout,
    samples_needed_per_rank,
    too_few_samples,
)

DEFAULT_GPUS_PER_NODE = 8

_MOST_GROUPS_SHOWN = 8


@dataclass(frozen=True)
class BucketTokens:
    """Tokens of one sample in one bucket; a sequence is source, semantic and target tokens together."""

    width: int
    height: int
    image_tokens: int
    image_sequence: int
    video_tokens: int
    video_sequence: int


@dataclass(frozen=True)
class Finding:
    """Something allowed that is probably not meant.

    Attributes:
        key: The recipe's key to look at.
        text: One line for the user.
        stops_training: Whether `train` would refuse to start over it.
    """

    key: str
    text: str
    stops_training: bool = False


@dataclass(frozen=True)
class Examination:
    """What is known of a recipe on a number of ranks.

    Attributes:
        layout: Its layout.
        samples: Images and videos in the manifests that exist.
        findings: What is allowed but probably not meant.
    """

    layout: Layout
    samples: dict[str, int]
    findings: list[Finding]


def run(
    recipe: str | Path,
    overrides: Sequence[str],
    num_ranks: int | None = None,
    as_json: bool = False,
    gpus_per_node: int = DEFAULT_GPUS_PER_NODE,
) -> int:
    """Validate a recipe and print its layout, its sequence lengths and warnings.

    Args:
        recipe: Path of the YAML.
        overrides: `section.key=value` items.
        num_ranks: Ranks to plan for; None takes the fewest that the recipe's degrees allow.
        as_json: Whether the last line of stdout is one JSON object.
        gpus_per_node: Ranks on each node, for warnings of groups that span nodes.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The recipe or the layout breaks a rule.
        DataError: A manifest exists but cannot be used.
    """
    loaded = load_recipe(recipe, overrides)
    found = examine(loaded, num_ranks or fewest_ranks(loaded), gpus_per_node)
    buckets = [bucket_tokens(loaded, width, height) for width, height in loaded.data.buckets]
    warnings = [finding.text for finding in found.findings]
    _print_report(str(recipe), loaded, found.layout, buckets, found.samples)
    for warning in warnings:
        print(f"warning    {warning}")
    if as_json:
        report = {
            "ok": True,
            "layout": asdict(found.layout),
            "buckets": [asdict(bucket) for bucket in buckets],
            "samples": found.samples,
            "warnings": warnings,
        }
        print(json.dumps(report))
    return 0


def count_samples(data: DataRecipe) -> tuple[dict[str, int], list[Finding]]:
    """Count images and videos in the manifests; a missing manifest is a finding.

    Raises:
        DataError: A manifest exists but cannot be used.
    """
    paths = [data.manifest] if data.manifest else [entry.manifest for entry in data.blend]
    samples = {"image": 0, "video": 0}
    missing = [path for path in paths if not path.exists()]
    findings = [_stop("data.manifest", f"{path}: no such manifest") for path in missing]
    for path in paths:
        if path not in missing:
            dataset = load_manifest(path)
            samples["image"] += len(dataset.indices_of("image"))
            samples["video"] += len(dataset.indices_of("video"))
    if not paths:
        findings.append(_stop("data.manifest", "data.manifest and data.blend name no manifest"))
    elif not missing:
        for kind, wanted in (("image", data.images_per_step), ("video", data.videos_per_step)):
            if wanted and not samples[kind]:
                key = f"data.{kind}s_per_step"
                findings.append(Finding(key, f"no {kind} samples: {key} ({wanted}) has no effect"))
    return samples, findings


def examine(
    recipe: Recipe,
    num_ranks: int,
    gpus_per_node: int,
    count: Callable[[DataRecipe], tuple[dict[str, int], list[Finding]]] = count_samples,
) -> Examination:
    """Check a recipe for a number of ranks.

    Args:
        recipe: The recipe.
        num_ranks: Ranks that will run it.
        gpus_per_node: Ranks on each node, numbered node by node.
        count: Reads the manifests; a cached `count_samples` where many recipes share them.

    Raises:
        ConfigError: The layout breaks a rule, or a kernel is not built.
        DataError: A manifest exists but cannot be used.
    """
    layout = resolve_layout(recipe, num_ranks)
    _require_built_kernels(recipe)
    samples, findings = count(recipe.data)
    findings = [*findings, *_other_findings(recipe, layout), *_node_findings(recipe, layout, gpus_per_node)]
    return Examination(layout, samples, findings)


def bucket_tokens(recipe: Recipe, width: int, height: int) -> BucketTokens:
    """Count the tokens of an image and of the longest clip in a bucket of `width` x `height` pixels."""
    _, patch_height, patch_width = recipe.model.patch_size
    per_frame = (height // (LATENT_STRIDE * patch_height)) * (width // (LATENT_STRIDE * patch_width))
    latent_frames = 1 + (recipe.data.max_frames - 1) // FRAMES_PER_LATENT
    semantic = recipe.anchor.num_tokens
    return BucketTokens(
        width=width,
        height=height,
        image_tokens=per_frame,
        image_sequence=2 * per_frame + semantic,
        video_tokens=latent_frames * per_frame,
        video_sequence=2 * latent_frames * per_frame + semantic,
    )


def _stop(key: str, text: str) -> Finding:
    return Finding(key, f"{text}; train will stop here", stops_training=True)


def _other_findings(recipe: Recipe, layout: Layout) -> list[Finding]:
    findings = []
    start, per_step = recipe.checkpoint.init_from, recipe.data.images_per_step + recipe.data.videos_per_step
    if start is not None and not start.exists():
        findings.append(_stop("checkpoint.init_from", f"checkpoint.init_from ({start}): no such checkpoint"))
    findings += _weights_findings(recipe.encoders)
    cache = recipe.data.cache
    if cache is not None and not cache.is_dir():
        findings.append(_stop("data.cache", f"data.cache ({cache}): no such cache"))
    if start is None and recipe.train.stage == 1:
        text = "checkpoint.init_from is null: stage 1 starts from random weights"
        findings.append(Finding("checkpoint.init_from", text))
    if per_step < samples_needed_per_rank(recipe.parallel) * layout.data:
        findings.append(_stop("data.videos_per_step", too_few_samples(recipe.parallel, per_step, layout.data)))
    elif per_step < layout.data:
        text = f"{per_step} samples a step leave {layout.data - per_step} of {layout.data} data ranks idle"
        findings.append(Finding("data.videos_per_step", text))
    warmup, steps = recipe.optimizer.warmup_steps, recipe.train.steps
    if warmup >= steps:
        text = f"optimizer.warmup_steps ({warmup}) never ends: train.steps is {steps}"
        findings.append(Finding("optimizer.warmup_steps", text))
    return findings


def _weights_findings(encoders: EncodersRecipe) -> list[Finding]:
    """Folders of pretrained encoders that are not there; what is in them only loading tells."""
    findings = []
    for role, built_in in BUILT_IN_ENCODERS.items():
        chosen, key = getattr(encoders, role), f"encoders.{role}_path"
        path: Path | None = getattr(encoders, f"{role}_path")
        if chosen == built_in:
            continue
        if path is None:
            findings.append(_stop(key, f"{key} is null: encoders.{role} ({chosen}) needs the folder of its weights"))
        elif not path.is_dir():
            findings.append(_stop(key, f"{key} ({path}): no such folder"))
    return findings


def _node_findings(recipe: Recipe, layout: Layout, gpus_per_node: int) -> list[Finding]:
    """Groups that talk in every block and span nodes: the network is slower than the links inside a node."""
    tensor, ulysses, node = layout.tensor, layout.ulysses, f"the GPUs of a node (--gpus-per-node {gpus_per_node})"
    # Ranks of a group are neighbours: tensor first, then context.
    if _spans_nodes(tensor, layout.world_size, gpus_per_node):
        fitting = ", ".join(map(str, _degrees_inside(recipe, gpus_per_node)))
        text = (
            f"parallel.tensor ({tensor}) must divide {node} or the sums of every matrix cross the network: "
            f"use {fitting}"
        )
        return [Finding("parallel.tensor", text)]
    if ulysses > 1 and _spans_nodes(tensor * ulysses, layout.world_size, gpus_per_node):
        inside = max(
            degree
            for degree in range(1, ulysses)
            if ulysses % degree == 0 and not _spans_nodes(tensor * degree, layout.world_size, gpus_per_node)
        )
        text = (
            f"parallel.tensor x ulysses ({tensor} x {ulysses} = {tensor * ulysses}) should divide {node}: it works, "
            f"but every block's all-to-all crosses the network; parallel.ulysses={inside} keeps heads inside a node "
            "and gathers keys and values between nodes instead"
        )
        return [Finding("parallel.ulysses", text)]
    return []


def _spans_nodes(group_size: int, world_size: int, gpus_per_node: int) -> bool:
    """Whether some group of neighbouring ranks, the first of which begins at rank 0, has ranks on two nodes."""
    starts = range(0, world_size, group_size)
    return any(start // gpus_per_node != (start + group_size - 1) // gpus_per_node for start in starts)


def _degrees_inside(recipe: Recipe, gpus_per_node: int) -> list[int]:
    """Tensor degrees that fit the model and a node."""
    sizes = (gpus_per_node, recipe.model.num_heads, recipe.model.ffn_dim)
    return [degree for degree in range(1, gpus_per_node + 1) if all(size % degree == 0 for size in sizes)]


def _require_built_kernels(recipe: Recipe) -> None:
    """Raises ConfigError for a kernel that is not built, as building the model would."""
    try:
        require_built(recipe.kernels.ops, recipe.kernels.attention)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _print_report(
    name: str, recipe: Recipe, layout: Layout, buckets: Iterable[BucketTokens], samples: dict[str, int]
) -> None:
    train, data, model = recipe.train, recipe.data, recipe.model
    print(f"recipe     {name}: stage {train.stage}, {train.steps} steps, run folder {train.run_folder}")
    print(f"model      {model.num_layers} layers of width {model.dim}, {model.num_heads} heads of {model.head_dim}")
    print(f"layout     {layout.describe()}")
    print(f"ranks      {_describe_groups(layout)}")
    print(
        f"batch      {data.images_per_step} images + {data.videos_per_step} videos a step over "
        f"{layout.data} data rank{'s' if layout.data > 1 else ''}; "
        f"micro-batches of {data.micro_batch_images} and {data.micro_batch_videos}"
    )
    print(f"samples    {samples['image']} images and {samples['video']} videos in the manifests that exist")
    print(
        f"tokens     source + {recipe.anchor.num_tokens} semantic + target; clips of at most {data.max_frames} frames"
    )
    print("           bucket       image  sequence    video  sequence  per rank")
    split = layout.context * (layout.tensor if layout.sequence else 1)
    for bucket in buckets:
        shape = f"{bucket.width}x{bucket.height}"
        print(
            f"           {shape:<9}{bucket.image_tokens:>9}{bucket.image_sequence:>10}"
            f"{bucket.video_tokens:>9}{bucket.video_sequence:>10}{-(-bucket.video_sequence // split):>10}"
        )


def _describe_groups(layout: Layout) -> str:
    """Which ranks hold which data-parallel index; the first few, for large worlds."""
    shown = min(layout.data, _MOST_GROUPS_SHOWN)
    groups = [f"data {index}: {join_ranges(layout.ranks_of_data_index(index))}" for index in range(shown)]
    return "; ".join(groups) + ("; ..." if shown < layout.data else "")
