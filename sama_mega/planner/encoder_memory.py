"""Memory of the frozen encoders on every GPU: weights, and what encoding one micro-batch holds for a while.

Every rank loads all three, in the run's precision (`sama_mega/encoders/__init__.py`); the built-in ones have no
weights. Encoding happens before a micro-batch's forward pass (`sama_mega/train/batch.py`), when it holds no
activations.
"""

from __future__ import annotations

from sama_mega.config.schema import BUILT_IN_ENCODERS, FRAMES_PER_LATENT, Recipe
from sama_mega.planner.rank_parameters import BYTES
from sama_mega.planner.workload import MicroBatchShape, encoded_again

NUM_PARAMETERS = {"video": 126_892_531, "text": 5_680_910_336, "semantic": 428_225_600}
"""Of Wan2.1's VAE, UMT5-xxl's encoder and SigLIP so400m's picture tower, as published."""
_VAE_WIDTH = 96
_VAE_TENSORS = 8
_FLOAT = 4


def encoder_weight_bytes(recipe: Recipe) -> dict[str, int]:
    """Bytes of the weights by what is encoded: ``video``, ``text``, ``semantic``; built-in encoders are left out."""
    return {
        role: count * BYTES[recipe.train.precision]
        for role, count in NUM_PARAMETERS.items()
        if getattr(recipe.encoders, role) != BUILT_IN_ENCODERS[role]
    }


def encoding_bytes(recipe: Recipe, batch: MicroBatchShape) -> int:
    """The most that encoding a micro-batch holds beside its results.

    Pixels: of all its targets or sources, float32 one by one and stacked (`FrameEncoders.clips` in
    `sama_mega/train/encode.py`), and of one clip in the run's precision. The VAE: it works through a clip four frames
    at a time; an estimate of eight tensors of its first width, 96, at full size, inputs kept for the next frames
    included. Text and pictures of 384 pixels are small beside it.
    """
    if recipe.data.cache is None:
        frames = max(batch.num_frames, batch.source_frames)
    else:
        frames = batch.source_frames if encoded_again(recipe, batch) else 0
    values = 3 * frames * batch.width * batch.height
    held = 2 * _FLOAT * batch.num_samples * values
    if recipe.encoders.video != BUILT_IN_ENCODERS["video"]:
        num_bytes = BYTES[recipe.train.precision]
        at_once = min(FRAMES_PER_LATENT, frames)
        held += num_bytes * (values + _VAE_TENSORS * _VAE_WIDTH * at_once * batch.width * batch.height)
    return held


def input_bytes(recipe: Recipe, batch: MicroBatchShape) -> int:
    """What the model reads of one encoded micro-batch and must predict, float32.

    Clean target, source, noisy target and velocity of 16 channels; three times the semantic features; the text
    (``MicroBatch`` in `sama_mega/train/batch.py`, ``NoisedBatch`` in `sama_mega/train/forward.py`).
    """
    model = recipe.model
    _, patch_height, patch_width = model.patch_size
    latents = model.in_channels * patch_height * patch_width * (batch.source_tokens + 3 * batch.target_tokens)
    semantic = 3 * batch.num_semantic * model.semantic_dim
    return _FLOAT * batch.num_samples * (latents + semantic + batch.text_length * model.text_dim)
