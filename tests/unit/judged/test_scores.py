"""Means: of criteria, columns, clips and categories; what is missing counts for none of them."""

from __future__ import annotations

import pytest

from sama_mega.judged.scores import ClipScores, clip_columns, table_rows
from sama_mega.judged.suite import Suite, load_suite

VIE, OPENVE, RECO = (load_suite(name) for name in ("vie-bench", "openve-bench", "reco-bench"))


def scored(suite: Suite, name: str, category: str, *values: float) -> ClipScores:
    keys = [criterion.key for criterion in suite.criteria]
    return ClipScores(name, category, dict(zip(keys, values, strict=True)))


def test_a_columns_criteria_are_averaged_before_the_total() -> None:
    clip = scored(RECO, "a", "add", 9, 6, 3, 10, 10, 10, 1, 1, 1)
    assert clip.criteria is not None
    assert clip_columns(RECO, clip.criteria) == {
        "accuracy": 6, "naturalness": 10, "quality": 1, "total": pytest.approx(17 / 3),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "categories", "overall"),
    [(VIE, ("add", "remove"), (9 + 6 + 3 + 2) / 4), (OPENVE, ("local_remove", "local_add"), (6 + 2) / 2)],
)
def test_the_last_row_is_the_mean_of_what_the_suite_says(
    suite: Suite, categories: tuple[str, str], overall: float
) -> None:
    first, second = categories
    clips = [
        scored(suite, "a", first, 9, 9, 9),
        scored(suite, "b", first, 5, 6, 7),
        scored(suite, "c", first, 3, 3, 3),
        scored(suite, "d", second, 1, 2, 3),
        ClipScores("e", second, None, "the answer is not JSON"),
    ]
    *rows, last = table_rows(suite, clips)
    assert [(row.num_clips, row.num_scored) for row in (*rows, last)] == [(3, 3), (2, 1), (5, 4)]
    assert [row.columns["average"] for row in rows] == [6, 2]
    assert last.columns["average"] == pytest.approx(overall)
    assert "mean of clips" in last.label or "mean of categories" in last.label


def test_a_category_without_scores_has_no_figures_and_does_not_count() -> None:
    clips = [scored(OPENVE, "a", "local_add", 4, 4, 4), ClipScores("b", "local_remove", None, "x")]
    removed, added, last = table_rows(OPENVE, clips)
    assert removed.columns == {} and last.columns == added.columns
    assert table_rows(OPENVE, [clips[1]])[-1].columns == {}
