"""The tables of messages in docs/parallelism.md, parsed: their formulas are Python."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.distributed import REPOSITORY

DOCUMENT = REPOSITORY / "docs/parallelism.md"


@dataclass(frozen=True)
class Row:
    """One row of the tables of messages; `when`, `messages` and `num_bytes` are Python."""

    what: str
    when: str
    operation: str
    group: str
    messages: str
    num_bytes: str


@dataclass(frozen=True)
class Document:
    """What docs/parallelism.md claims.

    Attributes:
        definitions: `name = formula`, in order.
        rows: By title of their table.
        example: Numbers of the worked example.
        example_rows: Formula and bytes.
    """

    definitions: tuple[tuple[str, str], ...]
    rows: dict[str, tuple[Row, ...]]
    example: dict[str, Any]
    example_rows: tuple[tuple[str, int], ...]


BLOCK_FORWARD, BLOCK_BACKWARD = "Each block, forward", "Each block, backward"
BLOCK_AGAIN = "Each block, again in the backward pass"
MICRO_BATCH, MICRO_BATCH_BACKWARD = "Each micro-batch, forward and between stages", "Each micro-batch, backward"
ENCODING = "Each micro-batch, encoding"
STEP, BUCKET = "Each optimizer step", "Each bucket of gradients, each optimizer step"
TABLES = {
    "block forward": (BLOCK_FORWARD,),
    "backward": (BLOCK_AGAIN, BLOCK_BACKWARD, MICRO_BATCH_BACKWARD),
    "micro-batch": (MICRO_BATCH,),
    "encoding": (ENCODING,),
}
"""By phase of the recorder: the tables that say what is sent in it."""


def read_document(path: Path = DOCUMENT) -> Document:
    """Parses the legend, the tables of messages and the worked example."""
    text = path.read_text()
    definitions = re.findall(r"\| `(\w+) = (.+?)` \|$", text, re.MULTILINE)
    rows: dict[str, tuple[Row, ...]] = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE):
        found = [cells for cells in table_cells(part) if len(cells) == 6]
        if found:
            rows[part.splitlines()[0]] = tuple(Row(*(cell.strip("`") for cell in cells)) for cells in found[1:])
    *_, example_part = text.split("\n## ")
    numbers = next(line for line in re.findall(r"^`(.+;.+)`\.$", example_part, re.MULTILINE))
    example = {name: evaluate(value, {}) for name, value in re.findall(r"(\w+) = (\w+)", numbers)}
    example_rows = re.findall(r"\| `(.+?)` \| ([\d,]+) \|$", example_part, re.MULTILINE)
    return Document(
        tuple(definitions),
        rows,
        example,
        tuple((formula, int(num_bytes.replace(",", ""))) for formula, num_bytes in example_rows),
    )


def table_cells(part: str) -> Iterator[list[str]]:
    """Cells of every table row but the ruler."""
    for line in part.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def evaluate(formula: str, names: Mapping[str, Any]) -> Any:
    """A formula's value; every name must be known."""
    return eval(formula, {"__builtins__": {}, "ceil": math.ceil}, dict(names))


def whole(formula: str, names: Mapping[str, Any]) -> int:
    """A formula's value, which must be a whole number."""
    value = evaluate(formula, names)
    assert value == int(value), (formula, value)
    return int(value)


def with_definitions(names: Mapping[str, Any], document: Document) -> dict[str, Any]:
    """The names and those that the legend defines by them, as far as they can be told."""
    known = dict(names)
    for name, formula in document.definitions:
        try:
            known[name] = evaluate(formula, known)
        except NameError:
            # Of a micro-batch, and these are a step's numbers: a row that uses it will fail.
            continue
    return known


def expected_of(rows: Sequence[Row], names: Mapping[str, Any], times: int = 1) -> Counter[tuple[str, str, int]]:
    """The messages of rows, by operation, group and bytes."""
    expected: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        if evaluate(row.when, names):
            expected[row.operation, row.group, whole(row.num_bytes, names)] += times * whole(row.messages, names)
    return +expected
