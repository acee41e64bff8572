"""How the steps' time divides among the groups of operations, and how near each comes to what the device can do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from sama_mega.observe.profiling.kernel_groups import Group, group_of
from sama_mega.observe.profiling.step_work import Work
from sama_mega.observe.profiling.trace_rows import Row, TraceRows

TOP_KERNELS = 20
_DATA_WAIT_ROW, _IDLE_ROW = 3, 4


@dataclass(frozen=True)
class Rates:
    """What a device can do, a second.

    Attributes:
        matmul_flops: Of one large product, measured.
        copy_bytes: Read and written by one large copy, measured.
        peak_flops: By the data sheet; None where it is not known.
    """

    matmul_flops: float
    copy_bytes: float
    peak_flops: float | None = None


@dataclass(frozen=True)
class GroupTime:
    """One group in an average step.

    Attributes:
        group: Its name.
        calls: Kernels, or operations on a CPU.
        milliseconds: Of all of them, added up.
        step_milliseconds: Of the step, counting each moment once: messages and copies only while nothing computes.
        share: Of the step.
        tflops: Achieved, 10^12 operations a second.
        roof_share: Of the measured matmul or copy rate; None where the work is not known.
        peak_share: Of the data sheet's operations.
        gbytes: Moved, 10^9 bytes a second.
    """

    group: str
    calls: float
    milliseconds: float
    step_milliseconds: float
    share: float
    tflops: float | None = None
    roof_share: float | None = None
    peak_share: float | None = None
    gbytes: float | None = None


@dataclass(frozen=True)
class KernelTime:
    """One kernel in an average step."""

    name: str
    group: str
    calls: float
    milliseconds: float
    share: float


@dataclass(frozen=True)
class StepTable:
    """Where an average step's time goes.

    Attributes:
        step_milliseconds: Of the step.
        groups: The largest part of the step first; their parts add up to it.
        kernels: The longest ones.
    """

    step_milliseconds: float
    groups: list[GroupTime]
    kernels: list[KernelTime]


def make_table(traced: TraceRows, work: Mapping[str, Work], rates: Rates) -> StepTable:
    """Groups what was traced.

    Args:
        traced: The rows of some steps.
        work: Of one step, by group.
        rates: Of the device.
    """
    grouped = [(group_of(row.name, row.ranges, row.backward), row) for row in traced.rows]
    step = (traced.stop - traced.start) / traced.steps / 1000
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for group, row in grouped:
        total[group] += row.duration
        calls[group] += row.duration > 0 or traced.on_device
    parts = _parts_of_step(grouped, traced)
    groups = [
        _with_rates(
            group,
            calls[group] / traced.steps,
            total[group] / traced.steps / 1000,
            parts[group] / traced.steps / 1000,
            step,
            work.get(group),
            rates,
        )
        for group in parts
    ]
    groups.sort(key=attrgetter("step_milliseconds"), reverse=True)
    return StepTable(step, groups, _top_kernels(grouped, traced.steps, step))


def _with_rates(
    group: str, calls: float, total: float, part: float, step: float, work: Work | None, rates: Rates
) -> GroupTime:
    tflops = roof = peak = gbytes = None
    seconds = total / 1000
    if work is not None and work.flops is not None and seconds:
        achieved = work.flops / seconds
        tflops, roof = achieved / 1e12, achieved / rates.matmul_flops
        peak = None if rates.peak_flops is None else achieved / rates.peak_flops
    elif work is not None and work.num_bytes is not None and seconds:
        achieved = work.num_bytes / seconds
        gbytes, roof = achieved / 1e9, achieved / rates.copy_bytes
    return GroupTime(group, calls, total, part, part / step, tflops, roof, peak, gbytes)


def _parts_of_step(grouped: Sequence[tuple[str, Row]], traced: TraceRows) -> dict[str, float]:
    """Microseconds of the steps that belong to each group; they add up to all of it."""
    if traced.on_device:
        waits = [(_DATA_WAIT_ROW, start, stop, Group.DATA_WAIT) for start, stop in traced.data_waits]
        kernels = [(_precedence(group), row.start, row.start + row.duration, group) for group, row in grouped]
        return _count_moments_once([*kernels, *waits], traced.start, traced.stop)
    parts: dict[str, float] = defaultdict(float)
    for group, row in grouped:
        parts[group] += row.duration
    parts[Group.HOST] += max(0.0, traced.stop - traced.start - sum(parts.values()))
    return dict(parts)


def _precedence(group: str) -> int:
    if group.startswith(Group.COMMUNICATION):
        return 2
    return 1 if group == Group.COPIES else 0


def _count_moments_once(
    intervals: Iterable[tuple[int, float, float, str]], start: float, stop: float
) -> dict[str, float]:
    """Gives every moment to the interval of the lowest precedence, of several to the one that began first."""
    everything = [*intervals, (_IDLE_ROW, start, stop, Group.IDLE)]
    changes = sorted(
        change
        for index, (_, begins, ends, _) in enumerate(everything)
        if ends > begins
        for change in ((begins, 1, index), (ends, 0, index))
    )
    parts: dict[str, float] = defaultdict(float)
    running: set[int] = set()
    before = start
    for moment, begins, index in changes:
        at = min(max(moment, start), stop)
        if running and at > before:
            parts[everything[min(running, key=lambda one: everything[one][:2])][3]] += at - before
        before = at
        if begins:
            running.add(index)
        else:
            running.discard(index)
    return dict(parts)


def _top_kernels(grouped: Iterable[tuple[str, Row]], steps: int, step: float) -> list[KernelTime]:
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for group, row in grouped:
        if row.name != Group.HOST:
            durations[row.name, group].append(row.duration)
    longest = sorted(durations.items(), key=lambda item: sum(item[1]), reverse=True)[:TOP_KERNELS]
    return [
        KernelTime(name, group, len(each) / steps, sum(each) / steps / 1000, sum(each) / steps / 1000 / step)
        for (name, group), each in longest
    ]
