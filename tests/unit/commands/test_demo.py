"""The demo's steps: in step with the recipes, and printed so that they can be run again by hand."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sama_mega.commands import demo
from sama_mega.config import load_recipe
from sama_mega.config.errors import UserError
from sama_mega.inference.held_out import HELD_OUT_SEED

AWKWARD = ("my clips/a b.jsonl", "a, b.jsonl", "a #1.jsonl", "it's {x: [1]}.jsonl", "ümläut 🎬.jsonl", 'a "b".jsonl')


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every command instead of running it."""
    commands: list[list[str]] = []

    def note(command: list[str], *, check: bool, env: dict[str, str]) -> None:
        assert check
        assert env["OMP_NUM_THREADS"] == "1"
        commands.append(command)

    monkeypatch.setattr(subprocess, "run", note)
    return commands


def recipe(stage: int, repo_root: Path, *overrides: str) -> Any:
    return load_recipe(repo_root / f"recipes/demo_stage{stage}.yaml", overrides)


def test_the_demo_and_its_recipes_name_the_same_things(repo_root: Path) -> None:
    recipes = [recipe(stage, repo_root) for stage in (0, 1)]
    assert tuple(Path(each.train.run_folder) for each in recipes) == demo.STAGE_RUNS
    assert tuple(Path(each.data.manifest) for each in recipes) == demo.STAGE_MANIFESTS
    assert Path(recipes[1].checkpoint.init_from) == demo.STAGE_RUNS[0]
    for each in recipes:
        assert each.data.max_frames == demo.FRAMES
        assert each.diffusion.guidance == 1.0  # what the figures in the recipes' headers were measured with
        assert each.train.seed not in (HELD_OUT_SEED, None)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_manifest_of_any_name_is_mixed_in(name: str, tmp_path: Path, repo_root: Path) -> None:
    extra = tmp_path / name
    extra.parent.mkdir(exist_ok=True)
    extra.write_text("")
    for stage in (0, 1):
        (override,) = demo._data(stage, extra)
        data = recipe(stage, repo_root, override).data
        assert [Path(entry.manifest) for entry in data.blend] == [demo.STAGE_MANIFESTS[stage], extra]
        assert data.manifest is None


def test_a_manifest_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--stage1-manifest .* does not exist"):
        demo._data(1, tmp_path / "none.jsonl")


def test_what_is_printed_is_what_runs(
    ran: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    extra = tmp_path / "my clips, all.jsonl"
    extra.write_text("")
    monkeypatch.setattr(demo, "_edit_a_held_out_clip", lambda: demo._run("edit", "make it 'red'"))
    assert demo.main(["--stage1-manifest", str(extra), "train.steps=2"]) == 0
    printed = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [shlex.split(line)[1:] for line in printed] == [command[1:] for command in ran]
    assert {command[0] for command in ran} == {sys.executable}
    names = [command[command.index("sama_mega") + 1] for command in ran]
    assert names == ["data", "data", "train", "evaluate", "train", "evaluate", "edit"]
    assert ran[1][ran[1].index("--seed") + 1] == str(HELD_OUT_SEED)
