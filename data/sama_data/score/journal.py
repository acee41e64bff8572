"""What the endpoint answered so far: a line for each answer, on the disk before the next is asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sama_data.journal import JournalFile, read_lines
from sama_data.score.answer import Verdict
from sama_data.score.prompts import ANSWER_KEYS

_PURPOSE = "answers"


class Answers:
    """What a journal holds, in little memory: millions of pairs are judged.

    Args:
        names: Of the scores, in an order; a question may lack the last ones, as a picture lacks motion.

    Attributes:
        turns: For each row's key and each turn that was answered, the numbers in the order of the names.
        given_up: For each row that the model did not answer properly, why.
    """

    def __init__(self, names: Sequence[str] = tuple(ANSWER_KEYS)) -> None:
        self._names = tuple(names)
        self.turns: dict[str, dict[int, tuple[float, ...]]] = {}
        self.given_up: dict[str, str] = {}
        self._seen: dict[tuple[float, ...], tuple[float, ...]] = {}

    def add(self, key: str, turn: int, scores: Mapping[str, float]) -> None:
        """Adds one turn's scores, by column; the row is given up no longer."""
        numbers = tuple(scores[name] for name in self._names if name in scores)
        # There are few different answers: equal ones share their memory.
        self.turns.setdefault(key, {})[turn] = self._seen.setdefault(numbers, numbers)
        self.given_up.pop(key, None)

    def take(self, line: Mapping[str, Any]) -> None:
        """Adds what a line of a journal says."""
        if "given_up" in line:
            self.given_up[str(line["key"])] = str(line["given_up"])
        elif "turn" in line:
            self.add(line["key"], line["turn"], line["scores"])

    def equals(self, other: Answers) -> bool:
        """Whether another one holds the same."""
        return (self.turns, self.given_up) == (other.turns, other.given_up)

    def scores(self, key: str, num_turns: int) -> dict[str, float] | None:
        """Returns the mean of each score over a row's turns; None unless all of them were answered."""
        found = self.turns.get(key, {})
        if any(turn not in found for turn in range(1, num_turns + 1)):
            return None
        columns = zip(*(found[turn] for turn in range(1, num_turns + 1)), strict=True)
        return {name: sum(column) / num_turns for name, column in zip(self._names, columns, strict=False)}


def read_journal(path: Path, identity: Mapping[str, Any], names: Sequence[str] = tuple(ANSWER_KEYS)) -> Answers:
    """Returns what a journal holds; nothing where there is none.

    Args:
        path: The file.
        identity: The settings that its answers depend on.
        names: Of the scores, in an order.

    Raises:
        DataError: It cannot be read, or its answers were given under other settings.
    """
    answers = Answers(names)
    for line in read_lines(path, identity, _PURPOSE):
        answers.take(line)
    return answers


class Journal(JournalFile):
    """Appends answers to a journal; a line survives a crash of the machine. See `JournalFile`.

    Args:
        path: The file; made where there is none.
        identity: The settings that the answers depend on; its first line holds them.
        names: Of the scores, in an order.
        keeps_observations: Whether to write what the judge says that it saw: much for millions of pairs.

    Attributes:
        answers: What it holds, including what was added here.

    Raises:
        DataError: It cannot be written, another process writes it, or its answers were given under other settings.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        names: Sequence[str] = tuple(ANSWER_KEYS),
        keeps_observations: bool = False,
    ) -> None:
        self.answers = Answers(names)
        self._keeps_observations = keeps_observations
        self._adding = threading.Lock()
        super().__init__(path, identity, _PURPOSE, self.answers.take, survives_power_loss=True)

    def add_turn(self, key: str, sample_id: str, turn: int, verdict: Verdict) -> None:
        """Records one answer.

        Raises:
            DataError: The file cannot be written.
        """
        tokens = [verdict.prompt_tokens, verdict.completion_tokens]
        line = {"key": key, "sample_id": sample_id, "turn": turn, "scores": dict(verdict.scores), "tokens": tokens}
        if self._keeps_observations:
            line["observations"] = verdict.observations
        with self._adding:
            self.append(line)
            self.answers.add(key, turn, verdict.scores)

    def give_up(self, key: str, sample_id: str, reason: str) -> None:
        """Records that the model does not answer properly for a row.

        Raises:
            DataError: The file cannot be written.
        """
        with self._adding:
            self.append({"key": key, "sample_id": sample_id, "given_up": reason})
            self.answers.given_up[key] = reason
