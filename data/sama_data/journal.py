"""A file of JSON lines that long work appends its results to, so that a run that was killed goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from sama_data.errors import DataError


def journal_path(out: Path) -> Path:
    """Returns where the journal of an output lies: beside it."""
    return out.with_name(f"{out.name}.journal.jsonl")


def read_lines(path: Path, identity: Mapping[str, Any], purpose: str) -> Iterator[dict[str, Any]]:
    """Yields what a journal holds; nothing where there is none.

    Args:
        path: The file.
        identity: What the lines depend on.
        purpose: What the lines are, in a word, for messages.

    Raises:
        DataError: It cannot be read, is no such journal, or was begun with another identity.
    """
    try:
        with open(path, "rb") as file:
            yield from _read(path, file, identity, purpose)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path}: cannot read the journal: {error.strerror or error}") from error


class JournalFile:
    """Appends lines to a journal; safe between threads, refused to a second process.

    Args:
        path: The file; made where there is none.
        identity: What its lines depend on; its first line holds that.
        purpose: What the lines are, in a word, for messages.
        take: Called with every line that it holds already.
        survives_power_loss: Whether a line is on the disk when `append` returns; else the death of the process alone
            cannot hurt it.

    Raises:
        DataError: It cannot be written, another process writes it, or it was begun with another identity.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        purpose: str,
        take: Callable[[dict[str, Any]], object],
        survives_power_loss: bool,
    ) -> None:
        self.path = path
        self._survives_power_loss = survives_power_loss
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._claim()
            self._file.seek(0)
            is_begun = next(_objects(self._file), None) is not None
            self._file.seek(0)
            for line in _read(path, self._file, identity, purpose):
                take(line)
            if not is_begun:
                self._write({"journal": identity})
        except BaseException as error:
            self._file.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self._lock:
                self._write(line)
        except OSError as error:
            raise self._unwritable(error) from error

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another process writes this journal: wait for it, or name another --out"
            ) from None
        except OSError:
            return  # a file system without locks

    def _write(self, line: Mapping[str, Any]) -> None:
        content = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        # A line that a kill cut off is closed, so that it spoils no other.
        self._file.write(content if self._ends_with_newline() else b"\n" + content)
        self._file.flush()
        if self._survives_power_loss:
            os.fsync(self._file.fileno())

    def _ends_with_newline(self) -> bool:
        if self._file.seek(0, os.SEEK_END) == 0:
            return True
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: cannot write the journal: {error.strerror or error}")


def _read(path: Path, file: BinaryIO, identity: Mapping[str, Any], purpose: str) -> Iterator[dict[str, Any]]:
    lines = _objects(file)
    first = next(lines, None)
    if first is not None:
        _check_identity(path, first.get("journal"), identity, purpose)
    yield from lines


def _objects(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yields the lines that are whole; one that was cut off by a kill holds nothing that was relied on."""
    for line in file:
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _check_identity(path: Path, found: Any, wanted: Mapping[str, Any], purpose: str) -> None:
    if not isinstance(found, dict):
        raise DataError(f"{path}: is no journal of {purpose}: move it away, or name another --out")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise DataError(
                f"{path}: its {purpose} were given with {name} {found.get(name)!r}, not {value!r}: use that, or remove "
                "the journal to begin anew"
            )
