"""Puts an exported file or folder in place when all of it is on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sama_mega.checkpoint.replace import flush_to_disk
from sama_mega.config.errors import ConfigError, UserError


class ExportError(UserError):
    """The export cannot be written."""


@contextmanager
def complete_or_absent(out: Path) -> Iterator[Path]:
    """Yields a hidden folder beside `out`; what is put there under `out`'s own name becomes `out` at the end.

    Raises:
        ConfigError: `out` exists.
        ExportError: The disk refuses. After this, and after anything raised inside, nothing is left.
    """
    if out.exists():
        raise ConfigError(f"--out ({out}) exists: choose another name, or delete it")
    unfinished = out.with_name(f".saving-{out.name}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            flush_to_disk(path)
        os.replace(unfinished / out.name, out)
        flush_to_disk(out.parent)
    except OSError as error:
        raise ExportError(f"{out} cannot be written: {error}: free the disk or choose another place") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
