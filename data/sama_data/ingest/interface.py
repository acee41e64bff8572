"""What a set's reader is given, and what it yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sama_data.rows import Kind


@dataclass(frozen=True, slots=True)
class Clip:
    """Where a clip lies.

    Attributes:
        path: The file, absolute, or a URL.
        offset: Where the clip starts in the file, in bytes; None where it is the whole file.
        num_bytes: How long it is; None likewise.
        kind: Image or video, where the file's extension does not tell: members of archives.
    """

    path: str
    offset: int | None = None
    num_bytes: int | None = None
    kind: Kind | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """A row, or a file of rows, that is left out.

    Attributes:
        reason: Why, in words that are the same for all rows left out for it.
        place: Where, such as "train.jsonl line 3".
    """

    reason: str
    place: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row before its clips are looked for.

    Attributes:
        place: Names the row in messages.
        sample_id: Its name, the same whatever else is left out; unique in the set unless `may_repeat`.
        text: The instruction or the caption as the dataset has it; checked later.
        target: The clip after the edit, or the raw clip: a name the dataset uses, or a clip already found.
        source: The clip before the edit, likewise.
        is_edit: Whether it is a pair with an instruction; a raw clip with a caption has no source.
        folders: Where names may be relative to, absolute, the likeliest first.
        columns: Other columns of the row.
        may_repeat: Whether rows may have the same name, because the set has too many to remember them all; they are
            numbered when they are written. Such rows must have the same clips, so that all or none are left out.
    """

    place: str
    sample_id: str
    text: Any
    target: Any
    source: Any = None
    is_edit: bool = True
    folders: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    may_repeat: bool = False


Yielded = Candidate | Skip


class Advance:
    """Counts how much is read of how much there is; the unit is the set's own, bytes as a rule.

    Args:
        on_change: Called with (done, total) whenever more was read.
    """

    def __init__(self, on_change: Callable[[int, int], None] | None = None) -> None:
        self.done = 0
        self.total = 0
        self._on_change = on_change

    def expect(self, amount: int) -> None:
        """Notes that so much more is to be read."""
        self.total += amount

    def add(self, amount: int) -> None:
        """Notes that so much more was read; called by one thread at a time."""
        self.done += amount
        if self._on_change is not None and self.total:
            self._on_change(min(self.done, self.total), self.total)


@dataclass(frozen=True, slots=True)
class Job:
    """What a set's reader is given.

    Attributes:
        source: What the user named: a folder or a file, absolute.
        media: The folder that clips are looked for in: the user's, or `source` (its folder, if it is a file).
        workers: Files that are read at the same time.
        advance: Where readers say how far they are.
        out: The manifest that will be written, which must not be among what is read.
    """

    source: Path
    media: Path
    workers: int = 1
    advance: Advance = field(default_factory=Advance)
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """The source, or the folder of the source file."""
        return self.source if self.source.is_dir() else self.source.parent

    def place_of(self, path: Path) -> str:
        """A file's name for messages: as short as it can be."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def folders(self, *others: Path) -> tuple[str, ...]:
        """Where names may be relative to: the media folder first, then others; each once."""
        return tuple(dict.fromkeys(str(path) for path in (self.media, *others)))


@dataclass(frozen=True)
class IngestSet:
    """One dataset, or one format that users have.

    Attributes:
        name: What the command line calls it.
        hub_id: Its id on the hub; None where it has none.
        licence: What every row gets as its licence; None where the set states none.
        layout: What SRC must be, in a line.
        rows: Reads it.
        aliases: Other names that the command line takes.
    """

    name: str
    hub_id: str | None
    licence: str | None
    layout: str
    rows: Callable[[Job], Iterator[Yielded]]
    aliases: tuple[str, ...] = ()
