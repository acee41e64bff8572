"""Published weights into a checkpoint, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sama_mega.checkpoint.saved_state import SavedState
from sama_mega.checkpoint.write import write_streamed
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.model.initialize import draw_whole
from sama_mega.model.name_map import fuse
from sama_mega.parallel.checkpoint_stream import CheckpointWriter
from sama_mega.parameters.shapes import our_shapes
from sama_mega.weights.fit import Fit, require_fit
from sama_mega.weights.formats import SourceFormat, released_name
from sama_mega.weights.lora import LoraChoice, open_merged
from sama_mega.weights.recipe_choice import choose_recipe
from sama_mega.weights.source import StoredTensor, open_source

TYPE_EMBEDDING = "segment_embedding.weight"
SECTIONS = ("model", "ema")


@dataclass(frozen=True)
class Imported:
    """What was done.

    Attributes:
        recipe: Stored in the checkpoint.
        num_read: Parameters that came from the weights.
        fresh: Names of those that were drawn.
        num_changed: How many of the source's tensors each LoRA file changed.
    """

    recipe: Recipe
    num_read: int
    fresh: tuple[str, ...]
    num_changed: tuple[int, ...]


def import_weights(
    source_format: SourceFormat,
    path: Path,
    out: Path,
    recipe_path: str | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    loras: Sequence[LoraChoice] = (),
) -> Imported:
    """Makes a checkpoint of published weights; it loads in any layout, as `model` and as `ema`.

    Tensors keep their dtype. At most two of them are in memory.

    Args:
        source_format: What the weights are.
        path: Their folder or file.
        out: The checkpoint's folder; must not exist.
        recipe_path: The recipe of this model; None for the published sizes.
        on_tensor: Called with the parameters written and their number.
        loras: Added to the weights in this order.

    Raises:
        ConfigError: The weights or a LoRA file are damaged, or do not fit the recipe; nothing is written.
        CheckpointError: The disk refuses; nothing is left.
    """
    if out.exists():
        raise ConfigError(f"--out ({out}) exists: choose another folder, or delete it")
    with open_source(source_format, path) as source:
        recipe = choose_recipe(source_format, source, recipe_path)
        if recipe.anchor.num_frames == 0:
            raise ConfigError(
                f"--recipe ({recipe_path}): anchor.num_frames is 0, and a checkpoint of imported weights has the parts"
                " for semantic tokens: set it to 1"
            )
        fit = require_fit(source_format, source.tensors, recipe, str(path))
        saved = SavedState(
            step=0,
            samples_seen=0,
            data_position=0,
            seed=recipe.train.seed,
            optimizer_updates=0,
            average_updates=0,
            layout=dict.fromkeys(("tensor", "context", "pipeline", "data"), 1),
            life=0,
        )
        with open_merged(loras, source.tensors, _targets(source_format, fit)) as merged:
            tensors = merged.tensors
            write_streamed(out, lambda writer: _fill(writer, tensors, fit, recipe, on_tensor), saved, recipe)
    return Imported(recipe, len(fit.read), tuple(fit.fresh), merged.num_changed)


def _targets(source_format: SourceFormat, fit: Fit) -> dict[str, str]:
    """Released name -> stored name, of all that is read."""
    names = ((released_name(source_format, stored), stored) for parts in fit.read.values() for stored in parts)
    return {released: stored for released, stored in names if released is not None}


def _fill(
    writer: CheckpointWriter,
    tensors: Mapping[str, StoredTensor],
    fit: Fit,
    recipe: Recipe,
    on_tensor: Callable[[int, int], None],
) -> None:
    """Adds every parameter, once, under both of the names that a run's checkpoint has for it."""
    shapes = our_shapes(recipe.model)
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        if name in fit.read:
            parts = [tensors[stored].read() for stored in fit.read[name]]
            whole = fuse(parts, recipe.model.num_heads)
            del parts
        else:
            whole = _draw(name, shape, recipe)
        assert whole.shape == shape, (name, whole.shape, shape)
        writer.add([f"{section}.{name}" for section in SECTIONS], whole)
        del whole
        on_tensor(number, len(shapes))


def _draw(name: str, shape: tuple[int, ...], recipe: Recipe) -> Tensor:
    """A part that plain Wan weights lack; types start equal, whatever the recipe says, so that Wan stays unharmed."""
    return torch.zeros(shape) if name == TYPE_EMBEDDING else draw_whole(name, shape, recipe)
