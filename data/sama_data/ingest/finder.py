"""Finds the clips that candidates name: in folders, in tars, or behind URLs."""

from __future__ import annotations

import os
import posixpath
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sama_data.errors import DataError
from sama_data.ingest.archives import ArchiveFiles, ArchiveIndex, find_archives
from sama_data.ingest.interface import Clip, Job, Skip
from sama_data.ingest.names import digest
from sama_data.media import is_url

_MOST_FOLDERS_LEFT_OFF = 4


class MediaFinder:
    """Turns the names that a dataset uses into places.

    Names are looked for as they stand under each folder; then without their first folders, because a dataset's paths
    often start above what people download, but always with the last folder that they name; then in the tars under the
    media folder, which are listed the first time that a clip is found nowhere else.

    Args:
        job: Where to look, and how many tars are read at the same time.
        on_damage: Is told of damage in the tars.
    """

    def __init__(self, job: Job, on_damage: Callable[[Skip], None]) -> None:
        self._job = job
        self._on_damage = on_damage
        self._archives: ArchiveFiles | None = None
        self._index: ArchiveIndex | None = None
        self._is_folder: dict[str, bool] = {}
        self._claims = _Claims()

    def on_disk(self, name: str, folders: tuple[str, ...]) -> Clip | None:
        """Looks in folders; threads may call this at the same time.

        Raises:
            DataError: The clip was found for another name already, of which other folders were left off.
        """
        if is_url(name):
            return Clip(name)
        name = _tidy(name)
        if name.startswith("/") and _is_file(name):
            return Clip(name)
        parts = name.strip("/").split("/")
        for left_off in range(min(max(len(parts) - 1, 1), _MOST_FOLDERS_LEFT_OFF + 1)):
            for folder in folders:
                path = "/".join((folder, *parts[left_off:]))
                if self._has_folder(path) and _is_file(path):
                    return self._claims.claim(parts, Clip(path), is_whole=not left_off)
        return None

    def in_archives(self, name: str) -> Clip | Skip | None:
        """Looks in the tars under the media folder; not for several threads.

        Raises:
            DataError: As `on_disk`.
        """
        if self._index is None:
            tars = self.archives.tars
            self._index = ArchiveIndex(self._job.media, tars, self._job.workers, self._job.advance)
            for skip in self._index.damaged:
                self._on_damage(skip)
        name = _tidy(name)
        found = self._index.find(name) if len(self._index) else None
        if not isinstance(found, Clip):
            return found
        return self._claims.claim(name.strip("/").split("/"), found, is_whole=False)

    def where_expected(self, name: str, folders: tuple[str, ...]) -> Clip:
        """Where a clip that is missing would be if it were there."""
        name = _tidy(name)
        return Clip(name if name.startswith("/") or not folders else f"{folders[0]}/{name}")

    @property
    def archives(self) -> ArchiveFiles:
        """The archives under the media folder; looked for once."""
        if self._archives is None:
            self._archives = find_archives(self._job.media)
        return self._archives

    def _has_folder(self, path: str) -> bool:
        """Whether a file's folder is there; remembered, so that a missing clip costs few questions to the storage."""
        folder = path.rpartition("/")[0]
        known = self._is_folder.get(folder)
        if known is None:
            known = self._is_folder[folder] = os.path.isdir(folder)
        return known


class _Claims:
    """Notices when one clip is found for two names, of which one is not its own: what was left off told them apart."""

    def __init__(self) -> None:
        # By the clip: the folders that a name of it has, and those of a name of which some were left off.
        self._whole: dict[int, str] = {}
        self._cut: dict[int, str] = {}
        self._folders: dict[str, str] = {}
        self._lock = threading.Lock()

    def claim(self, parts: Sequence[str], clip: Clip, is_whole: bool) -> Clip:
        """Returns a clip that was found for a name.

        Args:
            parts: Of the name.
            clip: What was found.
            is_whole: Whether the clip is surely the one that is meant: no folder of the name was left off.

        Raises:
            DataError: It is another name's as well, and neither name ends as the other does.
        """
        folder, key = "/".join(parts[:-1]), digest(clip.path, str(clip.offset))
        with self._lock:
            folder = self._folders.setdefault(folder, folder)  # millions of clips lie in few folders
            for others in (self._cut,) if is_whole else (self._cut, self._whole):
                other = others.get(key, folder)
                if not (f"/{folder}".endswith(f"/{other}") or f"/{other}".endswith(f"/{folder}")):
                    raise DataError(
                        f"{clip.path}: would be both {other}/{parts[-1]} and {folder}/{parts[-1]}: name the folder that"
                        " both are in with --media, or give the list of those clips alone that are there as SRC"
                    )
            own = self._whole if is_whole else self._cut
            own[key] = max(folder, own.get(key, folder), key=len)
        return clip


class RelativePaths:
    """Writes absolute paths relative to a manifest.

    The way up from the manifest is that of its real folder, since `..` leaves the folder that a link leads to. Links on
    the way down to a clip stay: a link that is the clip may carry the extension that its target lacks.

    Args:
        manifest: The file that the paths are for.
    """

    def __init__(self, manifest: Path) -> None:
        self._folder = os.path.realpath(manifest.parent)
        self._known: dict[str, str] = {}

    def of(self, path: str) -> str:
        """A path as the manifest writes it; a URL stays."""
        if is_url(path):
            return path
        folder, name = posixpath.split(path)
        known = self._known.get(folder)
        if known is None:
            known = Path(os.path.relpath(folder, self._folder)).as_posix()
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[folder] = known
        return name if known == "." else f"{known}/{name}"


def _tidy(name: str) -> str:
    if "\\" in name and "/" not in name:  # made on Windows
        name = name.replace("\\", "/")
    return posixpath.normpath(name)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return False
