"""`sama-mega data preview`: a sheet of the samples that training will see, as a PNG or as HTML."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sama_data.dataset import Dataset
from sama_data.loader import LoaderSettings, Quarantine
from sama_data.manifest import load_manifest
from sama_mega.commands.recipe_manifests import open_manifests
from sama_mega.config import load_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.observe.sampling import sampling_progress
from sama_mega.preview.cards import Card, draw_cards
from sama_mega.preview.html_sheet import html_sheet
from sama_mega.preview.png_sheet import png_sheet
from sama_mega.train.loader_settings import loader_settings

_RECIPE_SUFFIXES = (".yaml", ".yml")
_SHEET_SUFFIXES = (".png", ".html")


def run(
    subject: str | Path, overrides: Sequence[str], out: Path, num_samples: int, seed: int | None, as_json: bool = False
) -> int:
    """Draw samples as training would and write them as a sheet.

    Args:
        subject: A manifest, shown with the 480p buckets, 81 frames and the paper's perturbations; or a recipe's YAML.
        overrides: `section.key=value` items of a recipe.
        out: The sheet, `.png` or `.html`; replaced whole. Bad clips are recorded beside it.
        num_samples: Samples to show.
        seed: Of order and perturbations; None takes the recipe's, for a manifest 0.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0.

    Raises:
        ConfigError: The recipe, the overrides or the name of the sheet is wrong, or the sheet cannot be written.
        DataError: A manifest cannot be used, or too many clips are bad.
    """
    if out.suffix.lower() not in _SHEET_SUFFIXES:
        raise ConfigError(f"--out {out} must end in {' or '.join(_SHEET_SUFFIXES)}")
    dataset, settings = _open(Path(subject), overrides)
    if seed is not None:
        settings = replace(settings, seed=seed)
    quarantine = out.with_suffix(".quarantine.jsonl")
    cards, replaced = _draw(dataset, settings, num_samples, quarantine)
    title = f"{subject}: {len(cards)} samples as training will see them, seed {settings.seed}"
    is_html = out.suffix.lower() == ".html"
    _write(out, html_sheet(cards, title).encode() if is_html else png_sheet(cards, title))
    for line in replaced:
        print(f"replaced   {line}")
    print(f"{len(cards)} samples in {out}")
    if as_json:
        samples = [{"sample_id": card.sample_id, "prompt": f"{card.prefix} {card.text}".strip()} for card in cards]
        facts = [dict(card.facts) for card in cards]
        shown = [sample | known for sample, known in zip(samples, facts, strict=True)]
        print(json.dumps({"out": str(out), "samples": shown, "replaced": replaced}))
    return 0


def _open(subject: Path, overrides: Sequence[str]) -> tuple[Dataset, LoaderSettings]:
    if subject.suffix.lower() in _RECIPE_SUFFIXES:
        recipe = load_recipe(subject, overrides)
        return open_manifests(recipe)[0], loader_settings(recipe)
    if overrides:
        raise ConfigError(f"{overrides[0]!r} belongs to a recipe, and {subject} is a manifest: leave it out")
    dataset = load_manifest(subject)
    wanted = [min(1, len(dataset.indices_of(kind))) for kind in ("image", "video")]
    return dataset, LoaderSettings(images_per_step=wanted[0], videos_per_step=wanted[1])


def _draw(
    dataset: Dataset, settings: LoaderSettings, num_samples: int, quarantine: Path
) -> tuple[list[Card], list[str]]:
    """The cards, and a line for every clip that was bad."""
    with suppress(OSError):
        quarantine.unlink()  # of an earlier sheet
    cards: list[Card] = []
    with sampling_progress(num_samples, "samples") as show:
        for card in draw_cards(dataset, settings, num_samples, Quarantine(quarantine)):
            cards.append(card)
            show(len(cards))
    bad = [json.loads(line) for line in quarantine.read_text("utf-8").splitlines()] if quarantine.exists() else []
    return cards, [f"{one['path']}: {one['reason']}" for one in bad]


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from error
