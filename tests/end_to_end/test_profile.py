"""`sama-mega profile` on the tiny recipe: its trace, its table, and what it leaves alone."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from sama_data.errors import DataError
from sama_mega.observe.profiling.kernel_groups import Group
from sama_mega.parallel.launch import launch_ranks
from sama_mega.train import profiled_places
from sama_mega.train import step as train_step
from tests.gpu.profile_step import problems
from tests.support.tiny_recipe import call_main, recipe_path, tiny_overrides, tiny_world

STEPS = 2
SET_BY_PROFILE = ("train.steps", "train.run_folder", "checkpoint.init_from")
STATIC_PLACES = [place[:2] for place in (*profiled_places._OF_STEP, *profiled_places._OF_MODEL)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


def arguments(world: Path, out: Path, **changes: Any) -> list[str]:
    items = tiny_overrides(out, world / "pairs.jsonl", changes={"train.recompute": "selective"} | changes)
    kept = [item for item in items if item.partition("=")[0] not in SET_BY_PROFILE]
    return ["profile", str(recipe_path(1)), *kept, "--steps", str(STEPS), "--warmup", "1", "--out", str(out)]


def timed_events(trace: Path) -> list[dict[str, Any]]:
    with gzip.open(trace, "rt") as file:
        document = json.load(file)
    assert isinstance(document["traceEvents"], list)
    return [event for event in document["traceEvents"] if event["ph"] == "X"]


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["name"] == name and event["cat"] == "user_annotation"]


def is_inside(event: dict[str, Any], outer: dict[str, Any]) -> bool:
    return outer["ts"] <= event["ts"] and event["ts"] + event["dur"] <= outer["ts"] + outer["dur"] + 1e-3


def test_profile_of_one_rank(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [vars(owner)[attribute] for owner, attribute in STATIC_PLACES]
    assert call_main(*arguments(world, tmp_path), "--json") == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out.splitlines()[-1])
    assert "started from random weights" in shown.err
    assert not any(line.startswith(("saves ", "samples ", "tracker ")) for line in shown.err.splitlines())

    # The ranges lie within the steps and within each other.
    events = timed_events(tmp_path / "trace-rank-00000.json.gz")
    steps = [event for event in events if event["name"].startswith("ProfilerStep#")]
    assert len(steps) == STEPS
    for inner, outer in (
        ("data wait", None),
        ("encode", None),
        ("pretext", "encode"),
        ("noise", None),
        ("forward", None),
        ("block 1", "forward"),
        ("adaln", "block 1"),
        ("qkv", "block 1"),
        ("qk_norm_rope", "block 1"),
        ("attention", "block 1"),
        ("cross_attention", "block 1"),
        ("gate_residual", "block 1"),
        ("ffn", "block 1"),
        ("semantic_loss", "forward"),
        ("flow_matching", None),
        ("recompute", "backward"),
        ("optimizer", None),
        ("EMA", None),
        ("communication: all-reduce", None),
    ):
        for step in steps:
            ranges = [event for event in named(events, inner) if is_inside(event, step)]
            assert ranges, inner
            if outer is not None:
                assert any(is_inside(one, around) for one in ranges for around in named(events, outer)), (inner, outer)

    # The table's parts add up to the step, and hold our operations.
    groups = {group["group"]: group for group in report["groups"]}
    assert sum(group["share"] for group in groups.values()) == pytest.approx(1, abs=1e-6)
    for group in (Group.GEMM, Group.ATTENTION_FORWARD, Group.ATTENTION_BACKWARD):
        assert groups[group]["tflops"] > 0 and groups[group]["roof_share"] > 0, group
    for group in (Group.NORMS, Group.ROPE, Group.LOSS, Group.NOISE, Group.OPTIMIZER, Group.AVERAGE):
        assert groups[group]["gbytes"] > 0, group
    assert {Group.ENCODERS, Group.DATA_WAIT, Group.COPIES, "communication: all-reduce"} <= groups.keys()
    assert groups.get(Group.OTHER, {"share": 0})["share"] < 0.15
    assert 0 < len(report["kernels"]) <= 20 and report["step_milliseconds"] > 0 and report["tokens_per_second"] > 0
    # What the same profile lacks on a GPU, a CPU's lacks because it is one.
    assert problems(report) == ["times of operations on the CPU, without what they call", "no memory snapshot"]
    assert json.loads((tmp_path / "profile.json").read_text()) == report
    assert "| gemm |" in (tmp_path / "profile.md").read_text()
    assert ElementTree.parse(tmp_path / "step.svg").getroot().tag.endswith("svg")

    # Nothing of the run is kept, and nothing stands in for a function any more.
    run = tmp_path / "run"
    assert not (run / "metrics.jsonl").exists() and not list((run / "checkpoints").iterdir())
    assert [vars(owner)[attribute] for owner, attribute in STATIC_PLACES] == before


def fail_at_the_clip(*arguments: Any) -> None:
    raise DataError("clip 7: cannot be decoded")


def fail_at_the_disk(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "fault", "words"),
    [
        (train_step, "run_forward_backward", fail_at_the_clip, "error: clip 7: cannot be decoded"),
        (torch.profiler.profile, "export_chrome_trace", fail_at_the_disk, "cannot be written: No space left on device"),
    ],
)
def test_a_run_that_fails_ends_in_one_line_and_leaves_nothing_in_place(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    owner: Any,
    name: str,
    fault: Callable[..., Any],
    words: str,
) -> None:
    before = [vars(one)[attribute] for one, attribute in STATIC_PLACES]
    monkeypatch.setattr(owner, name, fault)
    assert call_main(*arguments(world, tmp_path), "--steps", "1") == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and words in last
    assert [vars(one)[attribute] for one, attribute in STATIC_PLACES] == before
    assert not torch.autograd._profiler_enabled() and not list(tmp_path.glob("*.json.gz"))


def test_each_rank_of_several_writes_its_trace(world: Path, tmp_path: Path) -> None:
    assert launch_ranks(2, [*arguments(world, tmp_path, **{"parallel.tensor": 2}), "--steps", "1"]) == 0
    for rank in range(2):
        events = timed_events(tmp_path / f"trace-rank-{rank:05d}.json.gz")
        (backward, *_) = named(events, "backward")
        assert any(is_inside(event, backward) for event in named(events, "communication: all-gather"))
    report = json.loads((tmp_path / "profile.json").read_text())
    groups = {group["group"] for group in report["groups"]}
    assert {"communication: all-gather", "communication: reduce-scatter", "communication: broadcast"} <= groups
    assert sum(group["share"] for group in report["groups"]) == pytest.approx(1, abs=1e-6)
    assert report["layout"].startswith("2 ranks")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.steps=9"], "train.steps=9 has no effect on a profile"),
        (["checkpoint.init_from=here"], "its weights are random"),
        (["--memory"], "--memory needs a CUDA device"),
        (["--nvtx"], "--nvtx needs a CUDA device"),
        (["--ncu", "norm_forward"], "--ncu "),
        (["--out", "/proc/nowhere"], "--out (/proc/nowhere) cannot be written"),
    ],
)
def test_wrong_input_is_one_line(
    world: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_main(*arguments(world, tmp_path), *more) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err


@pytest.mark.skipif(shutil.which("ncu") is not None, reason="ncu is installed")
def test_without_ncu_it_says_what_to_install(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(*arguments(world, tmp_path), "--ncu", "norm_forward") == 2
    assert "nsight-compute" in capsys.readouterr().err
