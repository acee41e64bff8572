"""YAML of recipes: what scalars mean, and what is refused."""

from __future__ import annotations

import pytest

from sama_mega.config import ConfigError
from sama_mega.config.strict_yaml import dump, parse_document, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("2E+3", 2000.0),
        ("-1.5e3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        # What YAML 1.1 reads as something else:
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-11-20", "2026-11-20"),
        ("none", "none"),
        ("'1e-5'", "1e-5"),
        ("[a, 1]", ["a", 1]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    parsed = parse_value(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    "text", ["ex #1", "#bad", "team A #7", "'ex' #1", "[a, b #c\n]", "[a] #", "| #1\n a", "|\n a\n#1", " # "]
)
def test_no_part_of_an_override_is_left_out_as_a_comment(text: str) -> None:
    with pytest.raises(ConfigError, match="here: its '#' begins a comment in YAML"):
        parse_value(text, "here")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("run#1", "run#1"),
        ('"ex #1"', "ex #1"),
        ("'#bad'", "#bad"),
        ("['a #1', b#]", ["a #1", "b#"]),
        ("|-\n a #1", "a #1"),
    ],
)
def test_a_hash_within_text_is_text(text: str, value: object) -> None:
    assert parse_value(text, "here") == value


@pytest.mark.parametrize("value", ["1e-5", "no", "010", "", "null", "[Video edit]", "a: b", "1_000", "true", "ü"])
def test_dumped_text_comes_back_as_text(value: str) -> None:
    assert parse_document(dump({"section": {"key": value}}), "here").values == {"section": {"key": value}}


@pytest.mark.parametrize("value", [1e-5, 1e16, 3.0, 0, -4, True, None, [[64, 64], [832, 480]]])
def test_dumped_values_keep_their_type(value: object) -> None:
    back = parse_document(dump({"section": {"key": value}}), "here").values["section"]["key"]
    assert back == value
    assert type(back) is type(value)


def test_lines_of_keys() -> None:
    document = parse_document("a:\n  b: 1\n\n  c:\n  - d: 2\n", "here")
    assert document.lines == {"a": 1, "a.b": 2, "a.c": 4, "a.c[0].d": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "here:3: a is set twice (first on line 1)"),
        ("a:\n  b: 1\n  b: 2", "here:3: a.b is set twice (first on line 2)"),
        ("a: &x {b: 1}\nc: *x", "here:2: not valid YAML: aliases"),
        ("", "must be a mapping of sections"),
        ("- a", "must be a mapping of sections"),
        ("just text", "must be a mapping of sections"),
        ("1: a", "here:1: a key under the top level is not a plain name"),
        ("a: [", "here:1: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: \x01", "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_refused_documents(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, "here")
    assert message in str(caught.value)
    assert str(caught.value).startswith("here")
    assert "\n" not in str(caught.value)
