"""From every clip's scores to tables and pictures: made-up scores of known differences."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sama_mega.ablation.measures import GROUPS, Comparison, compare
from sama_mega.ablation.study import VARIANTS
from sama_mega.ablation.tables import READING, markdown
from tests.support.tiny_recipe import REPOSITORY

CLIPS = 30
LABELS = {"baseline": "base", "better": "better", "same": "same"}


def rows(rng: np.random.Generator, gain: float, style: bool) -> dict[str, list[float | None]]:
    clip = 20 + 4 * np.sin(np.arange(CLIPS))
    noise = rng.normal(0, 0.1, (3, CLIPS))
    return {
        "success": [float(index % 3 != 0 or gain > 0) for index in range(CLIPS)],
        "inside_db": (clip + gain + noise[0]).tolist(),
        "outside_db": [None] * CLIPS if style else (clip + noise[1]).tolist(),
        "temporal_db": (clip - gain + noise[2]).tolist(),
    }


def scores(seed: int, gain: float) -> dict[str, Any]:
    rng = np.random.default_rng([seed, int(10 * gain)])
    edits = {kind: rows(rng, gain, kind == "style") for kind in ("recolour", "style")}
    restored = {
        task: {"model": [20 + gain] * CLIPS, "black": [6.0] * CLIPS, "nearest visible frame": [19.0] * CLIPS}
        for task in ("cube", "speed", "tube")
    }
    unedited = {kind: rows(rng, -8.0, kind == "style") for kind in edits}
    return {"edits": edits, "zero_shot": edits, "restored": restored, "unedited": unedited, "curve": []}


@pytest.fixture(scope="module")
def comparisons() -> list[Comparison]:
    gains = {"baseline": 0.0, "better": 1.0, "same": 0.0}
    results = {
        name: [scores(seed + 10 * number, gain) for seed in range(3)]
        for number, (name, gain) in enumerate(gains.items())
    }
    return compare(results, [("same", "better"), ("same", "not run")], resamples=500)


def test_differences_are_those_that_were_put_in(comparisons: list[Comparison]) -> None:
    edits, zero_shot, restored = comparisons
    pairs = [("better", "baseline"), ("same", "baseline"), ("same", "better")]
    assert [(one.name, one.against) for one in edits.differences] == pairs
    success, inside, outside, temporal = edits.differences[0].intervals
    assert success.mean == pytest.approx(100 / 3)
    assert 0.95 < inside.low < 1.0 < inside.high < 1.05 and inside.excludes_zero and inside.seeds_agree
    assert abs(outside.mean) < 0.05 and -1.05 < temporal.mean < -0.95
    assert not any(one.excludes_zero and one.seeds_agree for one in zero_shot.differences[1].intervals)
    assert [one.mean for one in restored.differences[0].intervals] == pytest.approx([1, 1, 1])
    assert [one.mean for one in restored.differences[2].intervals] == pytest.approx([-1, -1, -1])
    assert restored.reference == [19, 19, 19]
    assert edits.reference[1] < 13


def test_tables_say_what_is_clear_and_what_is_not(comparisons: list[Comparison]) -> None:
    text = markdown(comparisons, LABELS)
    assert text.startswith(READING)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [group.title for group in GROUPS]
    lines = text.splitlines()
    assert "| difference | success, % | inside, dB | outside, dB | temporal, dB |" in lines
    better = next(line for line in lines if line.startswith("| better against base | "))
    assert better.startswith("| better against base | **+33.3** [+") and "**+1.0" in better and "**-1.0" in better
    same = next(line for line in lines if line.startswith("| same against base | "))
    assert "**" not in same and "+0.0 [+0.0, +0.0]" in same
    widths = [line.count("|") for line in lines if line.startswith("|")]
    assert set(widths) == {5, 6}


def test_json_has_every_number(comparisons: list[Comparison]) -> None:
    values = comparisons[0].as_json()
    assert len(values["means"]["better"]["inside"]["by_seed"]) == 3
    better = values["differences"][0]
    assert (better["variant"], better["against"]) == ("better", "baseline")
    assert better["inside"]["low"] < better["inside"]["mean"] < better["inside"]["high"]


def test_variants_of_other_clips_are_refused() -> None:
    short = scores(0, 0.0)
    short["edits"] = {"recolour": short["edits"]["recolour"]}
    with pytest.raises(ValueError, match="same clips"):
        compare({"baseline": [scores(0, 0.0)], "short": [short]})


def test_the_documented_tables_are_those_of_the_documented_scores() -> None:
    text = (REPOSITORY / "docs/evidence.md").read_text(encoding="utf-8")
    [file] = (REPOSITORY / "docs/evidence").glob("*.json")
    assert f"(evidence/{file.name})" in text
    scores = json.loads(file.read_text())
    unedited = scores.pop("unedited")
    assert list(scores) == [variant.name for variant in VARIANTS]
    results = {name: [run | {"unedited": unedited} for run in seeds] for name, seeds in scores.items()}
    tables = markdown(compare(results), {variant.name: variant.label for variant in VARIANTS})
    missing = [line for line in tables.splitlines() if line.startswith("|") and line not in text]
    assert not missing
