"""Perturbation plans: what they may change, how often, and that only their arguments decide."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.pretext import (
    PROMPT_TOKENS,
    Motion,
    PretextPlan,
    identity_plan,
    plan_for,
    plan_pretext,
    plan_source_frames,
)
from sama_data.rows import Row

CUBE = Motion(none=0, cube=1, speed=0, tube=0)
SPEED = Motion(none=0, cube=0, speed=1, tube=0)
TUBE = Motion(none=0, cube=0, speed=0, tube=1)


def apply_plan(frames: np.ndarray, plan: PretextPlan) -> np.ndarray:
    """Plain NumPy application, written from the paper's words: [T, H, W, 3] uint8 to [T_out, H, W, 3]."""
    black = np.zeros_like(frames[0])
    picked = np.stack([black if index == -1 else frames[index] for index in plan.frame_indices])
    if plan.tube_order is None:
        return picked
    num_frames, height, width = picked.shape[:3]
    first = (num_frames + 1) // 2
    times = [(0, first), (first, num_frames)]
    lines = [(0, height // 2), (height // 2, 2 * (height // 2))]
    columns = [(0, width // 2), (width // 2, 2 * (width // 2))]
    tubes = list(product(times, lines, columns))
    shuffled = picked.copy()
    for (t, h, w), source in zip(tubes, plan.tube_order, strict=True):
        st_, sh, sw = tubes[source]
        shuffled[t[0] : t[1], h[0] : h[1], w[0] : w[1]] = picked[st_[0] : st_[1], sh[0] : sh[1], sw[0] : sw[1]]
    return shuffled


lengths = st.integers(0, 30).map(lambda k: 4 * k + 1)
ids = st.text(min_size=1, max_size=12)


@given(ids, st.integers(0, 50), st.integers(2, 121))
def test_cube_blackens_one_run_of_whole_frames_but_never_the_first(sample_id, epoch, num_frames):
    plan = plan_pretext(CUBE, 3, sample_id, epoch, num_frames, 64, 64)
    assert plan.task == "cube"
    assert plan.tube_order is None
    black = [place for place, index in enumerate(plan.frame_indices) if index == -1]
    assert len(black) == round(0.3 * num_frames)
    assert black == list(range(black[0], black[-1] + 1))
    assert black[0] >= 1
    assert len(plan.frame_indices) == num_frames
    assert all(index in (-1, place) for place, index in enumerate(plan.frame_indices))


def test_cube_starts_anywhere_from_frame_1_to_the_end():
    starts = Counter(
        plan_pretext(CUBE, 0, f"clip{number}", 0, 17, 64, 64).frame_indices.index(-1) for number in range(1300)
    )
    assert set(starts) == set(range(1, 13))  # 5 of 17 frames are black
    assert min(starts.values()) > 1300 / 12 * 0.6


@pytest.mark.parametrize(
    ("num_frames", "kept"), [(81, 37), (77, 37), (49, 21), (17, 5), (13, 5), (21, 9), (37, 17), (41, 17)]
)
def test_speed_takes_every_other_frame_and_cuts_to_4k_plus_1(num_frames, kept):
    plan = plan_pretext(SPEED, 0, "a", 0, num_frames, 64, 64)
    assert plan.task == "speed"
    assert plan.frame_indices == tuple(range(0, 2 * kept, 2))


@pytest.mark.parametrize("num_frames", [17, 81, 5])
def test_speed_that_keeps_the_length_repeats_its_last_frame(num_frames):
    plan = plan_pretext(replace(SPEED, keep_length=True), 0, "a", 0, num_frames, 64, 64)
    moving = round(num_frames / 2)
    assert len(plan.frame_indices) == num_frames
    assert plan.frame_indices[:moving] == tuple(range(0, 2 * moving, 2))
    assert set(plan.frame_indices[moving:]) == {2 * moving - 2}


@given(ids, st.integers(0, 50), st.integers(2, 40), st.integers(2, 9), st.integers(2, 9))
def test_tubes_swap_within_equal_shapes_and_something_moves(sample_id, epoch, num_frames, height, width):
    plan = plan_pretext(TUBE, 1, sample_id, epoch, num_frames, height, width)
    assert plan.task == "tube"
    assert plan.frame_indices == tuple(range(num_frames))
    assert sorted(plan.tube_order) == list(range(8))
    assert plan.tube_order != tuple(range(8))
    if num_frames % 2:
        assert all((tube < 4) == (source < 4) for tube, source in enumerate(plan.tube_order))
    # No pixel is lost and some move, also where T, H and W are all odd.
    frames = np.arange(num_frames * height * width * 3, dtype=np.int32).reshape(num_frames, height, width, 3)
    shuffled = apply_plan(frames, plan)
    assert not np.array_equal(shuffled, frames)
    np.testing.assert_array_equal(np.sort(shuffled, axis=None), frames.reshape(-1))


def test_tubes_of_both_halves_mix_where_they_are_equal():
    orders = [plan_pretext(TUBE, 1, str(number), 0, 8, 8, 8).tube_order for number in range(50)]
    assert any((order[0] >= 4) for order in orders)


def test_all_tube_permutations_but_one_are_equally_likely():
    orders = [plan_pretext(TUBE, 1, str(number), 0, 5, 8, 8).tube_order for number in range(4800)]
    assert tuple(range(8)) not in orders  # one in 576 of all permutations
    counts = Counter(order[:4] for order in orders)
    assert len(counts) == 24
    assert max(counts.values()) < 2.0 * 200


def test_tasks_come_as_often_as_their_weights_say():
    motion = Motion()
    number = 6000
    counts = Counter(plan_pretext(motion, 5, f"clip{i}", 0, 17, 64, 64).task for i in range(number))
    for task, weight in {"none": 1, "cube": 2, "speed": 3, "tube": 4}.items():
        share = weight / 10
        assert abs(counts[task] - number * share) < 4.5 * (number * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(
    ("num_frames", "tasks"), [(1, {"none"}), (5, {"none", "cube", "tube"}), (9, {"none", "cube", "tube"})]
)
def test_a_task_that_could_change_nothing_is_not_drawn(num_frames, tasks):
    drawn = {plan_pretext(Motion(), 0, f"{i}", 0, num_frames, 64, 64).task for i in range(200)}
    assert drawn == tasks


def test_without_a_possible_task_nothing_is_changed():
    assert plan_pretext(TUBE, 0, "a", 0, 1, 64, 64) == identity_plan(1)
    assert plan_pretext(Motion(0, 0, 0, 0), 0, "a", 0, 17, 64, 64) == identity_plan(17)


def test_each_task_has_the_papers_token():
    tokens = {plan_pretext(Motion(), 0, str(i), 0, 17, 64, 64).prompt_token for i in range(100)}
    assert tokens == {
        "",
        "[Complete the missing regions in the video.]",
        "[Restore the video to normal playback speed.]",
        "[Restore the correct spatio-temporal order of the video segments.]",
    }
    assert PROMPT_TOKENS["none"] == ""


def test_seed_sample_and_epoch_each_change_the_plan():
    def plans(**changed):
        arguments = {"seed": 0, "sample_id": "a", "epoch": 0} | changed
        return [
            plan_pretext(TUBE, arguments["seed"], f"{arguments['sample_id']}{i}", arguments["epoch"], 17, 64, 64)
            for i in range(20)
        ]

    assert plans() == plans()
    for changed in ({"seed": 1}, {"sample_id": "b"}, {"epoch": 1}, {"epoch": 10}):
        assert sum(one == other for one, other in zip(plans(), plans(**changed), strict=True)) < 5


def test_plans_are_the_same_in_another_process_and_for_ever():
    # Python's own hash() differs between processes: a plan must not. The literal values pin it across
    # versions.
    code = (
        "from sama_data.pretext import *; "
        "print([(p.task, p.frame_indices.index(-1) if p.task == 'cube' else p.tube_order) for p in "
        "(plan_pretext(Motion(), 7, f'clips/{i}.mp4', 2, 17, 64, 64) for i in range(6))])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    plans = [plan_pretext(Motion(), 7, f"clips/{i}.mp4", 2, 17, 64, 64) for i in range(6)]
    here = [(p.task, p.frame_indices.index(-1) if p.task == "cube" else p.tube_order) for p in plans]
    assert printed.stdout.strip() == repr(here)
    assert here == PINNED


PINNED = [
    ("tube", (1, 3, 0, 2, 4, 7, 6, 5)),
    ("speed", None),
    ("cube", 7),
    ("tube", (2, 1, 0, 3, 6, 5, 7, 4)),
    ("tube", (3, 0, 1, 2, 4, 7, 6, 5)),
    ("cube", 9),
]


def test_the_kernel_applies_plans_as_the_oracle_does(make_frames):
    torch = pytest.importorskip("torch")
    pretext = pytest.importorskip("sama_kernels.pretext").pretext
    frames = make_frames(17, 22, 31)
    for motion, num_frames in product((CUBE, SPEED, TUBE, replace(SPEED, keep_length=True)), (17, 16)):
        plan = plan_pretext(motion, 0, "a", 0, num_frames, 22, 31)
        expected = apply_plan(frames[:num_frames], plan).transpose(3, 0, 1, 2) / 127.5 - 1.0
        given_frames = torch.from_numpy(frames[:num_frames].copy())
        result = pretext(given_frames, plan.frame_indices, plan.tube_order, torch.float32)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "source", "task"), [("image", "a.png", "edit"), ("video", "a.mp4", "edit"), ("image", None, "none")]
)
def test_edits_and_pictures_are_left_as_they_are(kind, source, task):
    """Clips long enough for every task, so that a plan drawn by mistake would show."""
    row = Row(0, "name", kind, source and Path(source), Path("b"), "text")
    plans = [plan_for(row, 17, 64, 64, Motion(none=0), 0, epoch) for epoch in range(8)]
    assert plans == [PretextPlan(task, tuple(range(17)), None, "")] * 8


def test_a_raw_clip_gets_its_own_plan_of_its_epoch():
    row = Row(5, "name", "video", None, Path("b.mp4"), "text")
    plans = [plan_for(row, 17, 48, 64, TUBE, 3, epoch) for epoch in range(8)]
    assert plans == [plan_pretext(TUBE, 3, "name", epoch, 17, 48, 64) for epoch in range(8)]
    assert len(set(plans)) > 1


@given(
    st.integers(0, 40).map(lambda k: 4 * k + 1),
    st.integers(0, 2**40),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 50.0]),
)
def test_the_sources_length_is_known_without_the_plan(num_frames, seed, epoch, keep_length, speed):
    motion = Motion(speed=speed, keep_length=keep_length)
    given_clip = (motion, seed, "clip", epoch, num_frames, 32, 48)
    assert plan_source_frames(*given_clip) == len(plan_pretext(*given_clip).frame_indices)
