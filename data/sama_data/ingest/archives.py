"""Finds clips in tars by the names a dataset uses, and says how to unpack archives that clips cannot be read from."""

from __future__ import annotations

import os
import re
import shlex
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sama_data.errors import DataError
from sama_data.ingest.in_order import in_order
from sama_data.ingest.interface import Advance, Clip, Skip
from sama_data.ingest.metadata import file_size
from sama_data.ingest.names import digest
from sama_data.ingest.skips import AMBIGUOUS
from sama_data.ingest.tar_members import Damage, read_members
from sama_data.rows import kind_of

# `x.tar.gz`, and the parts `x.tar.gz.part000`, `x.tar.gz.aa`, `x.tar.001` of one that was split.
_ARCHIVE_NAME = re.compile(
    r"(?P<whole>.+?\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz|zip))(?P<mark>[._-](part)?[._-]?)?(?P<part>[0-9]+|[a-z]{2})?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ArchiveFiles:
    """The archives under a folder, each list sorted.

    Attributes:
        tars: Uncompressed tars.
        packed: Archives that must be unpacked first: compressed, or split into parts.
    """

    tars: tuple[Path, ...]
    packed: tuple[Path, ...]


def find_archives(folder: Path) -> ArchiveFiles:
    """Looks for archives in a folder and all folders below it."""
    tars: list[Path] = []
    packed: list[Path] = []
    for parent, _, names in os.walk(folder):
        for name in names:
            match = _ARCHIVE_NAME.fullmatch(name)
            if match is None or (match["mark"] is None) != (match["part"] is None):
                continue
            is_whole_tar = match["mark"] is None and name.lower().endswith(".tar")
            (tars if is_whole_tar else packed).append(Path(parent, name))
    return ArchiveFiles(tuple(sorted(tars)), tuple(sorted(packed)))


def how_to_unpack(archive: Path) -> str:
    """The shell command that makes the clips of an archive of `find_archives` readable."""
    match = _ARCHIVE_NAME.fullmatch(archive.name)
    assert match is not None
    whole = shlex.quote(str(archive.with_name(match["whole"])))
    folder = shlex.quote(str(archive.parent))
    kind = match["whole"].lower().rpartition(".")[2]
    parts = None if match["mark"] is None else shlex.quote(str(archive.with_name(match["whole"] + match["mark"]))) + "*"
    if kind == "zip":
        unpack = f"unzip {whole} -d {folder}"
        return unpack if parts is None else f"cat {parts} > {whole} && {unpack}"
    if kind == "tar":
        return f"cat {parts} > {whole}"
    flag = {"bz2": "-j", "tbz2": "-j", "xz": "-J", "txz": "-J", "zst": "--zstd"}.get(kind, "-z")
    return f"cat {parts or whole} | tar {flag} -xf - -C {folder}"


class ArchiveIndex:
    """Every member of some tars by name, in some forty bytes each.

    A dataset's name for a clip, such as `add/src_videos/x.mp4`, fits a member whose last part is the same and of
    which more is known: the member's own path ends alike, or its tar lies in a folder that ends alike. The member
    of which most fits is taken; a name alone is not enough, or `tar_videos/x.mp4` would be found among the sources.

    Args:
        root: The folder that names are relative to.
        tars: Uncompressed tars below it; each is read through once.
        workers: Tars read at the same time.
        advance: Is told how much was read, in bytes.
    """

    def __init__(self, root: Path, tars: Sequence[Path], workers: int, advance: Advance) -> None:
        self.damaged: list[Skip] = []
        self._tars = tars
        self._folders = [tar.parent.relative_to(root).parts for tar in tars]
        sizes = [file_size(tar) for tar in tars]
        advance.expect(sum(sizes))
        # Of its last part, of its last two, of the whole path; then the tar's number, offset and length.
        columns = [array(kind) for kind in "QQQIqq"]
        last = 0
        for found in in_order(self._members_of, range(len(tars)), workers):
            if isinstance(found, Skip):
                self.damaged.append(found)
                continue
            for column, value in zip(columns, found, strict=True):
                column.append(value)
            if found[3] != last:
                advance.add(sum(sizes[last : found[3]]))
                last = found[3]
        advance.add(sum(sizes[last:]))
        order = np.argsort(np.asarray(columns[0], np.uint64), kind="stable")
        self._names, self._ends, self._paths, self._tar, self._offset, self._num_bytes = (
            np.asarray(column)[order] for column in columns
        )

    def __len__(self) -> int:
        return len(self._names)

    def find(self, name: str) -> Clip | Skip | None:
        """Returns the member that a name means; a Skip if several fit alike and differ, None if none fits."""
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if not parts:
            return None
        key = np.uint64(digest(parts[-1]))
        first, last = np.searchsorted(self._names, key, "left"), np.searchsorted(self._names, key, "right")
        if first == last:
            return None
        fits = [(self._fit(parts, row), row) for row in range(int(first), int(last))]
        best = max(fit for fit, _ in fits)
        if best == 0 and len(parts) > 1:
            return None
        rows = [row for fit, row in fits if fit == best]
        if any(not self._is_same(rows[0], row) for row in rows[1:]):
            return Skip(AMBIGUOUS, name)
        return self._clip(rows[0], name)

    def _members_of(self, number: int) -> Iterator[tuple[int, ...] | Skip]:
        tar = self._tars[number]
        for member in read_members(tar):
            if isinstance(member, Damage):
                yield Skip("an archive is damaged", f"{tar.name} at byte {member.offset}: {member.what}")
                continue
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if parts:
                names = (digest(parts[-1]), digest(*parts[-2:]), digest(*parts))
                yield (*names, number, member.offset, member.num_bytes)

    def _fit(self, parts: tuple[str, ...], row: int) -> int:
        """How many of a name's folders a member and its tar share with it."""
        shared = 0
        if len(parts) > 1 and self._ends[row] == np.uint64(digest(*parts[-2:])):
            shared = 1
        for start in range(len(parts) - 1):
            if self._paths[row] == np.uint64(digest(*parts[start:])):
                shared = len(parts) - 1 - start
                break
        folders = self._folders[int(self._tar[row])]
        for ours, theirs in zip(reversed(parts[:-1]), reversed(folders), strict=False):
            if ours != theirs:
                break
            shared += 1
        return shared

    def _is_same(self, row: int, other: int) -> bool:
        """Whether two members hold the same bytes."""
        if self._num_bytes[row] != self._num_bytes[other]:
            return False
        return self._read(row) == self._read(other)

    def _read(self, row: int) -> bytes:
        path = self._tars[int(self._tar[row])]
        try:
            with open(path, "rb") as file:
                file.seek(int(self._offset[row]))
                return file.read(int(self._num_bytes[row]))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _clip(self, row: int, name: str) -> Clip:
        path = str(self._tars[int(self._tar[row])])
        return Clip(path, int(self._offset[row]), int(self._num_bytes[row]), kind_of(name))
