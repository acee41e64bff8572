"""Copies of code and recipes in the run folder: a job runs what was submitted, whatever is edited meanwhile.

`RUN/submissions/NNNN/` holds `code/` (laid out like the clone), the resolved `recipe.yaml` (or `recipes/K.yaml`), the
script, and `submission.json`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sama_mega.config import find_bundled
from sama_mega.config.errors import ConfigError
from sama_mega.observe.environment import GIT_FILE

SUBMISSIONS = "submissions"

# By the place in the copy: the imported package, or a file of the bundled folder.
_PACKAGES = {"sama_mega": "sama_mega", "kernels/sama_kernels": "sama_kernels", "data/sama_data": "sama_data"}
_BUNDLED = {"slurm": "slurm/entrypoint.sh", "recipes": "recipes/demo_stage0.yaml"}
_PROJECT_FILE = "pyproject.toml"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


def locate_code() -> dict[str, Path]:
    """Where the running code lies, by its place in a snapshot: a clone's folders, or an installed wheel's.

    Raises:
        ConfigError: A package is nowhere on disk, as in a zip file.
    """
    found = {place: _package_folder(package) for place, package in _PACKAGES.items()}
    for place, file in _BUNDLED.items():
        bundled = find_bundled(file)
        if bundled is None:
            raise ConfigError(f"{file} is missing from the installed package: install sama-mega again")
        found[place] = bundled.parent
    # Only in a clone; there it marks where recipes and scripts are looked for.
    project_file = found["sama_mega"].parent / _PROJECT_FILE
    if project_file.is_file():
        found[_PROJECT_FILE] = project_file
    return found


def next_submission(run_folder: Path) -> Path:
    """The folder that the next submission would get; nothing is made."""
    folder = run_folder / SUBMISSIONS
    taken = [int(name) for name in os.listdir(folder) if name.isdecimal()] if folder.is_dir() else []
    return folder / f"{max(taken, default=0) + 1:04d}"


def claim_submission(run_folder: Path) -> Path:
    """Make the folder of a new submission; two at the same moment get different ones.

    Raises:
        ConfigError: The run folder cannot be made or written.
    """
    with _refusals(run_folder):
        (run_folder / SUBMISSIONS).mkdir(parents=True, exist_ok=True)
        while True:
            folder = next_submission(run_folder)
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue


def write_snapshot(
    submission: Path, code: Mapping[str, Path], git: Mapping[str, Any] | None, files: Mapping[str, str]
) -> None:
    """Fill a submission's folder.

    Args:
        submission: The folder.
        code: What `locate_code` found.
        git: What `describe_git` said, noted beside the packages.
        files: Texts by their place in the folder.

    Raises:
        ConfigError: The disk refuses.
    """
    with _refusals(submission):
        for place, source in code.items():
            target = submission / "code" / place
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, ignore=_LEFT_OUT)
            else:
                shutil.copyfile(source, target)
        (submission / "code" / GIT_FILE).write_text(json.dumps(git, indent=2) + "\n", encoding="utf-8")
        for place, text in files.items():
            path = submission / place
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")


def remove_submission(submission: Path) -> None:
    """Remove a submission's folder, and those above it that it alone made: the run folder stays where it holds more."""
    shutil.rmtree(submission, ignore_errors=True)
    for folder in (submission.parent, submission.parent.parent):
        try:
            folder.rmdir()
        except OSError:
            return


def _package_folder(package: str) -> Path:
    # Not imported: some packages of the snapshot need torch, its copy does not.
    spec = find_spec(package)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"{package} is not in a folder on disk: install sama-mega from a wheel or a clone")
    return Path(spec.origin).resolve().parent


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        raise ConfigError(
            f"{folder} cannot be written: {reason}{where}: choose another train.run_folder, or free the disk"
        ) from error
