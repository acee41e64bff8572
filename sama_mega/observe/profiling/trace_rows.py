"""From a trace of torch's profiler to rows: what ran when, and in which named ranges.

A kernel is placed by the call that launched it; what a backward pass runs, by the forward operation that it
differentiates; what is run again for a backward pass, by where it is run again.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sama_mega.observe.profiling.kernel_groups import Group

Event = Mapping[str, Any]
_DEVICE_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_LAUNCH_CATEGORIES = frozenset({"cuda_runtime", "cuda_driver"})
_RANGE, _OPERATION = "user_annotation", "cpu_op"
_STEP = "ProfilerStep#"
_CLOCK_MICROSECONDS = 0.5
"""By so much a call may seem to outlast the one around it: times are rounded."""
_NODE, _ACCUMULATE = "autograd::engine::evaluate_function", "AccumulateGrad"


@dataclass(frozen=True)
class Row:
    """Something that took time; microseconds.

    Attributes:
        name: Of the kernel, or of the operation.
        ranges: Named ranges around it, the innermost last.
        backward: Whether a backward pass started it.
        start: When it began.
        duration: How long it took; on a CPU without what it called.
        stream: Of the device; None on a CPU.
    """

    name: str
    ranges: tuple[str, ...]
    backward: bool
    start: float
    duration: float
    stream: int | None = None


@dataclass(frozen=True)
class TraceRows:
    """The rows of the traced steps.

    Attributes:
        rows: Of the device where there is one, else of the CPU.
        on_device: Whether they are a device's.
        steps: Traced.
        start: Of the first step.
        stop: Of the last, its device work included.
        data_waits: Start and stop of the host's waits for data.
    """

    rows: list[Row]
    on_device: bool
    steps: int
    start: float
    stop: float
    data_waits: list[tuple[float, float]]


@dataclass(eq=False)
class _Call:
    """A host event within those around it."""

    name: str
    category: str
    start: float
    stop: float
    parent: _Call | None
    inside: float = 0.0
    forward: _Call | None = field(default=None)

    @property
    def own(self) -> float:
        return max(0.0, self.stop - self.start - self.inside)


def read_trace(path: Path) -> list[Event]:
    """The events of a `.json.gz` trace."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events: list[Event] = json.load(file)["traceEvents"]
    return events


def rows_of_trace(events: Iterable[Event]) -> TraceRows:
    """Places everything that ran.

    Args:
        events: Chrome trace events.

    Raises:
        ValueError: There is no step in the trace.
    """
    events = list(events)
    threads = {thread: _nest(own) for thread, own in _host_events(events).items()}
    _link_backward(events, threads)
    steps = [call for calls in threads.values() for call in calls if _is_step(call)]
    if not steps:
        raise ValueError("the trace has no step")
    main = next(calls for calls in threads.values() if steps[0] in calls)
    start, stop = min(step.start for step in steps), max(step.stop for step in steps)
    device_rows = list(_device_rows(events, threads))
    if device_rows:
        stop = max(stop, *(row.start + row.duration for row in device_rows))
    # What other threads of a CPU do meanwhile, the main one waits for or does not need: its time is the step's.
    rows = device_rows or list(_host_rows(main))
    waits = [(call.start, call.stop) for call in main if call.name == Group.DATA_WAIT]
    rows = [row for row in rows if start <= row.start < stop]
    return TraceRows(rows, bool(device_rows), len(steps), start, stop, waits)


def _is_step(call: _Call) -> bool:
    return call.category == _RANGE and call.name.startswith(_STEP)


def _host_events(events: Iterable[Event]) -> dict[Any, list[Event]]:
    threads: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in {_RANGE, _OPERATION, *_LAUNCH_CATEGORIES}:
            threads[event["tid"]].append(event)
    return threads


def _nest(events: Sequence[Event]) -> list[_Call]:
    """Calls in the order of their starts, each with the one around it."""
    calls: list[_Call] = []
    around: list[_Call] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        start, stop = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        while around and around[-1].stop <= start:
            around.pop()
        # What outlasts the call that began it is a message under way: no call, and what comes next is not inside it.
        if around and stop > around[-1].stop + _CLOCK_MICROSECONDS:
            continue
        call = _Call(event["name"], event["cat"], start, stop, around[-1] if around else None)
        # Launches are the host's work for the operation that makes them.
        if call.parent is not None and call.category not in _LAUNCH_CATEGORIES:
            call.parent.inside += min(stop, call.parent.stop) - start
        around.append(call)
        calls.append(call)
    return calls


def _link_backward(events: Iterable[Event], threads: Mapping[Any, Sequence[_Call]]) -> None:
    """Tells the calls of a backward pass which forward operation they belong to."""
    ends: dict[Any, dict[str, _Call]] = defaultdict(dict)
    for event in events:
        if event.get("cat") == "fwdbwd" and event["ph"] in ("s", "f"):
            call = _call_at(threads.get(event["tid"], ()), float(event["ts"]))
            if call is not None:
                ends[event["id"]][event["ph"]] = call
    for pair in ends.values():
        if "s" in pair and "f" in pair:
            node = pair["f"].parent
            pair["f"].forward = pair["s"]
            if node is not None and node.name.startswith(_NODE):  # adds up gradients around the operation itself
                node.forward = pair["s"]


def _call_at(calls: Sequence[_Call], moment: float) -> _Call | None:
    """The innermost call at a moment."""
    place = bisect_right(calls, moment, key=lambda call: call.start) - 1
    call = calls[place] if place >= 0 else None
    while call is not None and call.stop < moment:
        call = call.parent
    return call


def _place(call: _Call | None) -> tuple[tuple[str, ...], bool]:
    """The ranges around a call, and whether a backward pass made it.

    A range inside the backward pass is nearer than what is differentiated: recompute, and messages.
    """
    ranges: list[str] = []
    backward = False
    while call is not None:
        if call.category == _RANGE and not _is_step(call):
            ranges.append(call.name)
        node = call.name.startswith(_NODE)
        if call.forward is not None or node:
            backward = True
        if node and call.name.endswith(_ACCUMULATE) and not ranges:
            ranges.append(Group.GRADIENTS)
        if call.forward is not None and not ranges:
            forward_ranges, _ = _place(call.forward)
            return ("backward", *forward_ranges), True
        call = call.parent
    if backward and "backward" not in ranges:
        ranges.append("backward")
    recomputed = "recompute" in ranges
    return tuple(reversed(ranges)), backward and not recomputed


def _device_rows(events: Iterable[Event], threads: Mapping[Any, Sequence[_Call]]) -> Iterable[Row]:
    launches = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in _LAUNCH_CATEGORIES and "correlation" in event.get("args", {})
    }
    for event in events:
        if event.get("cat") not in _DEVICE_CATEGORIES or event.get("ph") != "X":
            continue
        arguments = event.get("args", {})
        launch = launches.get(arguments.get("correlation"))
        call = None if launch is None else _call_at(threads.get(launch["tid"], ()), float(launch["ts"]))
        ranges, backward = _place(call)
        yield Row(
            event["name"],
            ranges,
            backward,
            float(event["ts"]),
            float(event["dur"]),
            arguments.get("stream", 0),
        )


def _host_rows(calls: Sequence[_Call]) -> Iterable[Row]:
    for call in calls:
        if call.category in (_OPERATION, _RANGE):
            ranges, backward = _place(call)
            name = call.name if call.category == _OPERATION else Group.HOST
            yield Row(name, ranges, backward, call.start, call.own)
