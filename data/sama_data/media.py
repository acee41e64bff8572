"""Where an image or a clip lies: a file, some bytes of a file, or either under a URL."""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sama_data.errors import ClipError, DataError

URL_MARK = "://"


@dataclass(frozen=True, slots=True)
class Media:
    """One stored image or clip.

    Attributes:
        path: The file that holds it: a path, or a URL that fsspec reads. Text without "://" becomes a path.
        offset: Where it begins in that file, in bytes, as a member of an uncompressed tar does; None for a
            whole file.
        num_bytes: Its length in bytes; None for a whole file.
    """

    path: Path | str
    offset: int | None = None
    num_bytes: int | None = None

    def __post_init__(self) -> None:
        """Tells paths from URLs.

        Raises:
            ValueError: One of offset and num_bytes is given alone.
        """
        if isinstance(self.path, str) and not is_url(self.path):
            object.__setattr__(self, "path", Path(self.path))
        if (self.offset is None) != (self.num_bytes is None):
            raise ValueError(f"offset {self.offset} and num_bytes {self.num_bytes}: give both or none")

    @classmethod
    def in_folder(cls, folder: Path, written: str, offset: int | None = None, num_bytes: int | None = None) -> Media:
        """Returns what a manifest in a folder names: a URL as it is, a path relative to the folder."""
        return cls(written if is_url(written) else folder / written, offset, num_bytes)

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.offset is None or self.num_bytes is None:
            return str(self.path)
        return f"{self.path} (bytes {self.offset} to {self.offset + self.num_bytes})"

    @property
    def is_remote(self) -> bool:
        """Whether it is read through fsspec, all of it at once."""
        return isinstance(self.path, str)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its file."""
        return self.offset is None

    def read(self) -> bytes:
        """Returns its bytes; of a remote file's member, these alone are asked for.

        Raises:
            ClipError: It is missing, empty, cut off or cannot be read.
            DataError: fsspec, or what it needs for the URL's protocol, is not installed.
        """
        return self._read_remote() if self.is_remote else self._read_local(None)

    def read_head(self, num_bytes: int) -> bytes:
        """Returns its first bytes, fewer where it is shorter; of a local file only these are read.

        Raises:
            ClipError: As `read`.
            DataError: As `read`.
        """
        return self._read_remote()[:num_bytes] if self.is_remote else self._read_local(num_bytes)

    def open(self) -> BinaryIO:
        """Opens it for reading and seeking; all but a whole local file is read into memory.

        Raises:
            ClipError: As `read`.
            DataError: As `read`.
        """
        if self.is_remote or not self.is_whole:
            return io.BytesIO(self.read())
        try:
            self._local_bytes()
            return open(self.path, "rb")
        except OSError as error:
            raise self._unreadable(error) from error

    def stamp(self) -> list[int] | None:
        """Returns the size and the time (in nanoseconds) that its file was last written with.

        None for a URL, which is taken to stay as it is, and where there is no such file.
        """
        if self.is_remote:
            return None
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return [status.st_size, status.st_mtime_ns]

    def stored_bytes(self) -> int | None:
        """Returns its length, None where only reading it would tell.

        Raises:
            ClipError: It is missing, empty or cut off.
        """
        if self.is_remote:
            return self.num_bytes
        try:
            return self._local_bytes()
        except OSError as error:
            raise self._unreadable(error) from error

    def _local_bytes(self) -> int:
        """The length of a local file or member, after a look at whether it can be read."""
        status = os.stat(self.path)
        # Opening a pipe or a device could wait for ever.
        if not stat.S_ISREG(status.st_mode):
            raise ClipError(self.name, "is not a regular file")
        if self.offset is None or self.num_bytes is None:
            length = status.st_size
        else:
            length = self.num_bytes
            if self.offset + length > status.st_size:
                raise ClipError(self.name, f"is cut off: its file ends at byte {status.st_size}")
        if length == 0:
            raise ClipError(self.name, "is empty (0 bytes)")
        return length

    def _read_local(self, most_bytes: int | None) -> bytes:
        try:
            length = self._local_bytes()
            wanted = length if most_bytes is None else min(length, most_bytes)
            # For a few bytes the buffer would read thousands.
            with open(self.path, "rb", buffering=-1 if most_bytes is None else 0) as file:
                if self.offset:
                    file.seek(self.offset)
                return file.read(wanted)
        except OSError as error:
            raise self._unreadable(error) from error

    def _read_remote(self) -> bytes:
        start, end = self.offset, None
        if self.offset is not None and self.num_bytes is not None:
            end = self.offset + self.num_bytes
        require_protocol(str(self.path).split(URL_MARK)[0])
        from fsspec.core import url_to_fs

        try:
            # fsspec keeps the file system for the next call.
            system, path = url_to_fs(str(self.path))
            content: bytes = system.cat_file(path, start=start, end=end) if self.num_bytes != 0 else b""
        except OSError as error:
            raise self._unreadable(error) from error
        except Exception as error:
            # Every protocol has errors of its own, and none of them may end the run.
            raise ClipError(
                self.name, f"cannot be read: {type(error).__name__}: {_first_line(error)}", is_passing=True
            ) from error
        if not content:
            raise ClipError(self.name, "is empty (0 bytes)")
        if self.num_bytes is not None and len(content) != self.num_bytes:
            raise ClipError(self.name, f"is cut off: {len(content)} bytes came for {self.num_bytes}")
        return content

    def _unreadable(self, error: OSError) -> ClipError:
        if isinstance(error, FileNotFoundError):
            return ClipError(self.name, "does not exist")
        return ClipError(self.name, f"cannot be read: {error.strerror or _first_line(error)}", is_passing=True)


def is_url(path: str) -> bool:
    """Whether a manifest's path is a URL, for fsspec to read."""
    return URL_MARK in path


def require_protocol(protocol: str) -> None:
    """Makes sure that URLs of a protocol, like "s3", can be read here.

    Raises:
        DataError: fsspec, or what it needs for the protocol, is not installed.
    """
    try:
        from fsspec.registry import get_filesystem_class
    except ImportError as error:
        raise DataError(f"reading {protocol}{URL_MARK}... needs fsspec: pip install fsspec") from error
    try:
        for layer in protocol.split("::"):  # "simplecache::s3" keeps what s3 gives
            get_filesystem_class(layer)
    except (ImportError, ValueError) as error:  # a known protocol without its package, and an unknown one
        raise DataError(f"fsspec cannot read {protocol}{URL_MARK}...: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
