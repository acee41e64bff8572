"""What the study runs: variants, sizes, seeds, and where everything lies. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from operator import attrgetter
from pathlib import Path
from typing import Any

from sama_mega.config import load_recipe, recipe_to_yaml
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe

STAGES = (0, 1)
KINDS = ("recolour", "remove", "style", "background")
"""The edits of the study: the kinds that small models learn. Others need an absolute position, or finer latents."""
RECIPES = Path("recipes/ablation")
SET_BY_STUDY = ("train.seed", "train.run_folder", "data.manifest", "checkpoint.init_from")
"""Keys of a run that its place in the study decides."""
STUDY_FILE = "study.json"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Of its recipes, `recipes/ablation/NAME_stage{0,1}.yaml`.
        label: In tables and pictures.
    """

    name: str
    label: str

    def recipe_path(self, stage: int) -> Path:
        """Its recipe of a stage, below the working directory."""
        return RECIPES / f"{self.name}_stage{stage}.yaml"


VARIANTS = (
    Variant("baseline", "baseline"),
    Variant("sa", "+SA"),
    Variant("ma", "+MA"),
    Variant("both", "+SA +MA"),
    Variant("both_shifted_rope", "+SA +MA, shifted RoPE"),
)
"""The first is what the others are compared with."""
ALSO_COMPARED = (("both_shifted_rope", "both"),)
"""Variants that differ from another than the first in one thing only: they are compared with it too."""


@dataclass(frozen=True)
class Size:
    """How large a study is; the recipes are written for the CPU's.

    Attributes:
        name: On the command line.
        num_videos: Video pairs of the world.
        num_images: Image pairs of the world.
        clips_per_kind: Held-out clips of each kind of edit, and of each pretext task.
        curve_clips_per_kind: The same for checkpoints on the way.
        overrides: `a.b=value` for both stages.
        stage_overrides: The same for one stage.
    """

    name: str
    num_videos: int
    num_images: int
    clips_per_kind: int
    curve_clips_per_kind: int
    overrides: tuple[str, ...] = ()
    stage_overrides: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


