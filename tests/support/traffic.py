"""Records what a rank really sends, by replacing the methods of torch's process groups.

Every call of `torch.distributed` ends in one of these methods, whoever holds a reference to whichever function
(megatron-core keeps its own to several), so nothing is missed and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

# By method: what it is called here, and where among its arguments this rank's payload is; None: it has none.
_METHODS: dict[str, tuple[str, int | None]] = {
    "allreduce": ("all-reduce", 0),
    "allreduce_coalesced": ("all-reduce", 0),
    "allgather": ("all-gather", 1),
    "allgather_coalesced": ("all-gather", 1),
    "_allgather_base": ("all-gather", 1),
    "all_gather_single": ("all-gather", 1),
    "all_gather_single_coalesced": ("all-gather", 1),
    "allgather_into_tensor_coalesced": ("all-gather", 1),
    "reduce_scatter": ("reduce-scatter", 1),
    "_reduce_scatter_base": ("reduce-scatter", 1),
    "reduce_scatter_single": ("reduce-scatter", 1),
    "reduce_scatter_single_coalesced": ("reduce-scatter", 1),
    "reduce_scatter_tensor_coalesced": ("reduce-scatter", 1),
    "alltoall": ("all-to-all", 1),
    "alltoall_base": ("all-to-all", 1),
    "all_to_all_single": ("all-to-all", 1),
    "send": ("send", 0),
    "broadcast": ("broadcast", 0),
    "reduce": ("reduce", 0),
    "gather": ("gather", 1),
    "scatter": ("scatter", 1),
    "barrier": ("barrier", None),
    "monitored_barrier": ("barrier", None),
}


@dataclass(frozen=True)
class Message:
    """One call.

    Attributes:
        phase: What the rank was doing.
        operation: The collective, or `send`; receiving is the sender's message.
        group: Name of the ranks it concerns.
        num_bytes: What this rank hands over.
    """

    phase: str
    operation: str
    group: str
    num_bytes: int


class TrafficRecorder:
    """Notes the messages of this rank while `recording` is open.

    Args:
        groups: The process groups by name; messages of a group of one are not sent and not noted.

    Attributes:
        messages: In order. Of coalesced calls, one for every tensor.
    """

    def __init__(self, groups: Mapping[str, dist.ProcessGroup]) -> None:
        self.messages: list[Message] = []
        self._names = {id(group): name for name, group in groups.items() if group.size() > 1}
        self._phases = ["step"]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Replaces the methods for the length of a block."""
        with ExitStack() as patches:
            for method in _METHODS:
                # Which of them exist depends on torch's version.
                if hasattr(dist.ProcessGroup, method):
                    patches.enter_context(patch.object(dist.ProcessGroup, method, self._noting(method)))
            yield

    def during(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its messages noted under a phase; what a backward pass sends keeps its own."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._phases.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._phases.pop()

        return run

    def _noting(self, method: str) -> Callable[..., Any]:
        original: Callable[..., Any] = getattr(dist.ProcessGroup, method)
        operation, place = _METHODS[method]

        def note(group: dist.ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            if group.size() > 1:
                in_backward = torch._C._current_graph_task_id() != -1
                phase = "backward" if in_backward else self._phases[-1]
                name = self._names.get(id(group), f"unknown group {group.group_desc}")
                payloads = [0] if place is None else _num_bytes(args[place])
                self.messages += [Message(phase, operation, name, payload) for payload in payloads]
            return original(group, *args, **kwargs)

        return note


def _num_bytes(given: Any) -> list[int]:
    """Of a tensor, or of each of a list; a list inside a list is one rank's payload in parts."""
    if isinstance(given, Tensor):
        return [given.nbytes]
    return [sum(_num_bytes(one)) for one in given]
