"""Reads one LoRA file and holds it against the weights that it changes: every tensor once, none left over."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.weights_folder import read_json
from sama_mega.weights.fit import READABLE_DTYPES
from sama_mega.weights.formats import list_problems
from sama_mega.weights.lora_names import LoraNames, Role
from sama_mega.weights.source import SAFETENSORS, Shape, StoredTensor, open_safetensors

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIFFUSERS_METADATA, _DIFFUSERS_PREFIX = "lora_adapter_metadata", "transformer."
_UNSUPPORTED = ("use_dora", "use_rslora")


@dataclass(frozen=True)
class Change:
    """What one LoRA file adds to one tensor.

    Attributes:
        up: ``[out, rank]``, or the whole change where there is no ``down``.
        down: ``[rank, in]``; of a convolution ``[rank, in, ...]``.
        factor: ``scale * alpha / rank``, or ``scale``.
    """

    up: StoredTensor
    down: StoredTensor | None
    factor: float

    def rows(self, start: int, end: int) -> Tensor:
        """Rows ``start`` to ``end`` of the change, float32."""
        up = self.up.read()[start:end].to(torch.float32)
        if self.down is None:
            return self.factor * up
        down = self.down.read().to(torch.float32)
        return self.factor * (up.flatten(1) @ down.flatten(1)).view(len(up), *down.shape[1:])


@dataclass(frozen=True)
class _Group:
    """The tensors of a file that change one target: role -> name in the file; and what the file calls the module."""

    module: str
    names: dict[Role, str]

    @property
    def is_complete(self) -> bool:
        pair = {"down", "up"}
        return self.names.keys() - {"alpha"} == pair or self.names.keys() == {"diff"}


class LoraFile:
    """An open LoRA file.

    Args:
        path: A safetensors file.
        open_files: Keeps it open.

    Raises:
        ConfigError: It cannot be read, or its trainer says that it is no plain LoRA.
    """

    def __init__(self, path: Path, open_files: ExitStack) -> None:
        if path.suffix != SAFETENSORS:
            raise ConfigError(f"--lora {path} must end in {SAFETENSORS}: other files can run code and are not read")
        if not path.is_file():
            raise ConfigError(f"--lora {path} is no file: name the LoRA's {SAFETENSORS} file")
        self.path = path
        self._tensors, metadata = open_safetensors(path, open_files)
        self._settings = _settings(path, metadata)

    def changes(self, scale: float, names: LoraNames, shapes: Mapping[str, Shape]) -> dict[str, Change]:
        """Plans what is added to the weights, strictly.

        Args:
            scale: Multiplies all of it.
            names: Finds the targets.
            shapes: Of the targets, by released name.

        Returns:
            Released name -> what is added.

        Raises:
            ConfigError: A tensor has no target, no partner, another shape or another dtype; all of them, a few by name.
        """
        groups, problems = self._group(names)
        problems["wrong dtype"] = [
            f"{name}: {stored.dtype}, must be {' or '.join(READABLE_DTYPES)}"
            for name, stored in self._tensors.items()
            if stored.dtype not in READABLE_DTYPES and not name.endswith(".alpha")
        ]
        problems["without its partner"] = [
            name for group in groups.values() if not group.is_complete for name in group.names.values()
        ]
        problems["wrong shape"] = [
            problem
            for target, group in groups.items()
            if group.is_complete
            for problem in self._misshapen(group, shapes[target])
        ]
        listed = list_problems(problems) if self._tensors else "it holds no tensors"
        if listed:
            raise ConfigError(f"--lora {self.path} does not fit the model: {listed}")
        return {target: self._change(group, scale) for target, group in groups.items()}

    def _group(self, names: LoraNames) -> tuple[dict[str, _Group], dict[str, list[str]]]:
        groups: dict[str, _Group] = {}
        unknown, twice = [], []
        for name in sorted(self._tensors):
            part = names.find(name)
            if part is None:
                unknown.append(name)
                continue
            group = groups.setdefault(part.target, _Group(part.module, {}))
            if part.role in group.names:
                twice.append(f"{name} beside {group.names[part.role]}")
            group.names[part.role] = name
        return groups, {"unknown": unknown, "twice": twice}

    def _misshapen(self, group: _Group, shape: Shape) -> list[str]:
        """Messages about one target's tensors; the rank is what `down` and `up` must agree on."""
        stored = {role: self._tensors[name].shape for role, name in group.names.items()}
        rank = stored["down"][0] if stored.get("down") else 1
        wanted: dict[Role, Shape] = {
            "diff": shape,
            "down": (rank, *shape[1:]),
            "up": (shape[0], rank, *(1 for _ in shape[2:])),
        }
        wrong = [
            f"{group.names[role]}: {list(found)}, must be {list(wanted[role])}"
            for role, found in stored.items()
            if role != "alpha" and (found != wanted[role] or rank == 0)
        ]
        if "alpha" in stored and math.prod(stored["alpha"]) != 1:
            wrong.append(f"{group.names['alpha']}: {list(stored['alpha'])}, must be one number")
        return wrong

    def _change(self, group: _Group, scale: float) -> Change:
        if "diff" in group.names:
            return Change(self._tensors[group.names["diff"]], None, scale)
        down = self._tensors[group.names["down"]]
        rank = down.shape[0]
        return Change(self._tensors[group.names["up"]], down, scale * self._alpha(group, rank) / rank)

    def _alpha(self, group: _Group, rank: int) -> float:
        """The pair's own, else what the trainer says, else the rank: what trainers mean who say nothing."""
        if "alpha" in group.names:
            stated: Any = float(self._tensors[group.names["alpha"]].read())
        else:
            stated = self._settings.get("lora_alpha", rank)
            for pattern, alpha in (self._settings.get("alpha_pattern") or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", group.module):
                    stated = alpha
                    break
        if not isinstance(stated, (int, float)) or not math.isfinite(stated):
            raise ConfigError(f"--lora {self.path}: alpha of {group.module} is {stated!r}: it must be a finite number")
        return stated


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the trainer said about the pairs: diffusers in the file, PEFT beside it."""
    settings: dict[str, Any] = {}
    beside = path.parent / _PEFT_CONFIG
    if _DIFFUSERS_METADATA in metadata:
        try:
            stated = json.loads(metadata[_DIFFUSERS_METADATA])
            settings = {key.removeprefix(_DIFFUSERS_PREFIX): value for key, value in stated.items()}
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"--lora {path}: its {_DIFFUSERS_METADATA} is no JSON object: fetch it again") from error
    elif path.name == _PEFT_FILE and beside.is_file():
        settings = read_json("--lora", beside)
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise ConfigError(f"--lora {path} was trained with {key}, which cannot be merged: give a plain LoRA")
    return settings
