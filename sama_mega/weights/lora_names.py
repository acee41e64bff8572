"""What LoRA files call the tensors that they change, against the released checkpoint's names.

Trainers name modules as diffusers or as Wan does, with or without the path of the model in front; kohya's write
underscores for dots. All of these are looked up in one table, whatever the format of the weights to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sama_mega.model.diffusers_names import diffusers_name

Role = Literal["down", "up", "alpha", "diff"]

_MODEL_PATHS = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.", "pipe.dit.")
_UNDERSCORED = "lora_unet_"
# The name after lora_A or lora_B is that of PEFT's adapter.
_ENDINGS: tuple[tuple[re.Pattern[str], Role, str], ...] = (
    (re.compile(r"\.(lora_A(\.[^.]+)?|lora_down)\.weight$"), "down", "weight"),
    (re.compile(r"\.(lora_B(\.[^.]+)?|lora_up)\.weight$"), "up", "weight"),
    (re.compile(r"\.alpha$"), "alpha", "weight"),
    (re.compile(r"\.diff$"), "diff", "weight"),
    (re.compile(r"\.diff_b$"), "diff", "bias"),
)


@dataclass(frozen=True)
class LoraPart:
    """What one tensor of a LoRA file is for.

    Attributes:
        target: Released name of the tensor that it changes.
        role: ``down`` and ``up`` are the factors of a low-rank change and ``alpha`` its strength; ``diff`` is a change
            of the target's own shape.
        module: As the file says it, without the model's path.
    """

    target: str
    role: Role
    module: str


class LoraNames:
    """Finds the targets of LoRA tensors.

    Args:
        released: Names of all tensors that can be changed.
    """

    def __init__(self, released: Iterable[str]) -> None:
        self._targets = set(released)
        self._modules: dict[str, str] = {}
        for name in self._targets:
            module, _, kind = name.rpartition(".")
            if kind in ("weight", "bias"):
                theirs = (diffusers_name(name) or name).rpartition(".")[0]
                for spelling in (module, theirs, _underscored(module), _underscored(theirs)):
                    assert self._modules.setdefault(spelling, module) == module, spelling

    def find(self, name: str) -> LoraPart | None:
        """The meaning of a LoRA file's tensor; None for a name that has none."""
        for pattern, role, kind in _ENDINGS:
            ending = pattern.search(name)
            if ending:
                stated = _without_path(name[: ending.start()])
                module = self._modules.get(stated)
                target = f"{module}.{kind}"
                return LoraPart(target, role, stated) if target in self._targets else None
        return None


def _underscored(module: str) -> str:
    return _UNDERSCORED + module.replace(".", "_")


def _without_path(module: str) -> str:
    for path in _MODEL_PATHS:
        module = module.removeprefix(path)
    return module
