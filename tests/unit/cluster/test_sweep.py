"""Sweeps: how values are told apart, multiplied and named."""

from __future__ import annotations

import pytest

from sama_mega.cluster.sweep import combinations, element_name, parse_sweep
from sama_mega.config.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2", ("1", "2")),
        ("a.b=1", ("1",)),
        ("a.b=[1, 2],[3]", ("[1, 2]", "[3]")),
        ("a.b={x: [1,2]},null", ("{x: [1,2]}", "null")),
        ("a.b='1,2', \"3,]\"", ("'1,2'", '"3,]"')),
        ("a.b=x=1,y=2", ("x=1", "y=2")),
    ],
)
def test_values_are_split_outside_brackets_and_quotes(text: str, values: tuple[str, ...]) -> None:
    sweep = parse_sweep(text)
    assert (sweep.key, sweep.values) == ("a.b", values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.b", "must be written section.key=value,value"),
        ("=1,2", "must be written section.key=value,value"),
        ("a.b=", "a value is empty"),
        ("a.b=1,,2", "a value is empty"),
        ("a.b=[1,2", "is not closed"),
        ("a.b=1],2", "is not closed"),
        ("a.b='1", "is not closed"),
        ("a.b=1,2, 1", "1 is listed twice"),
        ("train.run_folder=a,b", "cannot be swept"),
    ],
)
def test_refused_sweeps(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match="--sweep ") as caught:
        parse_sweep(text)
    assert words in str(caught.value)


def test_several_sweeps_are_multiplied() -> None:
    product = combinations([parse_sweep("a.b=1,2"), parse_sweep("c.d=x,y")])
    assert product == [("a.b=1", "c.d=x"), ("a.b=1", "c.d=y"), ("a.b=2", "c.d=x"), ("a.b=2", "c.d=y")]
    assert combinations([]) == [()]
    with pytest.raises(ConfigError, match=r"a.b is given twice"):
        combinations([parse_sweep("a.b=1,2"), parse_sweep("a.b=3")])


def test_names_of_elements_are_plain_and_short() -> None:
    assert element_name(3, ["optimizer.learning_rate=1e-4", "train.seed=2"]) == "003-learning_rate=1e-4,seed=2"
    assert element_name(0, ["data.manifest='/a b/$c.jsonl'"]) == "000-manifest=_a_b_c.jsonl_"
    assert len(element_name(12, [f"a.b={'x' * 300}"])) == 104
