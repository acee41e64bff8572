"""Lists what an uncompressed tar holds, with the place of every member's bytes; concatenated tars too.

`tarfile` keeps every member in memory and, told to pass over the zero blocks between concatenated archives, also
passes over damage without a word. This reads the headers alone, in order.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sama_data.errors import DataError

BLOCK = 512
_ENCODING = "utf-8"
_REGULAR = frozenset((tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE))
_WITHOUT_BYTES = frozenset(
    (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
)
_LONGEST_NAME = 1 << 20
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"PK\x03\x04", "zip", "unzip"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar.

    Attributes:
        name: Its path in the archive.
        offset: Where its bytes start in the file.
        num_bytes: How many there are.
        follows: Whether it follows the member before it directly: not the end of a concatenated archive, nor damage.
    """

    name: str
    offset: int
    num_bytes: int
    follows: bool


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a tar that holds no member.

    Attributes:
        offset: Where it starts.
        what: What is wrong there.
    """

    offset: int
    what: str


def read_members(path: Path) -> Iterator[Member | Damage]:
    """Yields the regular files of a tar, and what is damaged, in the order of the bytes.

    Raises:
        DataError: The file cannot be read or is compressed.
    """
    try:
        with open(path, "rb") as file:
            _refuse_compressed(path, file)
            size = os.fstat(file.fileno()).st_size
            yield from _Reader(file, size).members()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refuse_compressed(path: Path, file: BinaryIO) -> None:
    head = file.read(8)
    for magic, method, command in _COMPRESSED:
        if head.startswith(magic):
            raise DataError(
                f"{path}: is compressed with {method}, so that no clip can be read from the middle of it: "
                f"unpack it first ({command})"
            )
    file.seek(0)


class _Reader:
    """Goes through a tar's headers."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._at = 0
        # What extended headers say of the next member.
        self._name: str | None = None
        self._num_bytes: int | None = None

    def members(self) -> Iterator[Member | Damage]:
        follows = False
        while True:
            start = self._at
            block = self._block()
            if len(block) < BLOCK:
                if block.strip(b"\0"):
                    yield Damage(start, "ends inside a header")
                return
            if not block.strip(b"\0"):
                follows = False
                continue
            try:
                header = tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
                if self._is_extension(header):
                    continue
            except (tarfile.HeaderError, ValueError):
                yield Damage(start, "holds no tar header where one should be")
                self._find_header()
                follows = False
                continue
            member = self._member(header, follows)
            if isinstance(member, Damage):
                yield member
                return
            if member is not None:
                yield member
            follows = True

    def _block(self) -> bytes:
        self._file.seek(self._at)
        block = self._file.read(BLOCK)
        self._at += len(block)
        return block

    def _is_extension(self, header: tarfile.TarInfo) -> bool:
        """Takes in a header that only describes the next member.

        Raises:
            ValueError: It cannot be read.
        """
        if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            text = self._payload(header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                self._name = text.split(b"\0", 1)[0].decode(_ENCODING, "surrogateescape")
            return True
        if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            fields = _pax_fields(self._payload(header.size))
            if header.type != tarfile.XGLTYPE:
                if any(key.startswith("GNU.sparse") for key in fields):
                    raise ValueError("sparse member")
                self._name = fields.get("path", self._name)
                self._num_bytes = int(fields["size"]) if "size" in fields else self._num_bytes
            return True
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise ValueError("sparse member")
        return False

    def _payload(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= _LONGEST_NAME:
            raise ValueError("an extended header of impossible length")
        self._file.seek(self._at)
        payload = self._file.read(num_bytes)
        if len(payload) < num_bytes:
            raise ValueError("an extended header that is cut off")
        self._at += _padded(num_bytes)
        return payload

    def _member(self, header: tarfile.TarInfo, follows: bool) -> Member | Damage | None:
        """Passes over a member's bytes; None for a folder, a link, and the like."""
        name = header.name if self._name is None else self._name
        num_bytes = header.size if self._num_bytes is None else self._num_bytes
        self._name = self._num_bytes = None
        if header.type in _WITHOUT_BYTES:
            return None
        offset = self._at
        if num_bytes < 0 or offset + num_bytes > self._size:
            return Damage(offset, f"ends inside member {name}")
        self._at += _padded(num_bytes)
        return Member(name, offset, num_bytes, follows) if header.type in _REGULAR else None

    def _find_header(self) -> None:
        """Moves on to the next block that is a header or all zeros: an archive may follow a damaged one."""
        self._name = self._num_bytes = None
        while len(block := self._block()) == BLOCK:
            if not block.strip(b"\0") or _is_header(block):
                self._at -= BLOCK
                return


def _is_header(block: bytes) -> bool:
    if block[257:262] != b"ustar":
        return False
    try:
        tarfile.TarInfo.frombuf(block, _ENCODING, "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True


def _pax_fields(payload: bytes) -> dict[str, str]:
    """Reads an extended header's `LENGTH KEY=VALUE` lines."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(payload) and payload[at] != 0:
        length_text, _, _ = payload[at : at + 20].partition(b" ")
        length = int(length_text)
        if length <= len(length_text) + 1 or at + length > len(payload):
            raise ValueError("an extended header's line of impossible length")
        line = payload[at + len(length_text) + 1 : at + length - 1]
        key, _, value = line.partition(b"=")
        fields[key.decode(_ENCODING, "surrogateescape")] = value.decode(_ENCODING, "surrogateescape")
        at += length
    return fields


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK) * BLOCK
