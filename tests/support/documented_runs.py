"""Which documented commands are run, in what folder, and how they are made small.

A `sama-mega` command runs where it is one of `SHRUNK`, its recipe needs no published weights, and its inputs are in the
folder: those that a user has after `make demo`, a clip, two manifests of their own, and what the page made before. The
words of `SHRUNK` are appended, where they win: fewer steps and clips, smaller pictures. All else is parsed alone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sama_mega.config import load_recipe
from sama_mega.config.schema import BUILT_IN_ENCODERS
from tests.support.documented_commands import REPOSITORY, Parsed, UnknownLineError
from tests.support.tiny_recipe import FRAMES, SIZE, TINY, call_main, tiny_overrides

_TINY = tuple(f"{key}={json.dumps(value)}" for key, value in TINY.items() if key != "checkpoint.init_from")
SHRUNK: Mapping[str, tuple[str, ...]] = {
    "train": ("train.steps=3", "checkpoint.every=3"),
    "check": (),
    "edit": ("--steps", "1"),
    "evaluate": ("--limit", "1", "--steps", "1"),
    "export": (),
    "data synth": ("--videos", "2", "--images", "2", "--size", str(SIZE), "--frames", str(FRAMES)),
    "data ingest": (),
    "data probe": (),
    "data filter": (),
    "data stats": (),
    "data preview": ("--samples", "2"),
    "data cache": (),
}
"""By command, what makes it small, beside `_TINY` for commands that take overrides of a recipe."""
_SMALL_SCALING = ("model.num_layers=4", "data.images_per_step=64", "data.videos_per_step=64")
"""Of `check --scaling`, which predicts a step for every layout of every number of GPUs."""
_OUTPUTS = ("out",)
_INPUT_KEYS = ("data.manifest", "checkpoint.init_from", "data.cache")
_PROMISED = ("runs/demo", "my/", "recipes/", "clip.mp4")
"""Paths that the folder should have: one that is missing is a mistake, not another user's file."""


def make_folder(folder: Path, world: Path) -> None:
    """Makes what a user has who ran the demo: its clips and runs, a clip, and manifests of their own, all tiny.

    Args:
        folder: An empty folder.
        world: `tests.support.tiny_recipe.tiny_world`.
    """
    (folder / "runs/demo").mkdir(parents=True)
    for link in ("recipes", "slurm", "tests"):
        (folder / link).symlink_to(REPOSITORY / link)
    shutil.copytree(world, folder / "runs/demo/world")
    shutil.copytree(world, folder / "my")
    shutil.copy(world / "videos/video-000000-source.mp4", folder / "clip.mp4")
    with contextlib.chdir(folder):
        for stage, manifest in ((0, "raw.jsonl"), (1, "pairs.jsonl")):
            overrides = tiny_overrides(Path(f"runs/demo_stage{stage}"), Path("runs/demo/world") / manifest, 2)
            assert call_main("train", f"recipes/demo_stage{stage}.yaml", *overrides) == 0
        assert call_main("data", "probe", "my/pairs.jsonl", "--out", "m.parquet") == 0


def shrink(command: Parsed, arguments: list[str], folder: Path) -> list[str] | None:
    """The arguments to run a command with, now, in `folder`; None where it is only parsed.

    Raises:
        UnknownLineError: An input that the folder should have is missing.
    """
    if command.name not in SHRUNK or not _needs_no_weights(command):
        return None
    missing = [path for path in _inputs(command.values) if not (folder / path).exists()]
    promised = [path for path in missing if path.startswith(_PROMISED)]
    if promised:
        raise UnknownLineError(f"{promised[0]}: not in the folder that tests/support/documented_runs.py makes")
    if missing:
        return None
    takes_overrides = command.recipe is not None and "overrides" in command.values and command.name != "check"
    scaling = _SMALL_SCALING if command.values.get("scaling") else ()
    return [*arguments, *(_TINY if takes_overrides else ()), *scaling, *SHRUNK[command.name]]


def _needs_no_weights(command: Parsed) -> bool:
    if command.recipe is None or (command.name == "check" and command.recipe.startswith("recipes/")):
        return True
    if not command.recipe.startswith("recipes/"):
        return False
    encoders = load_recipe(REPOSITORY / command.recipe).encoders
    return all(getattr(encoders, role) == name for role, name in BUILT_IN_ENCODERS.items())


def _inputs(values: Mapping[str, Any]) -> list[str]:
    """Files and folders that a command reads."""
    paths = [str(value) for key, value in values.items() if isinstance(value, Path) and key not in _OUTPUTS]
    paths += [values["subject"]] if "subject" in values else []
    for override in values.get("overrides") or ():
        key, _, value = override.partition("=")
        paths += [value] if key in _INPUT_KEYS and value != "null" else []
    return paths
