"""Traces as torch's profiler writes them, of a GPU and of a CPU, become rows in their ranges, and a table."""

from __future__ import annotations

from typing import Any

import pytest

from sama_mega.observe.profiling.kernel_groups import Group
from sama_mega.observe.profiling.kernel_table import GroupTime, Rates, make_table
from sama_mega.observe.profiling.picture import draw_step
from sama_mega.observe.profiling.step_work import Work
from sama_mega.observe.profiling.trace_rows import Row, rows_of_trace

MAIN, ENGINE = 100, 200
RATES = Rates(matmul_flops=1e12, copy_bytes=1e12, peak_flops=2e12)


def host(category: str, name: str, start: float, stop: float, thread: int = MAIN, **arguments: Any) -> dict[str, Any]:
    timed = {"ph": "X", "cat": category, "name": name, "ts": start, "dur": stop - start}
    return timed | {"pid": 1, "tid": thread, "args": arguments}


def annotation(name: str, start: float, stop: float, thread: int = MAIN) -> dict[str, Any]:
    return host("user_annotation", name, start, stop, thread)


def launch(correlation: int, start: float, thread: int = MAIN, category: str = "cuda_runtime") -> dict[str, Any]:
    return host(category, "cudaLaunchKernel", start, start + 1, thread, correlation=correlation)


def kernel(correlation: int, name: str, start: float, stop: float, stream: int = 7) -> dict[str, Any]:
    return host("kernel", name, start, stop, stream, correlation=correlation, stream=stream)


def forward_backward(number: int, forward: tuple[int, float], backward: tuple[int, float]) -> list[dict[str, Any]]:
    common = {"cat": "fwdbwd", "name": "fwdbwd", "id": number, "pid": 1}
    return [
        common | {"ph": "s", "tid": forward[0], "ts": forward[1]},
        common | {"ph": "f", "tid": backward[0], "ts": backward[1], "bp": "e"},
    ]


