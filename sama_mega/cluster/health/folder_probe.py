"""The run folder from one node: can files be written there, and is it the same folder as rank 0's?"""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sama_mega.cluster.health.facts import FolderFacts
from sama_mega.cluster.health.time_limit import within

_PROBE_BYTES = 4 << 20
_ANSWER_SECONDS = 30.0
# As long as shared file systems usually go on showing a folder as it was.
MARKER_SECONDS = 5.0
_SPACE_SECONDS = 10.0
_POLL_SECONDS = 0.1
_GIB = 1 << 30
_CHOOSE = "choose another train.run_folder"


@dataclass(frozen=True)
class FirstLook:
    """What rank 0 found, and what it left in the run folder.

    Attributes:
        facts: The folder.
        marker: Name of the file by which other nodes know the folder; None where it could not be written.
        made: Folders that were missing, the run folder first.
    """

    facts: FolderFacts
    marker: str | None
    made: tuple[Path, ...]

    def tidy(self, *, keep_folder: bool) -> None:
        """Removes the marker and, unless it is kept, a run folder that was made here and is still empty."""
        folder = Path(self.facts.path)
        with contextlib.suppress(OSError):  # what cannot be removed is an empty file or folder
            if self.marker is not None:
                (folder / self.marker).unlink(missing_ok=True)
            for path in () if keep_folder else self.made:
                path.rmdir()


def probe_first(folder: Path, seconds: float = _ANSWER_SECONDS) -> FirstLook:
    """Makes the run folder where it is missing, writes to it, and leaves a marker for the other nodes; for rank 0.

    Args:
        folder: The run folder.
        seconds: How long the file system may take.
    """
    folder = folder.absolute()
    marker = f".health-marker-{secrets.token_hex(8)}"
    made: list[Path] = []

    def probe() -> None:
        made.extend(path for path in (folder, *folder.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder)
        (folder / marker).touch()

    error = _try(folder, probe, seconds)
    facts = _describe(folder, error, shows_marker=None if error else True)
    return FirstLook(facts, None if error else marker, tuple(made))


def probe_other(
    folder: Path,
    marker: str | None,
    seconds: float = _ANSWER_SECONDS,
    marker_seconds: float = MARKER_SECONDS,
) -> FolderFacts:
    """Looks for rank 0's marker and writes to the folder; for the first rank of every other node.

    Args:
        folder: The run folder; never made here, for a folder of this node alone would hide the fault.
        marker: The name of rank 0's marker, or None.
        seconds: How long the file system may take.
        marker_seconds: How long to look for the marker.
    """
    found: list[bool] = []

    def probe() -> None:
        there = folder.is_dir()
        if there:
            # Before the look: a node that has just written to a network folder asks the server what is in it.
            _write(folder)
        if marker is not None:
            found.append(_shows(folder, marker, marker_seconds))
        if not there:
            _write(folder)

    error = _try(folder, probe, seconds + marker_seconds)
    return _describe(folder, error, shows_marker=found[0] if found else None)


def explain(error: OSError, folder: Path) -> str:
    """Why a folder cannot be written and what to do, to follow the folder's name."""
    reason = error.strerror or str(error)
    at = "" if error.filename in (None, str(folder)) else f" ({error.filename})"
    match error.errno:
        case errno.ENOSPC:
            return f"is full: {reason}: delete what is not needed there, or {_CHOOSE}"
        case errno.EDQUOT:
            return f"is over the quota of {_user()}: {reason}: delete what is not needed there, or {_CHOOSE}"
        case errno.EROFS:
            return f"is on a file system that is mounted read-only: {reason}: mount it for writing, or {_CHOOSE}"
        case errno.EACCES | errno.EPERM:
            return f"cannot be written by {_user()}: {reason}{at}: change its owner or its mode, or {_CHOOSE}"
        case errno.ENOENT:
            return f"does not exist: {reason}: mount the shared file system there, or {_CHOOSE}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"is not a folder{at}: {_CHOOSE}"
        case _:
            return f"cannot be used: {reason}: mount the file system again, or {_CHOOSE}"


def _try(folder: Path, probe: Callable[[], None], seconds: float) -> str | None:
    try:
        within(seconds, probe)
    except TimeoutError:
        return f"does not answer within {seconds:g} s: its file system hangs: mount it again, or {_CHOOSE}"
    except OSError as error:
        return explain(error, folder)
    return None


def _describe(folder: Path, error: str | None, shows_marker: bool | None) -> FolderFacts:
    try:
        free = within(_SPACE_SECONDS, lambda: shutil.disk_usage(folder).free / _GIB)
    except OSError:
        free, shows_marker = None, None  # of a folder that does not exist, the error says all
    return FolderFacts(path=os.path.abspath(folder), free_gib=free, error=error, shows_marker=shows_marker)


def _write(folder: Path) -> None:
    """Really writes: permission bits and free space do not tell of quotas, read-only mounts and root."""
    path = folder / f".health-probe-{socket.gethostname()}-{os.getpid()}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # Without a name from the start: nothing is left behind, even by a rank that is killed now.
        path.unlink()
        content = memoryview(os.urandom(_PROBE_BYTES))  # file systems that compress would store zeros in nothing
        while content:
            content = content[os.write(file, content) :]
        os.fsync(file)
    finally:
        os.close(file)


def _shows(folder: Path, marker: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        # Listing makes a network file system ask its server where a look at the one name may come from a cache.
        if folder.is_dir() and marker in os.listdir(folder):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)


def _user() -> str:
    try:
        return f"{getpass.getuser()} (user {os.getuid()})"
    except (KeyError, OSError):  # a user that the container's list does not have
        return f"user {os.getuid()}"
