"""Adds LoRA files to weights while they are read: ``W + scale * alpha / rank * up @ down``, in float32.

A merged tensor is computed a few rows at a time, and only when it is read, so that memory holds no more than it would
without LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.weights.lora_file import Change, LoraFile
from sama_mega.weights.lora_names import LoraNames
from sama_mega.weights.source import StoredTensor

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class LoraChoice:
    """What the user wants merged.

    Attributes:
        path: A LoRA's safetensors file.
        scale: Multiplies what it changes.
    """

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class MergedWeights:
    """Weights with LoRA files added.

    Attributes:
        tensors: By stored name; those that change are computed when they are read.
        num_changed: How many tensors each file changes.
    """

    tensors: dict[str, StoredTensor]
    num_changed: tuple[int, ...]


def parse_lora(text: str) -> LoraChoice:
    """Reads ``FILE[:SCALE]``; what follows the last colon is a scale where it is a number and no file is called so.

    Raises:
        ConfigError: The scale is not finite.
    """
    head, _, tail = text.rpartition(":")
    try:
        scale = float(tail)
    except ValueError:
        return LoraChoice(Path(text))
    if not head or Path(text).exists():
        return LoraChoice(Path(text))
    if not math.isfinite(scale):
        raise ConfigError(f"--lora {text}: the scale ({tail}) must be a finite number, like 0.8")
    return LoraChoice(Path(head), scale)


@contextmanager
def open_merged(
    loras: Sequence[LoraChoice], tensors: Mapping[str, StoredTensor], targets: Mapping[str, str]
) -> Iterator[MergedWeights]:
    """Opens LoRA files and adds them to weights, in order; the files stay open until the context ends.

    Args:
        loras: The files.
        tensors: The weights, by stored name.
        targets: Released name -> stored name, of those that may change.

    Raises:
        ConfigError: A file is damaged, or any of its tensors cannot be used.
    """
    names = LoraNames(targets)
    shapes = {target: tensors[stored].shape for target, stored in targets.items()}
    added: dict[str, list[Change]] = {}
    num_changed = []
    with ExitStack() as open_files:
        for lora in loras:
            changes = LoraFile(lora.path, open_files).changes(lora.scale, names, shapes)
            num_changed.append(len(changes))
            for target, change in changes.items():
                added.setdefault(targets[target], []).append(change)
        changed = {
            name: replace(tensors[name], read=_reader(tensors[name], changes)) for name, changes in added.items()
        }
        yield MergedWeights({**tensors, **changed}, tuple(num_changed))


def merge(tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """A new tensor of the same dtype: the sum in float32, rounded once.

    Args:
        tensor: Not mutated.
        changes: Added in this order.
    """
    merged = torch.empty(tensor.shape, dtype=tensor.dtype)
    for start in range(0, len(tensor), _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, len(tensor))
        rows = tensor[start:end].to(torch.float32, copy=True)
        for change in changes:
            rows += change.rows(start, end)
        merged[start:end] = rows
    return merged


def _reader(stored: StoredTensor, changes: Sequence[Change]) -> Callable[[], Tensor]:
    return lambda: merge(stored.read(), changes)
