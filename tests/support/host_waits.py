"""Finds where the host would wait for the device, on a machine that has none.

A tensor on the CPU does not say whether it would live on a GPU, so every tensor is taken for one that does:

- reading a number, or a shape that depends on numbers, waits;
- a copy to a device waits, unless `to_device` makes it (`parallel.transfer`'s or the kernels'), from pinned memory.

`Tensor.numpy()` is not counted: torch refuses it for a device's tensor, so what is read through it is the host's own.
Out of sight are waits inside torch's operators, and a tensor of the host that meets one of the device; the test on a
GPU sees them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import sama_kernels.transfer
from sama_mega.parallel import transfer

_READS = frozenset(
    {"item", "tolist", "cpu", "is_nonzero", "nonzero", "argwhere", "equal", "allclose", "unique", "masked_select"}
    | {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__"}
)
_COPIES = frozenset({"tensor", "as_tensor", "asarray", "to"})
_INDEXING = frozenset({"__getitem__", "__setitem__"})
_TORCH, _HERE = str(Path(torch.__file__).parent), __file__
_TRANSFERS = (transfer.__file__, sama_kernels.transfer.__file__)


class HostWaits(TorchFunctionMode):
    """Records every call in its block that would wait for the device.

    Attributes:
        places: `file:line function`, in order; the file is the innermost one outside torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, caller = getattr(func, "__name__", ""), _caller()
        copies = name in _COPIES and _names_device(args, kwargs) and caller.f_code.co_filename not in _TRANSFERS
        if copies or name in _READS or (name in _INDEXING and _index_waits(args[1])):
            self.places.append(f"{caller.f_code.co_filename}:{caller.f_lineno} {name}")
        return func(*args, **kwargs)


def _caller() -> FrameType:
    """The innermost frame outside torch and this file."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
        frame = frame.f_back
    assert frame is not None
    return frame


def _names_device(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a call says on which device its result shall live; `x.to(y)` takes y's."""
    return kwargs.get("device") is not None or any(isinstance(one, torch.device | str | Tensor) for one in args[1:])


def _index_waits(index: Any) -> bool:
    """Lists and ranges are copied to the device; of a mask the number of hits must be known."""
    parts = index if isinstance(index, tuple) else (index,)
    masks = any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
    return masks or any(isinstance(part, list | range) for part in parts)
