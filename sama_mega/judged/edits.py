"""The edits of a suite: found where they are, made where they are missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sama_data.errors import ClipError
from sama_mega.config.errors import ConfigError
from sama_mega.judged.clips import ClipList, SourceClip, given_names

if TYPE_CHECKING:
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import OpenCheckpoint

IDENTITY_FILE = "made_with.json"


@dataclass(frozen=True)
class MadeWith:
    """What edits depend on: two runs that differ here must not share a folder.

    Attributes:
        checkpoint: The step's folder.
        checkpoint_written: When it was written: a run that was started afresh writes to the same folders.
        weights: ``ema`` or ``model``.
        steps: Sampling steps; None is the recipe's.
        guidance: Guidance scale; None is the recipe's.
        max_frames: Of a longer clip its start is edited.
    """

    checkpoint: str
    checkpoint_written: str
    weights: str
    steps: int | None
    guidance: float | None
    max_frames: int


def check_folder(folder: Path, made_with: MadeWith) -> None:
    """Makes sure that a folder of edits, if there is one, holds none that were made with something else.

    Raises:
        ConfigError: It does.
    """
    try:
        found: Any = json.loads((folder / IDENTITY_FILE).read_text())
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        found = {}
    for name, value in asdict(made_with).items():
        before = found.get(name) if isinstance(found, dict) else None
        if before != value:
            raise ConfigError(f"{folder} holds edits made with {name} {before}, not {value}: name another --out")


def claim_folder(folder: Path, made_with: MadeWith) -> None:
    """Makes the folder of edits, and writes what they are made with.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / IDENTITY_FILE).write_text(json.dumps(asdict(made_with), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--out ({folder}) cannot be written: {error.strerror}: choose another folder") from error


def find_edits(listed: ClipList, folder: Path) -> dict[str, Path]:
    """Returns the edits that are there, by the clips' names.

    An edit is called like its clip here, or like the list's own name of it or its source where no other row has that;
    it may lie in a folder of its category, where only rows of the category count.
    """
    everywhere: Counter[str] = Counter()
    for (_, name), count in listed.given_names.items():
        everywhere[name] += count
    found: dict[str, Path] = {}
    for clip in listed.clips:
        own = folder / clip.category
        places = [folder / f"{clip.name}.mp4", own / f"{clip.name}.mp4"]
        for name in given_names(clip.given_id, clip.path):
            places += [folder / f"{name}.mp4"] * (everywhere[name] == 1)
            places += [own / f"{name}.mp4"] * (listed.given_names[clip.category, name] == 1)
        path = next((place for place in places if place.is_file()), None)
        if path is not None:
            found[clip.name] = path
    return found


def make_edits(
    opened: OpenCheckpoint,
    clips: Sequence[SourceClip],
    folder: Path,
    settings: SamplingSettings,
    max_frames: int,
    on_step: Callable[[int], None],
) -> Mapping[str, str]:
    """Edits clips and writes them, each with a picture; all ranks call it alike.

    Args:
        opened: The model.
        clips: Those that are missing.
        folder: Where they go.
        settings: How to sample.
        max_frames: Of a longer clip its start is edited.
        on_step: Called with the sampling steps done so far, of all clips.

    Returns:
        Why clips could not be edited, by name.

    Raises:
        OutputError: The disk refuses.
    """
    from sama_mega.inference.edit_clip import edit_clip, write_edit
    from sama_mega.train.agreement import from_first_rank

    failed: dict[str, str] = {}
    for number, clip in enumerate(clips):

        def count(step: int, before: int = number * settings.steps) -> None:
            on_step(before + step)

        try:
            edited = edit_clip(opened, clip.path, clip.instruction, settings, max_frames, count, cut=True)
        except (ClipError, ConfigError) as error:
            failed[clip.name] = f"not edited: {error}"
            continue
        # A judge hears nothing, and a sound would outlast the frames of a clip that was cut.
        silent = replace(edited, path=None)
        write = partial(write_edit, silent, folder / f"{clip.name}.mp4", clip.instruction)
        from_first_rank(opened.context, write)
    return failed
