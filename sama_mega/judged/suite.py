"""What a judged suite asks: its categories, its criteria and how their scores are put together; one YAML file each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from sama_data.score.form import AnswerForm
from sama_mega.config import strict_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BrokenRule, Name, Section
from sama_mega.config.validate import read_text, validate

SUITES_FOLDER = Path(__file__).parent / "suites"
_NOUN = "suite"

Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A name that files and answers use."""
Names = Annotated[tuple[Name, ...], Strict(False)]


class Criterion(Section):
    """One score that the judge gives.

    Attributes:
        key: Its key in the answer.
        column: The table's column that it belongs to; criteria of one column are averaged first.
        question: What the judge is asked, with what the scores mean.
    """

    key: Key
    column: Name
    question: Name


class Category(Section):
    """One row of the table.

    Attributes:
        key: Its name in lists of clips.
        label: Its name in tables.
        also: Other names of it in lists of clips.
        hint: What the judge is told of such edits.
    """

    key: Key
    label: Name
    also: Names = ()
    hint: str = ""


class LeftOut(Section):
    """Categories of a benchmark that are not asked about.

    Attributes:
        names: Of the categories.
        reason: Why, in words.
    """

    names: Names
    reason: Name


class Suite(Section):
    """A suite.

    Attributes:
        title: Over the table.
        least: The lowest score.
        most: The highest.
        overall: What the last row is the mean of: all clips, or the categories.
        total: The last column's name; it is the mean of the others.
        rules: What the judge is told besides.
        criteria: What is scored.
        categories: In the table's order.
        left_out: Categories that are passed over.
    """

    title: Name
    least: int = 1
    most: int = 10
    overall: Literal["samples", "categories"]
    total: Name = "average"
    rules: Names = ()
    criteria: Annotated[tuple[Criterion, ...], Strict(False), Field(min_length=1)]
    categories: Annotated[tuple[Category, ...], Strict(False), Field(min_length=1)]
    left_out: Annotated[tuple[LeftOut, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Suite:
        if not 0 <= self.least < self.most <= 100:
            raise BrokenRule("most", self.most, f"must be above least ({self.least}), both from 0 to 100")
        keys = [criterion.key for criterion in self.criteria]
        names = [plain_name(name) for category in self.categories for name in (category.key, *category.also)]
        names += [plain_name(name) for left_out in self.left_out for name in left_out.names]
        for where, found in (("criteria", keys), ("categories", names)):
            twice = sorted({name for name in found if found.count(name) > 1})
            if twice:
                raise BrokenRule(where, twice[0], "is named twice")
        if self.total in self.columns:
            raise BrokenRule("total", self.total, "is a column's name too")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns of scores, in the order of the criteria, without the total."""
        return tuple(dict.fromkeys(criterion.column for criterion in self.criteria))

    @property
    def form(self) -> AnswerForm:
        """What an answer must hold."""
        return AnswerForm({criterion.key: criterion.key for criterion in self.criteria}, self.least, self.most)

    def category(self, key: str) -> Category:
        """Returns a category by its key."""
        return next(category for category in self.categories if category.key == key)


def plain_name(name: str) -> str:
    """Returns a category's name without case, spaces and signs: `Style/Tone change` is `style_tone_change`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def suite_names() -> list[str]:
    """Returns the names of the suites that come with the package."""
    return sorted(path.stem for path in SUITES_FOLDER.glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """Returns a suite by its name, or from a YAML file of the same form.

    Raises:
        ConfigError: There is no such suite, or its file breaks a rule.
    """
    path = SUITES_FOLDER / f"{name}.yaml" if name in suite_names() else Path(name)
    try:
        text = read_text(path, _NOUN)
    except FileNotFoundError:
        known = ", ".join(["synthetic", *suite_names()])
        raise ConfigError(f"suite ({name}) must be one of: {known}; or a YAML file like theirs") from None
    document = strict_yaml.parse_document(text, str(path), "a mapping (title:, criteria:, categories:, ...)")
    return validate(Suite, document, str(path), _NOUN)
