"""What `sama-mega check` prints of a recipe and its layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sama_mega.cluster.node_list import join_ranges
from sama_mega.config import Recipe
from sama_mega.config.schema import FRAMES_PER_LATENT, LATENT_STRIDE
from sama_mega.parallel.layout import Layout

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


def print_recipe(
    name: str, recipe: Recipe, layout: Layout, buckets: Iterable[BucketTokens], samples: dict[str, int]
) -> None:
    """Prints the model, the layout, the batch and its tokens."""
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
