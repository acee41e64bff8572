"""YAML for recipes and settings: YAML 1.2 scalars, no duplicate keys, no aliases, and the line of every key.

PyYAML alone reads `1e-5` as text, `no` as false, `010` as eight and keeps the last of two equal keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml

from sama_mega.config.errors import ConfigError

_SCALARS: list[tuple[str, str, str]] = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
]
_KEY_SCALAR = "tag:yaml.org,2002:str"


class _RecipeLoader(yaml.SafeLoader):
    """Safe loader with the scalars above only."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases: each value is said where it is used."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)


class _RecipeDumper(yaml.SafeDumper):
    """Safe dumper that quotes exactly the text that `_RecipeLoader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write values out each time."""
        return True


for _class in (_RecipeLoader, _RecipeDumper):
    _class.yaml_implicit_resolvers = {}  # none of PyYAML's own
    for _tag, _pattern, _first in _SCALARS:
        _expression = re.compile(f"^(?:{_pattern})$")
        _class.add_implicit_resolver(_tag, _expression, ["" if letter == "\0" else letter for letter in _first])


@dataclass
class Document:
    """A parsed file: its values and, for messages, the 1-based line of every dotted key."""

    values: dict[Any, Any]
    lines: dict[str, int] = field(default_factory=dict)


def _describe(error: yaml.YAMLError) -> tuple[int | None, str]:
    """Line (1-based, None where unknown) and problem of a YAML error."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return (mark.line + 1 if mark else None), problem


def parse_document(text: str, source: str, shape: str = "a mapping of sections (model:, train:, ...)") -> Document:
    """Parse a file's text.

    Args:
        text: The YAML.
        source: What messages call it, usually the path.
        shape: What messages say that the file must be.

    Raises:
        ConfigError: Not YAML, not a mapping, a key twice, or an alias.
    """
    try:
        loader = _RecipeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{source}: must be {shape}; this is not")
        document = Document({})
        _collect_lines(node, "", document.lines, source)
        document.values = loader.construct_document(node)
        return document
    except yaml.YAMLError as error:
        line, problem = _describe(error)
        raise ConfigError(f"{source}{f':{line}' if line else ''}: not valid YAML: {problem}") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from error


def _collect_lines(node: yaml.Node, prefix: str, lines: dict[str, int], source: str) -> None:
    """Note the line of each key under `node` into `lines`; refuse a key that appears twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(item, f"{prefix}[{index}]", lines, source)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _KEY_SCALAR:
            raise ConfigError(f"{source}:{line}: a key under {prefix or 'the top level'} is not a plain name")
        dotted = f"{prefix}.{key_node.value}" if prefix else key_node.value
        if dotted in lines:
            raise ConfigError(f"{source}:{line}: {dotted} is set twice (first on line {lines[dotted]}): keep one")
        lines[dotted] = line
        _collect_lines(value_node, dotted, lines, source)


def parse_value(text: str, source: str) -> Any:
    """Parse the value of an override by the same rules as a recipe's.

    Raises:
        ConfigError: Not YAML, or a part of it would be left out as a comment.
    """
    try:
        _refuse_comment(text, source)
        return _RecipeLoader(text).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = _describe(error)[1] if isinstance(error, yaml.YAMLError) else str(error)
        raise ConfigError(f"{source}: the value is not valid YAML ({problem}): quote it") from error


def _refuse_comment(text: str, source: str) -> None:
    """Refuse a `#` outside the value: nobody comments a command line, so it was meant as text."""
    tokens = list(yaml.scan(text))
    gaps = [text[token.end_mark.index : after.start_mark.index] for token, after in pairwise(tokens)]
    # The first line of a block scalar (`|`, `>`) may have a comment of its own.
    heads = [token.start_mark.index for token in tokens if getattr(token, "style", None) in ("|", ">")]
    if any("#" in part for part in (*gaps, *(text[head:].partition("\n")[0] for head in heads))):
        raise ConfigError(
            f"{source}: its '#' begins a comment in YAML, so the value would be cut there: double quotes inside single "
            "ones keep it, as in '\"run #1\"'"
        )


def dump(values: dict[str, Any]) -> str:
    """Write plain values as YAML that `parse_document` reads back unchanged."""
    return yaml.dump(values, Dumper=_RecipeDumper, sort_keys=False, default_flow_style=None, width=200)
