"""What the endpoint answered so far: a line for each answer, on the disk before the next is asked for."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from sama_data.errors import DataError
from sama_data.score.answer import Verdict
from sama_data.score.prompts import ANSWER_KEYS


def journal_path(out: Path) -> Path:
    """Returns where the journal of an output lies: beside it."""
    return out.with_name(f"{out.name}.journal.jsonl")


class Answers:
    """What a journal holds, in little memory: millions of pairs are judged.

    Attributes:
        turns: For each row's key and each turn that was answered, the numbers in the order of ANSWER_KEYS; a picture's
            lack the last one.
        given_up: For each row that the model did not answer properly, why.
    """

    def __init__(self) -> None:
        self.turns: dict[str, dict[int, tuple[float, ...]]] = {}
        self.given_up: dict[str, str] = {}
        self._seen: dict[tuple[float, ...], tuple[float, ...]] = {}

    def add(self, key: str, turn: int, scores: Mapping[str, float]) -> None:
        """Adds one turn's scores, by column; the row is given up no longer."""
        numbers = tuple(scores[name] for name in ANSWER_KEYS if name in scores)
        # There are few different answers: equal ones share their memory.
        self.turns.setdefault(key, {})[turn] = self._seen.setdefault(numbers, numbers)
        self.given_up.pop(key, None)

    def equals(self, other: Answers) -> bool:
        """Whether another one holds the same."""
        return (self.turns, self.given_up) == (other.turns, other.given_up)

    def scores(self, key: str, num_turns: int) -> dict[str, float] | None:
        """Returns the mean of each score over a row's turns; None unless all of them were answered."""
        found = self.turns.get(key, {})
        if any(turn not in found for turn in range(1, num_turns + 1)):
            return None
        columns = zip(*(found[turn] for turn in range(1, num_turns + 1)), strict=True)
        return {name: sum(column) / num_turns for name, column in zip(ANSWER_KEYS, columns, strict=False)}


def read_journal(path: Path, identity: Mapping[str, Any]) -> Answers:
    """Returns what a journal holds; nothing where there is none.

    Raises:
        DataError: It cannot be read, or its answers were given under other settings.
    """
    try:
        with open(path, "rb") as file:
            return _read(path, file, identity)[0]
    except FileNotFoundError:
        return Answers()
    except OSError as error:
        raise DataError(f"{path}: cannot read the journal: {error.strerror or error}") from error


class Journal:
    """Appends answers to a journal; safe between threads, refused to a second process.

    Args:
        path: The file; made where there is none.
        identity: The settings that the answers depend on; its first line holds them.

    Attributes:
        answers: What it holds, including what was added here.

    Raises:
        DataError: It cannot be written, another process writes it, or its answers were given under other settings.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._claim()
            self._file.seek(0)
            self.answers, is_begun = _read(path, self._file, identity)
            if not is_begun:
                self._write({"journal": identity})
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add_turn(self, key: str, sample_id: str, turn: int, verdict: Verdict) -> None:
        """Records one answer; when this returns, it survives a crash of the machine.

        Raises:
            DataError: The file cannot be written.
        """
        tokens = [verdict.prompt_tokens, verdict.completion_tokens]
        line = {"key": key, "sample_id": sample_id, "turn": turn, "scores": dict(verdict.scores), "tokens": tokens}
        with self._lock:
            self._append(line)
            self.answers.add(key, turn, verdict.scores)

    def give_up(self, key: str, sample_id: str, reason: str) -> None:
        """Records that the model does not answer properly for a row.

        Raises:
            DataError: The file cannot be written.
        """
        with self._lock:
            self._append({"key": key, "sample_id": sample_id, "given_up": reason})
            self.answers.given_up[key] = reason

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another process writes this journal: wait for it, or name another --out"
            ) from None
        except OSError:
            return  # a file system without locks

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self._write(line)
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        # A line that a kill cut off is closed, so that it spoils no other.
        self._file.write(content if self._ends_with_newline() else b"\n" + content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _ends_with_newline(self) -> bool:
        if self._file.seek(0, os.SEEK_END) == 0:
            return True
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot write the journal: {error.strerror or error}")


def _read(path: Path, file: BinaryIO, identity: Mapping[str, Any]) -> tuple[Answers, bool]:
    """Returns what the journal holds, and whether it has its first line."""
    answers, is_begun = Answers(), False
    for line in _objects(file):
        if not is_begun:
            _check_identity(path, line.get("journal"), identity)
            is_begun = True
        elif "given_up" in line:
            answers.given_up[str(line["key"])] = str(line["given_up"])
        elif "turn" in line:
            answers.add(line["key"], line["turn"], line["scores"])
    return answers, is_begun


def _objects(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yields the lines that are whole; one that was cut off by a kill holds nothing that was relied on."""
    for line in file:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _check_identity(path: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no journal of scores: move it away, or name another --out")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise DataError(
                f"{path}: its answers were given with {name} {found.get(name)!r}, not {value!r}: use that, or remove "
                "the journal to ask anew"
            )
