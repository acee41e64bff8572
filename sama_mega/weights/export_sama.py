"""A checkpoint's weights as one safetensors file with the released checkpoint's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from sama_mega.config.errors import ConfigError
from sama_mega.parameters.shapes import our_shapes, released_shapes
from sama_mega.weights.output import complete_or_absent
from sama_mega.weights.safetensors_writer import PlannedTensor, SafetensorsWriter
from sama_mega.weights.stored_model import StoredModel

SUFFIX = ".safetensors"


def export_sama(
    stored: StoredModel, out: Path, dtype: torch.dtype, on_tensor: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Writes the file that the authors' code reads.

    Args:
        stored: The checkpoint.
        out: The file to write; must not exist.
        dtype: Of every tensor; the released file's are bfloat16.
        on_tensor: Called with the parameters written and their number.

    Returns:
        The file.

    Raises:
        ConfigError: `out` is no name for a new safetensors file.
        ExportError: The disk refuses; nothing is left.
    """
    if out.suffix != SUFFIX:
        raise ConfigError(f"--out ({out}) must end in {SUFFIX}: export sama writes one file")
    names = list(our_shapes(stored.recipe.model))
    planned = {name: PlannedTensor(dtype, shape) for name, shape in released_shapes(stored.recipe.model).items()}
    with (
        complete_or_absent(out) as unfinished,
        SafetensorsWriter(unfinished, out.name, planned, shard_bytes=None) as file,
    ):
        for number, name in enumerate(names, start=1):
            for released, tensor in stored.released([name], dtype):
                file.write(released, tensor)
            on_tensor(number, len(names))
    return out
