"""What a row must have to be kept, and how users say it."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sama_data.errors import DataError
from sama_data.rows import Kind

SCORES = ("if_score", "vq_score", "cp_score", "mc_score")
MIN_SCORE, MAX_SCORE = 1.0, 10.0

# Source: SAMA (arXiv 2603.19228), appendix B.
PAPER_MIN_SCORES: Mapping[Kind, Mapping[str, float]] = MappingProxyType(
    {
        "image": MappingProxyType({"if_score": 9.0, "vq_score": 9.0, "cp_score": 9.0}),
        "video": MappingProxyType({"if_score": 8.0, "vq_score": 9.0, "cp_score": 8.0, "mc_score": 8.0}),
    }
)
PAPER_TASKS = "paper"
# What the paper keeps of the two sets that it does not use whole; the rest of a blend is kept whole.
_PAPER_TASK_RULES = (
    "ditto=*style*",
    "openve=*local_change*",
    "openve=*background*",
    "openve=*style*",
    "openve=*subtitle*",
)
# Licences that are known to allow commercial use. One that is missing here is dropped by --commercial-only.
_COMMERCIAL_LICENCES = ("apache-2*", "mit", "bsd*", "cc0*", "cc-by-[0-9]*", "cc-by", "cc-by-sa*", "public-domain")
# Beside one of them, such as in "CC-BY-4.0 AND CC-BY-NC-4.0", it forbids that.
_NON_COMMERCIAL = re.compile(r"(?<![a-z])(nc|non-?commercial|research)(?![a-z])")


@dataclass(frozen=True)
class TaskRule:
    """One category of edit to keep.

    Attributes:
        dataset: The dataset that it speaks of, as `simplified` writes it; None for those that no rule names.
        task: The category likewise; may hold `*`.
        is_preset: Whether the user did not spell it out: that a manifest lacks its dataset is no mistake then.
    """

    dataset: str | None
    task: str
    is_preset: bool = False

    def names_dataset(self, dataset: str) -> bool:
        """Whether the rule speaks of a dataset: "ditto" does of "ditto_1m"."""
        return self.dataset is not None and (dataset == self.dataset or dataset.startswith(f"{self.dataset}_"))

    def __str__(self) -> str:
        return self.task if self.dataset is None else f"{self.dataset}={self.task}"


@dataclass(frozen=True)
class Criteria:
    """What a row must have to be kept.

    Attributes:
        min_scores: For images and for videos, the least value of each score that is looked at. Only edits are
            held to them: a raw clip has no instruction to follow.
        task_rules: The categories to keep; none keeps all.
        licences: The licences to keep, as `simplified_licence` writes them; none keeps all.
        commercial_only: Whether to keep only licences that are known to allow commercial use.
        keep_unscored: Whether an edit that lacks a score stays.
    """

    min_scores: Mapping[Kind, Mapping[str, float]] = field(default_factory=lambda: PAPER_MIN_SCORES)
    task_rules: tuple[TaskRule, ...] = ()
    licences: tuple[str, ...] = ()
    commercial_only: bool = False
    keep_unscored: bool = False

    def rules_for(self, dataset: str | None) -> tuple[TaskRule, ...]:
        """Returns the task rules that a dataset's rows are held to: its own, else the general ones."""
        name = simplified(dataset or "")
        own = tuple(rule for rule in self.task_rules if rule.names_dataset(name))
        return own or tuple(rule for rule in self.task_rules if rule.dataset is None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the criteria as plain values, for reports and a file's history."""
        return {
            "min_scores": {kind: dict(scores) for kind, scores in self.min_scores.items()},
            "tasks": [str(rule) for rule in self.task_rules],
            "licences": list(self.licences),
            "commercial_only": self.commercial_only,
            "keep_unscored": self.keep_unscored,
        }


def simplified(name: str) -> str:
    """Returns a name of a dataset or a task in small letters and underscores: "Ditto-1M" becomes "ditto_1m"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def simplified_licence(name: str) -> str:
    """Returns a licence's name in small letters and hyphens: "CC BY 4.0" becomes "cc-by-4.0"."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower())


def matches_task(rule: TaskRule, task: str) -> bool:
    """Whether a row's task, as the manifest writes it, is one that a rule keeps."""
    return fnmatch.fnmatchcase(simplified(task), rule.task)


def allows_commercial_use(licence: str) -> bool:
    """Whether a licence is one that is known to allow commercial use."""
    name = simplified_licence(licence)
    return not _NON_COMMERCIAL.search(name) and any(
        fnmatch.fnmatchcase(name, pattern) for pattern in _COMMERCIAL_LICENCES
    )


def parse_tasks(values: Sequence[str]) -> tuple[TaskRule, ...]:
    """Reads `TASK`, `DATASET=TASK` and `paper`.

    Raises:
        DataError: A value names no task.
    """
    rules = []
    for value in values:
        is_preset = value.strip().lower() == PAPER_TASKS
        for text in _PAPER_TASK_RULES if is_preset else (value,):
            dataset, equals, task = text.rpartition("=")
            rule = TaskRule(simplified(dataset) or None, _simplified_pattern(task), is_preset)
            if not rule.task or (equals and rule.dataset is None):
                raise DataError(f"--task {value!r} names no task: use TASK, DATASET=TASK or {PAPER_TASKS}")
            rules.append(rule)
    return tuple(dict.fromkeys(rules))


def parse_min_scores(values: Sequence[str]) -> dict[Kind, dict[str, float]]:
    """Reads `[image.|video.]SCORE=LEAST` into the paper's thresholds; a LEAST of `none` looks at no such score.

    Raises:
        DataError: A value names no score, or its number is not from 1 to 10.
    """
    scores: dict[Kind, dict[str, float]] = {kind: dict(least) for kind, least in PAPER_MIN_SCORES.items()}
    for value in values:
        name, equals, text = (part.strip() for part in value.partition("="))
        prefix, _, score = name.rpartition(".")
        if not equals or score not in SCORES or prefix not in ("", "image", "video"):
            raise DataError(
                f"--min {value!r} must be SCORE=LEAST, image.SCORE=LEAST or video.SCORE=LEAST with SCORE one of "
                f"{', '.join(SCORES)}: use for example video.if_score=9"
            )
        if prefix == "image" and score == "mc_score":
            raise DataError(f"--min {value!r}: a picture has no motion: use video.mc_score")
        for kind, least in scores.items():
            if prefix in ("", kind) and (kind, score) != ("image", "mc_score"):
                _set_least(least, score, text, value)
    return scores


def _set_least(least: dict[str, float], score: str, text: str, value: str) -> None:
    if text.lower() == "none":
        least.pop(score, None)
        return
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not MIN_SCORE <= number <= MAX_SCORE:
        raise DataError(f"--min {value!r} must be a number from {MIN_SCORE:g} to {MAX_SCORE:g}, or none")
    least[score] = number


def _simplified_pattern(task: str) -> str:
    return "*".join(simplified(part) if part.strip("_-. ") else "" for part in task.split("*"))