SIZES = {
    size.name: size
    for size in (
        Size("cpu", 2000, 4000, clips_per_kind=48, curve_clips_per_kind=24),
        Size(
            "gpu",
            6000,
            12000,
            clips_per_kind=96,
            curve_clips_per_kind=48,
            overrides=(
                *("model.dim=192", "model.num_heads=6", "model.ffn_dim=512", "data.max_frames=17"),
                *("optimizer.learning_rate=4.0e-3", "data.decode_threads=2"),
            ),
            stage_overrides=(
                (
                    *("data.images_per_step=12", "data.videos_per_step=12"),
                    *("data.micro_batch_images=12", "data.micro_batch_videos=12"),
                ),
                (
                    *("data.images_per_step=16", "data.videos_per_step=10"),
                    *("data.micro_batch_images=16", "data.micro_batch_videos=10"),
                ),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Study:
    """A study in a folder.

    Attributes:
        size: How large.
        folder: Where it lives.
        num_seeds: Seeds 0, 1, ... of every variant.
        extra_overrides: `a.b=value` for every run, which win.
        variants: Those that run; the first is what the others are compared with.
    """

    size: Size
    folder: Path
    num_seeds: int = 3
    extra_overrides: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = VARIANTS

    def require_fair_overrides(self) -> None:
        """Refuses an override of what makes the runs differ: they would be one run, compared with itself.

        Raises:
            ConfigError: There is one; or a recipe is missing, or an override breaks a rule.
        """
        for chain in self.chains():
            for stage in STAGES:
                chain.recipe(stage)
        as_written = replace(self, extra_overrides=())
        for text in self.extra_overrides:
            key = text.partition("=")[0]
            recipes = [[Chain(as_written, variant, 0).recipe(stage) for variant in self.variants] for stage in STAGES]
            if key in SET_BY_STUDY:
                raise ConfigError(f"{text}: the study sets {key} of every run (--seeds, --out): leave it out")
            if any(len({repr(attrgetter(key)(recipe)) for recipe in of_stage}) > 1 for of_stage in recipes):
                raise ConfigError(f"{text}: {key} is what the variants differ in: leave it out")

    def save(self) -> None:
        """Writes what its runs are made of into its folder; the number of seeds may grow later.

        Raises:
            ConfigError: The folder has another study, or cannot be written.
        """
        file, ours = self.folder / STUDY_FILE, self._settings()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_text(json.dumps(ours, indent=2) + "\n")
            there = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"--out ({self.folder}) cannot be used: {error}: choose another folder") from error
        if there != json.loads(json.dumps(ours)):
            raise ConfigError(f"--out ({self.folder}) has a study of another size or recipe: choose another folder")

    @classmethod
    def load(cls, folder: Path) -> Study:
        """The study that `save` wrote, with one seed."""
        settings = json.loads((folder / STUDY_FILE).read_text())
        size = settings["size"]
        size["overrides"] = tuple(size["overrides"])
        size["stage_overrides"] = tuple(tuple(items) for items in size["stage_overrides"])
        return cls(Size(**size), folder, 1, tuple(settings["extra_overrides"]))

    def _settings(self) -> dict[str, Any]:
        recipes = {
            f"{variant.name}_stage{stage}": _digest(Chain(self, variant, 0).recipe(stage))
            for variant in self.variants
            for stage in STAGES
        }
        return {"size": asdict(self.size), "extra_overrides": self.extra_overrides, "recipes": recipes}

    @property
    def world(self) -> Path:
        """The synthetic world that all variants train on."""
        return self.folder / "world"

    def chains(self) -> list[Chain]:
        """All runs, seed after seed: a study that is cut short has whole seeds."""
        return [Chain(self, variant, seed) for seed in range(self.num_seeds) for variant in self.variants]

    def finished_scores(self) -> Iterator[tuple[Variant, list[dict[str, Any]]]]:
        """Every variant with the scores of its finished runs, by seed."""
        for variant in self.variants:
            files = [Chain(self, variant, seed).scores for seed in range(self.num_seeds)]
            yield variant, [json.loads(file.read_text()) for file in files if file.exists()]


@dataclass(frozen=True)
class Chain:
    """Stage 0, then stage 1, then the scores of a variant with one seed."""

    study: Study
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """In logs."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Holds its runs, logs and scores."""
        return self.study.folder / "runs" / self.variant.name / f"seed{self.seed}"

    @property
    def scores(self) -> Path:
        """Written last: what has it is finished."""
        return self.folder / SCORES_FILE

    def run_folder(self, stage: int) -> Path:
        """Of one stage."""
        return self.folder / f"stage{stage}"

    def overrides(self, stage: int) -> list[str]:
        """What its recipe of a stage does not say: size, seed, data and folders."""
        size, manifest = self.study.size, ("raw.jsonl", "pairs.jsonl")[stage]
        start = [f"checkpoint.init_from={self.run_folder(0)}"] if stage == 1 else []
        return [
            *size.overrides,
            *size.stage_overrides[stage],
            f"train.seed={self.seed}",
            f"train.run_folder={self.run_folder(stage)}",
            f"data.manifest={self.study.world / manifest}",
            *start,
            *self.study.extra_overrides,
        ]

    def recipe(self, stage: int) -> Recipe:
        """Its recipe of a stage.

        Raises:
            ConfigError: There is no such recipe below the working directory, or an override breaks a rule.
        """
        path = self.variant.recipe_path(stage)
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: run the study from the repository's root")
        return load_recipe(path, self.overrides(stage))


def _digest(recipe: Recipe) -> str:
    return blake2b(recipe_to_yaml(recipe).encode(), digest_size=8).hexdigest()
