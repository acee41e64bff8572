"""Suites as files: those that come with the package, and users' own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.judged.question import make_question, question_digest
from sama_mega.judged.suite import SUITES_FOLDER, load_suite, plain_name, suite_names

OWN = """
title: Mine
least: 0
most: 4
overall: categories
criteria:
  - {key: good, column: good, question: "Is it good?"}
categories:
  - {key: add, label: Add}
"""


def test_the_suites_that_come_with_the_package() -> None:
    assert suite_names() == ["openve-bench", "reco-bench", "vie-bench"]
    suites = {name: load_suite(name) for name in suite_names()}
    assert suites["vie-bench"].columns == ("instruction", "preservation", "quality")
    assert suites["reco-bench"].columns == ("accuracy", "naturalness", "quality")
    assert [len(suite.criteria) for suite in suites.values()] == [3, 9, 3]
    assert [suite.most for suite in suites.values()] == [5, 10, 10]
    assert len(suites["openve-bench"].categories) == 7


@pytest.mark.parametrize("name", suite_names())
def test_the_judge_is_told_every_criterion_the_category_and_the_scale(name: str) -> None:
    suite = load_suite(name)
    for category in suite.categories:
        system, user = make_question(suite, category, "  Add a cat. ", ["o1", "o2"], ["e1"])
        told = system["content"]
        assert f'category "{category.label}". {category.hint.strip()}\n' in told
        assert all(f"\n\n{criterion.key}: {criterion.question.strip()}" in told for criterion in suite.criteria)
        assert f"whole number from {suite.least} to {suite.most}" in told
        assert all(rule.strip() in told for rule in suite.rules)
        closing = user["content"][-1]["text"]
        assert "<instruction>\nAdd a cat.\n</instruction>" in closing
        assert re.findall(r'"(\w+)": N', closing) == [criterion.key for criterion in suite.criteria]
        assert f"from {suite.least} to {suite.most}." in closing
        assert [part["image_url"]["url"] for part in user["content"] if "image_url" in part] == ["o1", "o2", "e1"]


def test_the_digest_follows_every_word(tmp_path: Path) -> None:
    digests = set()
    for number, text in enumerate((OWN, OWN.replace("good?", "fine?"), OWN.replace("most: 4", "most: 5"))):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        digests.add(question_digest(load_suite(str(path))))
        assert question_digest(load_suite(str(path))) in digests
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("most: 4", "most: 0"), r"most \(0\) must be above least \(0\)"),
        (("most: 4", "mots: 4"), r"mots \(4\) is not a suite key; the nearest is most"),
        (("title: Mine", ""), "title is missing"),
        (("key: good", "key: Good one"), r"criteria\[0\].key"),
        (("label: Add", "label: Add, also: [ADD]"), r"categories \(.add.\) is named twice"),
        (("overall: categories", "overall: median"), "overall .* must be one of"),
        (("overall: categories", "overall: samples\ntotal: good"), r"total \(.good.\) is a column's name too"),
    ],
)
def test_a_suite_of_ones_own_is_checked(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    assert load_suite(str(path)).categories[0].label == "Add"
    path.write_text(OWN.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_suite(str(path))


def test_an_unknown_suite_is_named_with_the_known_ones() -> None:
    known = "synthetic, openve-bench, reco-bench, vie-bench; or a YAML file like theirs"
    with pytest.raises(ConfigError, match=rf"suite \(vie\) must be one of: {known}"):
        load_suite("vie")
    assert load_suite(str(SUITES_FOLDER / "vie-bench.yaml")) == load_suite("vie-bench")


def test_names_are_compared_without_case_and_signs() -> None:
    assert plain_name(" Style/Tone change ") == "style_tone_change"
