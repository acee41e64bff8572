"""`sama-mega check`: is this recipe right for this many ranks? Needs no GPU and no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sama_data.manifest import load_manifest
from sama_data.rows import Kind
from sama_kernels.dispatch import require_built
from sama_mega.commands.check_plan import (
    GpuRequest,
    Plan,
    make_plan,
    print_plan,
    refuse_misfit,
    report_plan,
    require_layout,
)
from sama_mega.commands.check_report import bucket_tokens, print_recipe
from sama_mega.commands.check_scaling import print_scaling
from sama_mega.config import Recipe, load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BUILT_IN_ENCODERS, DataRecipe, EncodersRecipe
from sama_mega.parallel.layout import (
    Layout,
    fewest_ranks,
    resolve_layout,
    samples_needed_per_rank,
    too_few_samples,
)
from sama_mega.planner.foot_guns import Cluster

DEFAULT_GPUS_PER_NODE = 8
KINDS: tuple[Kind, ...] = ("image", "video")


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
class Manifests:
    """What the manifests of a recipe hold.

    Attributes:
        samples: Images and videos in those that exist.
        num_raw: How many of them have no source.
        missing: Manifests that are not there.
    """

    samples: Mapping[str, int]
    num_raw: int
    missing: tuple[Finding, ...]


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
    request: GpuRequest | None = None,
    scaling: bool = False,
) -> int:
    """Validate a recipe and print its layout, its memory and step time, layouts that fit, and warnings.

    Args:
        recipe: Path of the YAML.
        overrides: `section.key=value` items.
        num_ranks: Ranks to plan for; None takes the fewest that the recipe's degrees allow.
        as_json: Whether the last line of stdout is one JSON object.
        request: What is known of the GPUs.
        scaling: Whether to simulate 8 to 4,096 of them.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The recipe or the layout breaks a rule, or does not fit a GPU's memory; then all is printed.
        DataError: A manifest exists but cannot be used.
    """
    loaded, asked = load_recipe(recipe, overrides), request or GpuRequest()
    ranks = num_ranks or fewest_ranks(loaded)
    require_layout(loaded, ranks, asked)
    found = examine(loaded, ranks, asked.gpus_per_node)
    plan = make_plan(loaded, found.layout, asked)
    cluster = _named_cluster(plan) if scaling else None
    buckets = [bucket_tokens(loaded, width, height) for width, height in loaded.data.buckets]
    print_recipe(str(recipe), loaded, found.layout, buckets, found.samples)
    print_plan(plan, found.layout)
    warnings = [finding.text for finding in found.findings] + [foot_gun.text for foot_gun in plan.foot_guns]
    for warning in warnings:
        print(f"warning    {warning}")
    simulated = {"scaling": print_scaling(loaded, cluster)} if cluster else {}
    if as_json:
        report = {
            "ok": plan.fits,
            "layout": asdict(found.layout),
            "buckets": [asdict(bucket) for bucket in buckets],
            "samples": found.samples,
            "warnings": warnings,
        }
        print(json.dumps(report | report_plan(plan) | simulated))
    refuse_misfit(loaded, found.layout, plan)
    return 0


def count_samples(data: DataRecipe) -> Manifests:
    """Count the samples of the manifests; a missing manifest is a finding.

    Raises:
        DataError: A manifest exists but cannot be used.
    """
    paths = [data.manifest] if data.manifest else [entry.manifest for entry in data.blend]
    missing = [_stop("data.manifest", f"{path}: no such manifest") for path in paths if not path.exists()]
    datasets = [load_manifest(path) for path in paths if path.exists()]
    if not paths:
        missing.append(_stop("data.manifest", "data.manifest and data.blend name no manifest"))
    samples: dict[str, int] = {kind: sum(len(dataset.indices_of(kind)) for dataset in datasets) for kind in KINDS}
    return Manifests(samples, sum(dataset.num_raw for dataset in datasets), tuple(missing))


def examine(
    recipe: Recipe,
    num_ranks: int,
    gpus_per_node: int,
    count: Callable[[DataRecipe], Manifests] = count_samples,
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
    manifests = count(recipe.data)
    findings = [
        *_sample_findings(recipe, layout, manifests),
        *_other_findings(recipe),
        *_node_findings(recipe, layout, gpus_per_node),
    ]
    return Examination(layout, dict(manifests.samples), findings)


def _named_cluster(plan: Plan) -> Cluster:
    if plan.cluster is None:
        raise ConfigError("--scaling needs a kind of GPU, and train.precision float32 means CPU ranks: give --gpu H200")
    return plan.cluster


def _stop(key: str, text: str) -> Finding:
    return Finding(key, f"{text}; train will stop here", stops_training=True)


def _sample_findings(recipe: Recipe, layout: Layout, manifests: Manifests) -> list[Finding]:
    """What a step's samples are missing; where a manifest is, the others say nothing of what there will be."""
    findings, samples = list(manifests.missing), manifests.samples
    if recipe.train.stage == 1 and manifests.num_raw:
        text = f"{manifests.num_raw} rows have no source, and stage 1 trains on edits only"
        findings.append(_stop("data.manifest", text))
    per_step: dict[Kind, int] = {"image": recipe.data.images_per_step, "video": recipe.data.videos_per_step}
    wanted = [kind for kind in KINDS if per_step[kind]]
    filled = wanted if manifests.missing else [kind for kind in wanted if samples[kind]]
    if not filled:
        keys = " and ".join(f"data.{kind}s_per_step ({per_step[kind]})" for kind in wanted)
        return [*findings, _stop("data.manifest", f"no samples for {keys}")]
    for kind in wanted:
        if kind not in filled:
            key = f"data.{kind}s_per_step"
            findings.append(Finding(key, f"no {kind} samples: {key} ({per_step[kind]}) has no effect"))
    num_slots = sum(per_step[kind] for kind in filled)
    if num_slots < samples_needed_per_rank(recipe.parallel) * layout.data:
        findings.append(_stop("data.videos_per_step", too_few_samples(recipe.parallel, num_slots, layout.data)))
    elif num_slots < layout.data:
        text = f"{num_slots} samples a step leave {layout.data - num_slots} of {layout.data} data ranks idle"
        findings.append(Finding("data.videos_per_step", text))
    return findings


def _other_findings(recipe: Recipe) -> list[Finding]:
    findings = []
    start = recipe.checkpoint.init_from
    if start is not None and not start.exists():
        findings.append(_stop("checkpoint.init_from", f"checkpoint.init_from ({start}): no such checkpoint"))
    findings += _weights_findings(recipe.encoders)
    cache = recipe.data.cache
    if cache is not None and not cache.is_dir():
        findings.append(_stop("data.cache", f"data.cache ({cache}): no such cache"))
    clips = recipe.train.sample_clips
    if clips is not None and not clips.exists():
        findings.append(_stop("train.sample_clips", f"train.sample_clips ({clips}): no such manifest"))
    elif clips is not None:
        load_manifest(clips)  # which says what is wrong with it
    if start is None and recipe.train.stage == 1:
        text = "checkpoint.init_from is null: stage 1 starts from random weights"
        findings.append(Finding("checkpoint.init_from", text))
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