@pytest.fixture
def on_gpu() -> list[dict[str, Any]]:
    """One step of 100 us: a product, attention, their backward passes on the engine's thread, and a message."""
    return [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "python"}},
        annotation("ProfilerStep#2", 0, 90),
        annotation("data wait", 0, 10),
        annotation("forward", 10, 40),
        annotation("block 3", 12, 38),
        annotation("qkv", 13, 20),
        host("cpu_op", "ColumnProduct", 14, 19),
        launch(1, 16),
        annotation("attention", 21, 30),
        host("cpu_op", "Attention", 22, 29),
        launch(2, 24, category="cuda_driver"),
        annotation("backward", 40, 80),
        host("cpu_op", "autograd::engine::evaluate_function: AttentionBackward", 41, 50, ENGINE),
        host("cpu_op", "AttentionBackward", 42, 49, ENGINE),
        launch(3, 44, ENGINE),
        host("cpu_op", "autograd::engine::evaluate_function: ColumnProductBackward", 51, 70, ENGINE),
        host("cpu_op", "ColumnProductBackward", 52, 69, ENGINE),
        annotation("recompute", 53, 58, ENGINE),
        annotation("block 3", 54, 57, ENGINE),
        annotation("adaln", 55, 56.5, ENGINE),
        launch(4, 55.2, ENGINE),
        annotation("communication: all-gather", 59, 62, ENGINE),
        launch(5, 60, ENGINE),
        launch(6, 64, ENGINE),
        launch(7, 69.5, ENGINE),
        *forward_backward(11, (MAIN, 22), (ENGINE, 42)),
        *forward_backward(12, (MAIN, 14), (ENGINE, 52)),
        kernel(1, "nvjet_tst_128x256", 20, 30),
        kernel(2, "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 30, 40),
        kernel(3, "cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 45, 65),
        kernel(4, "triton_poi_fused_0", 65, 70),
        kernel(5, "ncclDevKernel_AllGather_RING_LL(...)", 60, 75, stream=20),
        kernel(6, "nvjet_tst_64x64", 80, 100),
        kernel(7, "vectorized_elementwise_kernel<add>", 100, 101),
    ]


def test_kernels_are_placed_by_their_launch_and_backward_ones_by_their_forward(on_gpu: list[dict[str, Any]]) -> None:
    traced = rows_of_trace(on_gpu)
    assert (traced.on_device, traced.steps, traced.start, traced.stop) == (True, 1, 0, 101)
    assert traced.data_waits == [(0, 10)]
    placed = [(row.ranges, row.backward) for row in traced.rows]
    assert placed == [
        (("forward", "block 3", "qkv"), False),
        (("forward", "block 3", "attention"), False),
        (("backward", "forward", "block 3", "attention"), True),
        (("backward", "recompute", "block 3", "adaln"), False),
        (("backward", "communication: all-gather"), True),
        (("backward", "forward", "block 3", "qkv"), True),
        (("backward", "forward", "block 3", "qkv"), True),
    ]


def test_table_counts_every_moment_once(on_gpu: list[dict[str, Any]]) -> None:
    work = {Group.GEMM: Work(flops=15e6), Group.NORMS: Work(num_bytes=1e6), Group.ATTENTION_FORWARD: Work(flops=4e6)}
    table = make_table(rows_of_trace(on_gpu), work, RATES)
    groups = {group.group: group for group in table.groups}
    assert table.step_milliseconds == pytest.approx(0.101)
    parts = {name: round(1000 * group.step_milliseconds, 6) for name, group in groups.items()}
    # The message runs 15 us, of which only the last 5 while nothing computes; the device idles during the data wait.
    assert parts == {
        Group.GEMM: 30,
        Group.ATTENTION_BACKWARD: 20,
        Group.IDLE: 20,
        Group.ATTENTION_FORWARD: 10,
        Group.DATA_WAIT: 10,
        Group.NORMS: 5,
        Group.POINTWISE: 1,
        "communication: all-gather": 5,
    }
    assert groups["communication: all-gather"].milliseconds == pytest.approx(0.015)
    gemm = groups[Group.GEMM]
    assert (gemm.calls, gemm.tflops, gemm.roof_share, gemm.peak_share) == pytest.approx((2, 0.5, 0.5, 0.25))
    assert groups[Group.NORMS].gbytes == pytest.approx(200)
    assert groups[Group.NORMS].roof_share == pytest.approx(0.2)
    assert groups[Group.ATTENTION_BACKWARD].roof_share is None
    assert sum(group.share for group in table.groups) == pytest.approx(1)
    assert [kernel.name for kernel in table.kernels][:1] == ["cudnn_generated_fort_native_sdpa_sm90_flash_bprop"]


def test_two_steps_are_averaged() -> None:
    steps = [annotation("ProfilerStep#1", 0, 50), annotation("ProfilerStep#2", 50, 100)]
    kernels = [
        event
        for number in (1, 2)
        for event in (launch(number, 50 * number - 20), kernel(number, "gemm", 50 * number - 10, 50 * number))
    ]
    table = make_table(rows_of_trace([*steps, *kernels]), {}, RATES)
    (gemm,) = (group for group in table.groups if group.group == Group.GEMM)
    assert (gemm.calls, gemm.milliseconds, gemm.share) == pytest.approx((1, 0.01, 0.2))


def test_on_a_cpu_operations_count_without_what_they_call() -> None:
    traced = rows_of_trace(
        [
            annotation("ProfilerStep#0", 0, 100),
            annotation("forward", 10, 60),
            host("cpu_op", "aten::linear", 20, 50),
            host("cpu_op", "aten::addmm", 25, 45),
            annotation("before the steps", -20, -10),
        ]
    )
    durations = {(row.name, row.ranges): row.duration for row in traced.rows}
    assert durations == {
        ("host", ()): 50,
        ("host", ("forward",)): 20,
        ("aten::linear", ("forward",)): 10,
        ("aten::addmm", ("forward",)): 20,
    }
    assert sum(group.share for group in make_table(traced, {}, RATES).groups) == pytest.approx(1)


def test_a_message_under_way_neither_takes_time_twice_nor_holds_what_comes_next() -> None:
    """gloo says how long a message took, from its start in the main thread, whatever that thread does meanwhile."""
    traced = rows_of_trace(
        [
            annotation("ProfilerStep#0", 0, 100),
            annotation("communication: send and receive", 10, 20),
            host("cpu_op", "c10d::send", 11, 19),
            annotation("gloo:send", 12, 70),
            annotation("forward", 30, 60),
            host("cpu_op", "aten::mul", 40, 50),
            annotation("gloo:recv", 65, 120),
            host("cpu_op", "aten::copy_", 10, 90, ENGINE),
        ]
    )
    assert {(row.name, row.ranges): row.duration for row in traced.rows} == {
        ("host", ()): 60,
        ("host", ("communication: send and receive",)): 2,
        ("c10d::send", ("communication: send and receive",)): 8,
        ("host", ("forward",)): 20,
        ("aten::mul", ("forward",)): 10,
    }
    assert sum(group.share for group in make_table(traced, {}, RATES).groups) == pytest.approx(1)


def test_a_kernel_without_a_known_launch_has_no_ranges() -> None:
    (row,) = rows_of_trace([annotation("ProfilerStep#0", 0, 10), kernel(9, "stray", 2, 3)]).rows
    assert row == Row("stray", (), False, 2, 1, 7)


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no step"):
        rows_of_trace([annotation("forward", 0, 1)])


def test_picture_shows_every_group_to_scale(on_gpu: list[dict[str, Any]]) -> None:
    table = make_table(rows_of_trace(on_gpu), {}, RATES)
    picture = draw_step("a <step>", table)
    assert picture.startswith("<svg") and "a &lt;step&gt;" in picture
    assert 'width="255.4" height="64"' in picture and "gemm: 0.03 ms, 29.7 %" in picture
    small = GroupTime("tiny", 1, 0.0001, 0.0001, 0.001)
    assert "tiny" not in draw_step("s", type(table)(0.1, [*table.groups, small], []))
