"""The cache's folder: whose it is, and files that appear whole."""

from __future__ import annotations

import json
import os
import stat
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.interface import Identity

FORMAT = 1
HEADER_FILE = "cache.json"
INDEX_FILE = "index.safetensors"
SUFFIX = ".safetensors"
_SHARDS, _PARTIAL = "shards", "partial"
_ABANDONED_SECONDS = 3600.0
_OWN_NAMES = {HEADER_FILE, INDEX_FILE, _SHARDS, _PARTIAL}


class CacheFolder:
    """Paths of a cache, and how its files are written.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = path / HEADER_FILE
        self.index = path / INDEX_FILE
        self.shards = path / _SHARDS
        self._partial = path / _PARTIAL

    def claim(self, identity: Mapping[str, Identity]) -> None:
        """Makes the folder a cache of these encoders, or makes sure that it is one; many processes may do so at once.

        Raises:
            ConfigError: It is a cache of other encoders, holds something else, or cannot be written.
        """
        try:
            if self.path.is_dir() and set(os.listdir(self.path)) - _OWN_NAMES:
                raise ConfigError(f"--out ({self.path}) holds other files: name a new folder, or that of a cache")
            for folder in (self.shards, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            draft = self._draft(HEADER_FILE)
            draft.write_text(json.dumps({"format": FORMAT, "encoders": identity}, indent=2) + "\n")
            try:
                os.link(draft, self.header)  # of several processes, one
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        except OSError as error:
            raise self._unwritable("--out", error) from error
        self.require_encoders("--out", identity)

    def require_encoders(self, key: str, identity: Mapping[str, Identity]) -> None:
        """Makes sure that the cache was made by these encoders.

        Args:
            key: What named the folder, for messages.
            identity: Of the encoders; see `Encoders.identity`.

        Raises:
            ConfigError: There is no cache, or it is other encoders' or another version's.
        """
        try:
            header = json.loads(self.header.read_text())
            found, theirs = header["format"], header["encoders"]
        except FileNotFoundError:
            raise ConfigError(f"{key} ({self.path}) is no cache: make it with `sama-mega data cache`") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{key}: {self.header} cannot be read: {error}: make the cache again") from error
        if found != FORMAT:
            raise ConfigError(f"{key} ({self.path}) has the format {found}, and this version reads {FORMAT}")
        for role, ours in identity.items():
            if theirs.get(role) != ours:
                raise ConfigError(
                    f"{key} ({self.path}) was made by other encoders: encoders.{role} is"
                    f" {_difference(theirs.get(role), ours)}: use a cache of these encoders, or make one with"
                    " `sama-mega data cache`"
                )

    def shard_names(self) -> list[str]:
        """Names of the shards that are there, sorted."""
        try:
            return sorted(name for name in os.listdir(self.shards) if name.endswith(SUFFIX))
        except FileNotFoundError:
            return []

    def write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Writes a safetensors file of the cache; it appears whole, whoever else writes the same.

        Raises:
            ConfigError: The disk refuses.
        """
        draft = self._draft(path.name)
        try:
            # Without metadata a file without tensors could not be read.
            save_file(dict(tensors), draft, {"format": "pt"})
            # The library makes it private; others may train from what one has cached.
            draft.chmod(stat.S_IMODE(self.header.stat().st_mode))
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise self._unwritable("--out", error) from error

    def remove_drafts(self) -> None:
        """Removes what killed processes left: what nobody has written to for an hour."""
        for draft in self._partial.glob("*"):
            # Another process may be finishing at this moment: its drafts are seconds old.
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                    draft.unlink()

    def _draft(self, name: str) -> Path:
        return self._partial / f"{name}.{uuid.uuid4().hex}"

    def _unwritable(self, key: str, error: OSError) -> ConfigError:
        return ConfigError(f"{key} ({self.path}) cannot be written: {error.strerror or error}: free or change the disk")


def _difference(theirs: Any, ours: Identity) -> str:
    """What differs first, in a few words."""
    if not isinstance(theirs, dict):
        return f"missing there and {ours.get('encoder')} here"
    name = next(name for name in (*ours, *theirs) if theirs.get(name) != ours.get(name))
    return f"of {name} {theirs.get(name)} there and {ours.get(name)} here"
