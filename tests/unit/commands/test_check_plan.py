"""`check` as planner: what it prints, what it refuses, and what it assumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sama_mega.commands import check
from sama_mega.commands.check_plan import GpuRequest
from sama_mega.commands.check_scaling import print_scaling
from sama_mega.config import load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.observe.gpu_kinds import load_gpu_kinds
from sama_mega.planner.foot_guns import Cluster


def run(recipe: Path, *overrides: str, gpus: int | None, request: GpuRequest | None = None) -> None:
    assert check.run(recipe, overrides, num_ranks=gpus, as_json=True, request=request) == 0


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_a_recipe_that_fits(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(repo_root / "recipes/wan14b_stage1.yaml", gpus=64)
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert report["ok"] and report["fits"]
    assert report["gpu"] == {"name": "H200", "assumed": True, "memory_gib": 139.8}
    memory = report["memory"]
    assert memory["total_bytes"] == sum(memory["bytes_by_part"].values()) < 139.8 * 2**30
    assert sum(report["step_time"]["parts"].values()) == pytest.approx(report["step_time"]["seconds"])
    assert [one["seconds"] for one in report["layouts"]] == sorted(one["seconds"] for one in report["layouts"])
    assert "H200 with 139.8 GiB, 8 a node, assumed: --gpu NAME names another" in printed
    assert "train.recompute (full) computes again what there is room to keep" in printed


def test_less_recompute_is_advised_where_it_leaves_room(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, request = repo_root / "recipes/wan14b_stage1.yaml", GpuRequest("A100", memory_gib=138)
    run(recipe, gpus=8, request=request)
    printed = capsys.readouterr().out
    # Without recompute 135 GiB: it would fit, but not with the room that suggested layouts leave.
    assert "train.recompute=none takes" not in printed and "train.recompute=selective takes" in printed
    assert " s a step" in printed and "e+03" not in printed


def test_what_does_not_fit_is_refused_with_what_does(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = repo_root / "recipes/wan14b_stage1.yaml"
    with pytest.raises(ConfigError, match=r"does not fit.*the nearest layouts of 8 GPUs that fit: ") as refused:
        run(recipe, "parallel.tensor=1", gpus=8)
    report = last_line(capsys)
    assert not report["ok"] and not report["fits"]
    assert "\n" not in str(refused.value)
    for one in report["layouts"]:
        assert " ".join(one["overrides"]) in str(refused.value)
    run(recipe, "parallel.tensor=1", *report["layouts"][0]["overrides"], gpus=8)


def test_no_layout_of_one_gpu_holds_14b(repo_root: Path) -> None:
    recipe = repo_root / "recipes/wan14b_stage1.yaml"
    with pytest.raises(ConfigError, match=r"no layout of 1 GPU fits; the nearest takes \d GPUs: --gpus \d parallel"):
        run(recipe, "parallel.tensor=1", gpus=1)


def test_an_impossible_layout_is_refused_with_possible_ones(repo_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"must divide the number of ranks \(1\).*that fit: parallel.tensor=1"):
        run(repo_root / "recipes/wan1_3b_stage1.yaml", gpus=1)


def test_a_cpu_recipe_is_held_to_no_gpu(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(repo_root / "recipes/demo_stage0.yaml", gpus=1024)
    report = last_line(capsys)
    assert report["fits"] and report["gpu"] is None and report["step_time"] is None and report["layouts"] == []
    run(repo_root / "recipes/demo_stage0.yaml", gpus=2, request=GpuRequest("A100"))
    assert last_line(capsys)["gpu"] == {"name": "A100", "assumed": False, "memory_gib": 79.2}


def test_endless_memory_is_refused(repo_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpu-memory-gib \(inf\) must be a finite number"):
        run(repo_root / "recipes/wan1_3b_stage1.yaml", gpus=8, request=GpuRequest(memory_gib=float("inf")))


def test_scaling_says_all_that_makes_a_layout_run(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, cluster = (
        load_recipe(repo_root / "recipes/wan14b_stage1.yaml"),
        Cluster(load_gpu_kinds()["H200"], "H200", 8, 139.8),
    )
    rows = print_scaling(recipe, cluster, [8, 64])["rows"]
    printed = capsys.readouterr().out.splitlines()
    for row in rows:
        degrees = "tp {tensor} cp {context} pp {pipeline} dp {data}".format(**row["layout"])
        # The recipe's own is full: without the mode the degrees alone would be another, slower run.
        assert row["recompute"] != "full" and any(degrees in line and row["recompute"] in line for line in printed)


def test_scaling_without_a_gpu_is_refused_before_anything_is_printed(
    repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="--scaling needs a kind of GPU"):
        check.run(repo_root / "recipes/demo_stage1.yaml", [], scaling=True)
    assert capsys.readouterr().out == ""


def test_memory_and_kind_of_ones_own(repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = repo_root / "recipes/wan1_3b_stage1.yaml"
    with pytest.raises(ConfigError, match="needs 22 GiB of every GPU, most of it encoders, and the H200"):
        run(recipe, gpus=8, request=GpuRequest(memory_gib=20))
    with pytest.raises(ConfigError, match=r"--gpu \(H300\) must be in the table of GPUs: use A100, H100, H200, B200"):
        run(recipe, gpus=8, request=GpuRequest("H300"))
    table = tmp_path / "gpus.yaml"
    bundled = (repo_root / "slurm/gpus.yaml").read_text().splitlines()
    at = next(number for number, line in enumerate(bundled) if line.startswith("H200:"))
    table.write_text("H300:\n" + bundled[at + 1].replace("H200", "H300").replace("139.8", "300") + "\n")
    capsys.readouterr()
    run(recipe, gpus=8, request=GpuRequest("H300", table=table))
    assert last_line(capsys)["gpu"] == {"name": "H300", "assumed": False, "memory_gib": 300.0}
