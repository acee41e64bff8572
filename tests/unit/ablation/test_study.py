"""The study, whole, at a size of seconds: every part of the command, a run that fails, and one that goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sama_mega.ablation import conduct as conducting
from sama_mega.ablation.conduct import chain_steps, conduct, steps_done, total_steps
from sama_mega.ablation.study import KINDS, VARIANTS, Chain, Size, Study
from sama_mega.commands import ablation
from sama_mega.config import ConfigError
from tests.support.tiny_recipe import REPOSITORY, TINY, read_rows

CLIPS, STEPS = 2, 4
SIZE = Size("tiny", 4, 4, clips_per_kind=CLIPS, curve_clips_per_kind=1)
CHANGES = {key: value for key, value in TINY.items() if key not in ("checkpoint.init_from", "anchor.local_grid")}
OVERRIDES = tuple(
    f"{key}={json.dumps(value)}"
    for key, value in (CHANGES | {"data.max_frames": 13, "train.steps": STEPS, "checkpoint.every": 2}).items()
)
TWO = (VARIANTS[0], VARIANTS[-1])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The two variants that differ most, finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        study = Study(SIZE, tmp_path_factory.mktemp("ablation"), 1, OVERRIDES, TWO)
        study.save()
        seen: list[int] = []
        conduct(study, 2, seen.append)
        assert seen == sorted(seen) and seen[-1] == total_steps(study)
    return study


def test_every_run_trains_both_stages_and_is_scored(study: Study) -> None:
    for chain in study.chains():
        assert [len(read_rows(chain.run_folder(stage))) for stage in (0, 1)] == [STEPS, STEPS]
        scores = json.loads(chain.scores.read_text())
        assert scores.keys() == {"edits", "zero_shot", "unedited", "restored", "curve"}
        for section in ("edits", "zero_shot", "unedited"):
            assert tuple(scores[section]) == KINDS
            assert {len(row) for rows in scores[section].values() for row in rows.values()} == {CLIPS}
        assert scores["edits"]["style"]["outside_db"] == [None] * CLIPS
        assert set(scores["unedited"]["remove"]["success"]) == {0.0}
        assert [point["step"] for point in scores["curve"]] == [2, 4]
        last = scores["curve"][-1]["edits"]["recolour"]["inside_db"]
        assert last == scores["edits"]["recolour"]["inside_db"][:1], (
            "a smaller suite has the first clips of a larger one"
        )
        assert {task: len(rows["model"]) for task, rows in scores["restored"].items()} == dict.fromkeys(
            ("cube", "speed", "tube"), CLIPS
        )
    tasks = [
        set().union(*(row["losses_by_task"] for row in read_rows(chain.run_folder(0)))) for chain in study.chains()
    ]
    assert tasks[0] == {"none", "edit"} and tasks[1] & {"cube", "speed", "tube"}


def test_what_is_finished_is_not_done_again(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(conducting.subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is left to run"))
    conduct(study, 2, lambda _: None)
    first = study.chains()[0]
    assert steps_done(first, 7) == 7
    unscored = Chain(replace(study, folder=tmp_path), TWO[0], 0)
    shutil.copytree(first.run_folder(0), unscored.run_folder(0))
    assert steps_done(unscored, 7) == STEPS
    assert total_steps(study) == 2 * chain_steps(first) == 2 * (2 * STEPS + conducting.SCORING_STEPS)


def test_the_report_has_tables_scores_and_pictures(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    report = ablation.write_report(study, 1.0)
    assert [group["means"].keys() for group in report["groups"]] == [{variant.name for variant in TWO}] * 3
    assert "| +SA +MA, shifted RoPE |" in (study.folder / ablation.REPORT_FILE).read_text()
    assert json.loads((study.folder / ablation.RESULTS_FILE).read_text()) == json.loads(json.dumps(report))
    scores = json.loads((study.folder / ablation.ALL_SCORES_FILE).read_text())
    runs = {chain.variant.name: json.loads(chain.scores.read_text()) for chain in study.chains()}
    assert scores.pop("unedited") == runs["baseline"].pop("unedited") == runs[TWO[1].name].pop("unedited")
    assert scores == {name: [run] for name, run in runs.items()}
    pytest.importorskip("matplotlib")
    for name in (ablation.LOSSES, ablation.CURVES, ablation.DIFFERENCES):
        with Image.open(study.folder / name) as picture:
            assert picture.width > 600 and len(set(picture.convert("L").tobytes())) > 50


def test_a_run_that_fails_names_its_log_and_ends_the_others(study: Study, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(REPOSITORY)
    broken = replace(study, folder=tmp_path, variants=TWO[:1])
    broken.save()
    shutil.copytree(study.world, tmp_path / "world")
    (tmp_path / "world/raw.jsonl").write_text("no manifest\n")
    with pytest.raises(ConfigError, match=r"baseline seed 0 failed: error: .*raw\.jsonl.*log\.txt"):
        conduct(broken, 2, lambda _: None)
    assert not Chain(broken, TWO[0], 0).scores.exists()


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--size \(huge\) must be one of: cpu, gpu"):
        ablation.run("huge", tmp_path / "out")
    assert not (tmp_path / "out").exists()
