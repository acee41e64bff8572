"""What a run says before its first step: what will happen, in a few lines."""

from __future__ import annotations

from math import prod

from sama_data.dataset import Dataset
from sama_data.loader import SampleLoader
from sama_mega.config.schema import Recipe
from sama_mega.model.attention import AttentionHeads
from sama_mega.observe.tracking_uri import resolve_tracking_uri, without_password
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.parameters.shapes import our_shapes
from sama_mega.train.loop import Run
from sama_mega.train.state import TrainState


def describe_run(
    run: Run, dataset: Dataset, loader: SampleLoader, state: TrainState, context: ParallelContext
) -> list[str]:
    """The lines, each a word and what it is about.

    Args:
        run: The run.
        dataset: What is trained on.
        loader: Knows what a step takes of it.
        state: Knows this rank's parameters.
        context: The running layout.
    """
    recipe = run.recipe
    parts = {
        "run": f"stage {recipe.train.stage}, steps {run.start_step}..{run.total_steps}; run folder {run.folder.root}",
        "model": _model(recipe, state),
        "layout": context.layout.describe(),
        "batch": _batch(recipe, loader),
        "data": _data(dataset),
        "encoders": _encoders(recipe),
        "computes": _computes(recipe, state, context),
        "saves": _saves(recipe),
        "samples": _samples(recipe),
        "tracker": _tracker(recipe),
    }
    return [f"{word:<9} {text}" for word, text in parts.items()]


def _model(recipe: Recipe, state: TrainState) -> str:
    shapes = our_shapes(recipe.model, has_semantic=bool(recipe.anchor.num_frames))
    whole = sum(prod(shape) for shape in shapes.values())
    own = sum(parameter.numel() for stage in state.stages for parameter in stage.parameters())
    model, rank = recipe.model, recipe.lora.rank
    trained = f", low-rank changes of rank {rank} are trained" if rank else ""
    return (
        f"{whole:,} parameters ({own:,} on this rank), {model.num_layers} layers, width {model.dim},"
        f" {model.num_heads} heads{trained}"
    )


def _batch(recipe: Recipe, loader: SampleLoader) -> str:
    data, num_videos = recipe.data, loader.num_slots - loader.num_image_slots
    return (
        f"{loader.num_image_slots} images and {num_videos} videos a step, in micro-batches of"
        f" {data.micro_batch_images} and {data.micro_batch_videos}"
    )


def _data(dataset: Dataset) -> str:
    images, videos = (len(dataset.indices_of(kind)) for kind in ("image", "video"))
    return f"{len(dataset):,} samples in {dataset.name}: {images:,} images, {videos:,} videos"


def _encoders(recipe: Recipe) -> str:
    chosen = recipe.encoders
    cache = "no cache" if recipe.data.cache is None else f"features from {recipe.data.cache}"
    return f"video {chosen.video}, text {chosen.text}, semantic {chosen.semantic}; {cache}"


def _computes(recipe: Recipe, state: TrainState, context: ParallelContext) -> str:
    heads = [part for stage in state.stages for part in stage.modules() if isinstance(part, AttentionHeads)]
    backends = {backend for part in heads for *_, backend in part.attention_choice.by_shape}
    return (
        f"{recipe.train.precision} on {context.device.type}, recompute {recipe.train.recompute}, attention"
        f" {' and '.join(sorted(backends))}, other operations {recipe.kernels.ops}"
    )


def _saves(recipe: Recipe) -> str:
    settings = recipe.checkpoint
    how = "in the background" if settings.asynchronous else "while the run waits"
    return f"every {settings.every} steps and at the end, {how}; the newest {settings.keep} are kept"


def _samples(recipe: Recipe) -> str:
    train = recipe.train
    if not train.num_samples:
        return "none (train.num_samples is 0)"
    when = f"every {train.sample_every} steps and after the last" if train.sample_every else "after the last step"
    clips = "the training data" if train.sample_clips is None else train.sample_clips
    return f"{train.num_samples} clips of {clips}, {when}, at most {train.sample_seconds:g} s"


def _tracker(recipe: Recipe) -> str:
    if not recipe.track.mlflow:
        return "metrics.jsonl alone (track.mlflow is false)"
    return f"MLflow at {without_password(resolve_tracking_uri(recipe.track.uri))}, experiment {recipe.track.experiment}"
