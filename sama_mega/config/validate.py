"""Turns a parsed YAML document into typed sections; errors name file, line, key, value, rule and the nearest key."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BrokenRule, Section
from sama_mega.config.strict_yaml import Document

SectionType = TypeVar("SectionType", bound=Section)

_LARGEST_FILE_BYTES = 1 << 20
_PLAIN_RULES = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be text",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "dict_type": "must be a section of keys",
    "finite_number": "must be a finite number",
    "model_type": "must be a section of keys",
}


def read_text(path: Path, noun: str) -> str:
    """Read a YAML file's text.

    Args:
        path: The file.
        noun: What messages call such a file: `recipe`.

    Raises:
        FileNotFoundError: There is no such file; the caller knows what else the user may have meant.
        ConfigError: It is a folder, cannot be read, is far too large or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give the {noun}'s YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST_FILE_BYTES:
        raise ConfigError(f"{path}: over {_LARGEST_FILE_BYTES} bytes; a {noun} is a short YAML file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); a {noun} is a YAML file") from error


def validate(
    kind: type[SectionType],
    document: Document,
    source: str,
    noun: str,
    places: Mapping[str, str] | None = None,
) -> SectionType:
    """Build typed sections from a document.

    Args:
        kind: The outermost section.
        document: Values and the lines of their keys.
        source: What messages call the document, usually the path.
        noun: What messages call such a document: `recipe`.
        places: Where a value came from, by dotted key, for those that are not the document's own.

    Raises:
        ConfigError: The values break a rule; the message explains the first and counts the others.
    """
    try:
        return kind.model_validate(document.values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A misspelt required key is both unknown and missing: the unknown one tells the user more.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        dotted, sentence = _explain(kind, problems[0], noun)
        origin = next((place for key, place in (places or {}).items() if _is_within(dotted, key)), None)
        if origin is not None:
            place = f"{source}, {origin}"
        else:
            line = _line_of(dotted, document.lines) if problems[0]["type"] != "missing" else None
            place = f"{source}:{line}" if line else source
        others = f" (and {len(problems) - 1} more to fix)" if len(problems) > 1 else ""
        raise ConfigError(f"{place}: {sentence}{others}") from None


def known_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Every dotted key below a section, sections included, list indices left out."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        for inner in _sections_in(info.annotation):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def nearest_key(kind: type[Section], dotted: str) -> str:
    """`; the nearest is KEY`, looking beside the unknown key first, then in all sections."""
    plain = re.sub(r"\[\d+\]", "", dotted)
    parent, _, leaf = plain.rpartition(".")
    known = known_keys(kind)
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    close = [beside[name] for name in difflib.get_close_matches(leaf, list(beside), n=1)]
    close += [key for key in known if key.rpartition(".")[2] == leaf]
    close += difflib.get_close_matches(plain, known, n=1)
    if close:
        return f"; the nearest is {close[0]}"
    if not beside:
        return f"; the sections are {', '.join(kind.model_fields)}"
    return f"; {parent or 'the file'} may have {', '.join(beside)}"


def _explain(kind: type[Section], problem: Mapping[str, Any], noun: str) -> tuple[str, str]:
    """Dotted key and sentence of one pydantic problem."""
    dotted = _dotted(problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, BrokenRule):
        dotted = f"{dotted}.{cause.key}" if dotted else cause.key
        return dotted, f"{dotted} ({_show(cause.value)}) {cause.rule}"
    if problem["type"] == "extra_forbidden":
        return dotted, f"{dotted} ({_show(problem['input'])}) is not a {noun} key{nearest_key(kind, dotted)}"
    if problem["type"] == "missing":
        return dotted, f"{dotted} is missing"
    if problem["type"] == "value_error":
        rule = str(cause)
    elif problem["type"] == "literal_error":
        rule = f"must be one of {problem['ctx']['expected']}"
    else:
        rule = _PLAIN_RULES.get(problem["type"], problem["msg"].replace("Input should", "must"))
    return dotted, f"{dotted} ({_show(problem['input'])}) {rule}"


def _dotted(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _is_within(dotted: str, key: str) -> bool:
    """Whether `dotted` is `key` or an item of it."""
    return dotted == key or dotted.startswith(f"{key}[")


def _line_of(dotted: str, lines: Mapping[str, int]) -> int | None:
    """Line of the key, or of the nearest thing around it that has one."""
    while dotted and dotted not in lines:
        dotted = dotted[: max(dotted.rfind("."), dotted.rfind("["), 0)]
    return lines.get(dotted)


def _show(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections_in(argument)
