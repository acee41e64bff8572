"""Opens what a run reads: its samples, the clips to look at, and features that are already there."""

from __future__ import annotations

from sama_data.dataset import Dataset
from sama_data.loader import Quarantine, SampleLoader
from sama_data.manifest import load_blend, load_manifest
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.encoders import Encoders
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.parallel.layout import samples_needed_per_rank, too_few_samples
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.agreement import from_first_rank, on_every_rank
from sama_mega.train.loader_settings import loader_settings
from sama_mega.train.run_folder import RunFolder


def open_dataset(recipe: Recipe) -> Dataset:
    """Opens the recipe's manifest or blend.

    Raises:
        ConfigError: The recipe names neither, or raw clips for stage 1.
        DataError: A manifest is missing, empty or wrong.
    """
    if recipe.data.manifest is not None:
        dataset = load_manifest(recipe.data.manifest)
    elif recipe.data.blend:
        dataset = load_blend([(entry.manifest, entry.weight) for entry in recipe.data.blend])
    else:
        raise ConfigError("data.manifest is not set: name a manifest (data.manifest=PATH) or a data.blend")
    num_raw = dataset.num_raw
    if recipe.train.stage == 1 and num_raw:
        raise ConfigError(
            f"{dataset.name}: {num_raw} rows have no source: stage 1 trains on edits only; drop them, or use stage 0"
        )
    return dataset


def open_sample_clips(recipe: Recipe, dataset: Dataset) -> Dataset:
    """Opens the clips that are edited as samples: the user's, else those of the training data.

    Raises:
        DataError: The user's manifest is missing, empty or wrong.
    """
    path = recipe.train.sample_clips
    return dataset if path is None else load_manifest(path)


def build_loader(recipe: Recipe, dataset: Dataset, context: ParallelContext, folder: RunFolder) -> SampleLoader:
    """Builds this data rank's loader.

    Raises:
        ConfigError: A step is too small for the layout.
        DataError: No stream has both rows and slots.
    """
    quarantine = Quarantine(folder.quarantine_path)
    gpu = context.device.index if context.device.type == "cuda" else None
    loader = SampleLoader(
        dataset, loader_settings(recipe), context.data_rank, context.layout.data, quarantine, device=gpu
    )
    if loader.num_slots < samples_needed_per_rank(recipe.parallel) * context.layout.data:
        raise ConfigError(too_few_samples(recipe.parallel, loader.num_slots, context.layout.data))
    return loader


def open_cache(recipe: Recipe, encoders: Encoders, context: ParallelContext) -> FeatureCache | None:
    """Opens the recipe's feature cache; every rank calls it, and the first one reads the encoders' weights for it.

    Raises:
        ConfigError: On every rank, when there is no whole cache of these encoders.
    """
    path = recipe.data.cache
    if path is None:
        return None
    identity = from_first_rank(context, encoders.identity)
    return on_every_rank(context, lambda: FeatureCache(path, identity, encoders.text.max_tokens))
