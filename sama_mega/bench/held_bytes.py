"""Counts the memory of tensors that something still holds, and the most that was held at one time."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HeldBytes(TorchDispatchMode):
    """While entered, every storage that an operation makes is counted until nothing refers to it.

    `torch.autograd.graph.saved_tensors_hooks` would miss what selective recompute keeps: that lies in the
    checkpoint's own cache, not in the graph.

    Attributes:
        held: Bytes now.
        peak: The most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """What `known` tensors refer to is not counted."""
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, Any] = {}
        self.held = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See the class."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        self.peak = max(self.peak, self.held)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in self._alive:
            return

        def let_go(_: object) -> None:
            if self._alive.pop(key, None) is not None:
                self.held -= size

        self._alive[key] = weakref.ref(storage, let_go)
        self.held += size
