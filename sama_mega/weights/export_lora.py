"""A checkpoint's low-rank changes as a LoRA file for other code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.model.name_map import unfuse
from sama_mega.parameters.names import released_names
from sama_mega.parameters.shapes import low_rank_modules, our_shapes
from sama_mega.weights.formats import TargetFormat
from sama_mega.weights.output import complete_or_absent
from sama_mega.weights.safetensors_writer import PlannedTensor, SafetensorsWriter
from sama_mega.weights.source import SAFETENSORS, Shape
from sama_mega.weights.stored_model import StoredModel


def export_lora(
    stored: StoredModel,
    target_format: TargetFormat,
    out: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the file that diffusers' `load_lora_weights` reads, or the authors' code.

    What multiplies the change, ``alpha / rank``, is part of ``up``: readers that know no alpha take the rank for it.

    Args:
        stored: The checkpoint.
        target_format: Whose names the tensors get.
        out: The file to write; must not exist.
        dtype: Of every tensor.
        on_tensor: Called with the linears written and their number.

    Returns:
        The file.

    Raises:
        ConfigError: The checkpoint holds no low-rank changes, or `out` is no name for a new safetensors file.
        ExportError: The disk refuses; nothing is left.
    """
    if not stored.recipe.lora.rank:
        raise ConfigError(f"{stored.checkpoint} holds no low-rank changes: lora.rank is 0: leave out --lora")
    if out.suffix != SAFETENSORS:
        raise ConfigError(f"--out ({out}) must end in {SAFETENSORS}: a LoRA is one file")
    modules = low_rank_modules(stored.recipe.model, stored.recipe.lora)
    shapes = our_shapes(stored.recipe.model)
    planned = {
        name: PlannedTensor(dtype, shape)
        for module in modules
        for name, shape in _shapes(target_format, module, shapes[f"{module}.weight"], stored.recipe.lora.rank)
    }
    with (
        complete_or_absent(out) as unfinished,
        SafetensorsWriter(unfinished, out.name, planned, shard_bytes=None) as file,
    ):
        for number, module in enumerate(modules, start=1):
            for name, tensor in _tensors(target_format, module, stored):
                file.write(name, tensor)
            on_tensor(number, len(modules))
    return out


def _names(target_format: TargetFormat, module: str) -> list[tuple[str, str]]:
    """Of each part of a linear of ours: the names of ``down`` and of ``up``."""
    names = []
    for released in released_names(f"{module}.weight"):
        if target_format == "sama":
            part, ending = released.removesuffix(".weight"), ".default.weight"
        else:
            part, ending = f"transformer.{diffusers_name(released)}".removesuffix(".weight"), ".weight"
        names.append((f"{part}.lora_A{ending}", f"{part}.lora_B{ending}"))
    return names


def _shapes(target_format: TargetFormat, module: str, shape: Shape, rank: int) -> Iterator[tuple[str, Shape]]:
    names = _names(target_format, module)
    for down, up in names:
        yield down, (rank, shape[1])
        yield up, (shape[0] // len(names), rank)


def _tensors(target_format: TargetFormat, module: str, stored: StoredModel) -> Iterator[tuple[str, Tensor]]:
    """The parts of a fused projection share ``down``; each has its own rows of ``up``."""
    names = _names(target_format, module)
    down, up = stored.low_rank(module)
    rows = unfuse(stored.recipe.lora.factor * up, len(names), stored.recipe.model.num_heads)
    for (down_name, up_name), part in zip(names, rows, strict=True):
        yield down_name, down
        yield up_name, part
