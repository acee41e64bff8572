"""Counts the rows that an ingest leaves out, by reason."""

from __future__ import annotations

from collections import Counter

from sama_data.ingest.interface import Skip

MISSING_MEDIA = "media missing"
EMPTY_TEXT = "empty instruction or caption"
NOT_TEXT = "instruction or caption is not text"
NOT_UNICODE = "text or path is not UTF-8"
NO_CLIP_NAME = "no clip named"
SAME_CLIP = "source and target are the same clip"
DIFFERENT_KINDS = "one of source and target is an image, the other a video"
AMBIGUOUS = "several archive members fit the name and differ"
WRONG_VALUE = "a column holds a wrong value"

_EXAMPLES = 3
_MOST_CHARACTERS = 500


class Skips:
    """Reasons, how often each was met, and where first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, skip: Skip) -> None:
        """Counts one."""
        reason, place = _one_line(skip.reason), _one_line(skip.place)
        self._counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(place)

    @property
    def total(self) -> int:
        """All of them."""
        return self._counts.total()

    @property
    def counts(self) -> dict[str, int]:
        """How often each reason was met, the most frequent first."""
        return dict(self._counts.most_common())

    @property
    def examples(self) -> dict[str, list[str]]:
        """Where each reason was met first, in the order of `counts`."""
        return {reason: list(self._examples[reason]) for reason in self.counts}


def _one_line(text: str) -> str:
    """Text that every terminal and JSON file takes: a dataset's names may hold anything."""
    shown = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return shown if len(shown) <= _MOST_CHARACTERS else f"{shown[:_MOST_CHARACTERS]}..."
