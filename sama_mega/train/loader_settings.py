"""What the loader takes from a recipe; needs no torch."""

from __future__ import annotations

from sama_data.cost import CostModel
from sama_data.settings import LoaderSettings
from sama_mega.config import Recipe
from sama_mega.parallel.layout import samples_needed_per_rank


def loader_settings(recipe: Recipe) -> LoaderSettings:
    """Returns how a recipe's samples are drawn, read and dealt."""
    data = recipe.data
    return LoaderSettings(
        images_per_step=data.images_per_step,
        videos_per_step=data.videos_per_step,
        seed=recipe.train.seed,
        buckets=data.buckets,
        max_frames=data.max_frames,
        motion=recipe.motion,
        prefetch_steps=data.prefetch_steps,
        decode_threads=data.decode_threads,
        decode_timeout_seconds=data.decode_timeout_seconds,
        decoded_cache_mib=data.decoded_cache_mib,
        max_bad_share=data.max_bad_share,
        at_least_per_rank=samples_needed_per_rank(recipe.parallel),
        micro_batch_images=data.micro_batch_images,
        micro_batch_videos=data.micro_batch_videos,
        cost=cost_model(recipe),
    )


def cost_model(recipe: Recipe) -> CostModel:
    """Returns what predicts the samples' times on a recipe's model and layout."""
    model, parallel = recipe.model, recipe.parallel
    return CostModel(
        dim=model.dim,
        ffn_dim=model.ffn_dim,
        semantic_tokens=recipe.anchor.num_tokens,
        text_length=model.text_length,
        ranks_per_sample=parallel.tensor * parallel.context,
    )
