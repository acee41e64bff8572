"""Reads a JSON list of any length, an item at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sama_data.errors import DataError

_CHUNK_CHARACTERS = 1 << 20
_MOST_CHARACTERS_OF_AN_ITEM = 1 << 26
_ENDS = (",", "]", " ", "\t", "\r", "\n")
_BETWEEN_ITEMS = re.compile(r"[\s,]*")


def json_values(text: TextIO, path: Path, chunk_characters: int = _CHUNK_CHARACTERS) -> Iterator[Any]:
    """Yields the items of a list, or the values of a file that holds one after the other.

    Args:
        text: The file's content.
        path: Names the file in errors.
        chunk_characters: How much is read at a time.

    Raises:
        DataError: The file is not JSON, or ends too early.
    """
    stream = _Stream(text, path, chunk_characters)
    is_list = stream.skip_bracket()
    count = 0
    while True:
        start = stream.next_start()
        if start is None:
            if is_list:
                raise DataError(f"{path}: ends inside its list, after item {count}: download it again")
            return
        if is_list and start == "]":
            return
        count += 1
        yield stream.value(count)


class _Stream:
    """A window of the text that moves on."""

    def __init__(self, text: TextIO, path: Path, chunk_characters: int) -> None:
        self._text = text
        self._path = path
        self._chunk_characters = chunk_characters
        self._decode = json.JSONDecoder().raw_decode
        self._window = ""
        self._at = 0

    def skip_bracket(self) -> bool:
        """Passes over the bracket that opens a list; says whether there was one."""
        if self.next_start() != "[":
            return False
        self._at += 1
        return True

    def next_start(self) -> str | None:
        """The first character of what comes next; None at the end of the text."""
        while True:
            match = _BETWEEN_ITEMS.match(self._window, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._read_more():
                return None

    def value(self, count: int) -> Any:
        """Decodes the value that starts here."""
        while True:
            try:
                value, end = self._decode(self._window, self._at)
            except RecursionError as error:
                raise DataError(f"{self._path}: item {count} is nested too deep") from error
            except ValueError as error:
                # Wrong, or only cut off by the window: more text tells.
                too_long = len(self._window) - self._at > _MOST_CHARACTERS_OF_AN_ITEM
                if too_long or not self._read_more():
                    raise DataError(f"{self._path}: item {count} is not JSON: {error}; download it again") from error
                continue
            # A number may go on behind the window: only what follows shows that it ended.
            ended = isinstance(value, dict | list | str) or self._window[end : end + 1] in _ENDS
            if not ended and self._read_more():
                continue
            self._at = end
            return value

    def _read_more(self) -> bool:
        """Moves the window: what is used up goes, at least as much as is left comes."""
        left = len(self._window) - self._at
        more = self._text.read(max(self._chunk_characters, left))
        if not more:
            return False
        self._window = self._window[self._at :] + more
        self._at = 0
        return True
