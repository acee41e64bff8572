"""Which recipes a submission runs: the stages, what each starts from, and the elements of a sweep."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sama_mega.cluster.settings import DEFAULT_GPUS_PER_NODE, ClusterSettings
from sama_mega.cluster.sweep import Sweep, combinations, element_name, parse_sweep
from sama_mega.config import Recipe, load_recipe
from sama_mega.config.errors import ConfigError

SWEEP_FOLDER = "sweep"
START_KEY = "checkpoint.init_from"
_STAGES = {"0": (0,), "1": (1,), "0,1": (0, 1)}
_FOR_ONE_STAGE = re.compile(r"([01]):(.*)", re.DOTALL)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a submission.

    Attributes:
        stage: 0 or 1.
        path: Its recipe's file.
        run_folder: Where it runs; above the elements' folders in a sweep.
        recipes: The resolved recipe, or one for each element of a sweep.
        overrides: What the user asked for in each of `recipes`.
        is_sweep: Whether it is an array of jobs.
        follows: Whether it starts from the stage before it: element by element where both are sweeps.
    """

    stage: int
    path: str
    run_folder: Path
    recipes: tuple[Recipe, ...]
    overrides: tuple[tuple[str, ...], ...]
    is_sweep: bool
    follows: bool

    def gpus_per_node(self, settings: ClusterSettings) -> int:
        """GPUs of a node: the settings', or what the recipe is written for."""
        if settings.gpus_per_node != "auto":
            return settings.gpus_per_node
        return 0 if self.recipes[0].train.cpu_threads is not None else DEFAULT_GPUS_PER_NODE


def plan_stages(recipe: str, stages: str | None, overrides: Sequence[str], sweeps: Sequence[str]) -> list[StagePlan]:
    """Load the recipes of a submission.

    Args:
        recipe: A recipe of one of the stages.
        stages: `0`, `1` or `0,1`; None takes the recipe's own.
        overrides: `A.B=V` for every stage, `0:A.B=V` or `1:A.B=V` for one.
        sweeps: `A.B=V1,V2`, or the same for one stage.

    Returns:
        The stages in order.

    Raises:
        ConfigError: A recipe is missing or breaks a rule, or the stages do not go together.
    """
    own_stage = load_recipe(recipe, [text for only, text in map(_for_stage, overrides) if only is None]).train.stage
    wanted = _parse_stages(stages, own_stage)
    for only, text in map(_for_stage, [*overrides, *sweeps]):
        if only is not None and only not in wanted:
            raise ConfigError(f"{only}:{text} is for stage {only}, which --stages {_join(wanted)} leaves out")
    parsed = [(only, parse_sweep(text)) for only, text in map(_for_stage, sweeps)]
    _require_one_swept_stage(parsed, wanted)
    _refuse_overridden_sweeps(overrides, parsed, wanted)
    plans: list[StagePlan] = []
    for stage in wanted:
        path = recipe if stage == own_stage else _sibling(recipe, own_stage, stage)
        before = plans[-1] if plans else None
        plans.append(_plan_stage(stage, path, overrides, parsed, before))
    if len(plans) == 2:
        _require_own_folders(plans[0], plans[1])
    return plans


def _plan_stage(
    stage: int,
    path: str,
    overrides: Sequence[str],
    sweeps: Sequence[tuple[int | None, Sweep]],
    before: StagePlan | None,
) -> StagePlan:
    # What is for one stage wins over what is for all.
    common = [text for only, text in map(_for_stage, overrides) if only is None]
    base = [*common, *(text for only, text in map(_for_stage, overrides) if only == stage)]
    if before is not None:
        _refuse_another_start(stage, overrides, sweeps)
    follows_sweep = before is not None and before.is_sweep
    # A stage after a sweep has an element for each of the sweep's, even where none of its own keys is swept.
    named = [sweep for only, sweep in sweeps if only in (None, stage) or (follows_sweep and only == 0)]
    own_keys = {sweep.key for only, sweep in sweeps if only in (None, stage)}
    elements = combinations(named)
    asked = [(*base, *(text for text in element if text.partition("=")[0] in own_keys)) for element in elements]
    root = load_recipe(path, asked[0]).train.run_folder
    recipes = []
    for index, (element, texts) in enumerate(zip(elements, asked, strict=True)):
        added = []
        if named:
            added.append(_override("train.run_folder", root / SWEEP_FOLDER / element_name(index, element)))
        if before is not None:
            start = before.recipes[index if follows_sweep else 0].train.run_folder
            added.append(_override(START_KEY, start))
        recipes.append(_load_for_stage(path, [*texts, *added], stage))
    return StagePlan(stage, path, root, tuple(recipes), tuple(asked), bool(named), before is not None)


def _load_for_stage(path: str, overrides: Sequence[str], stage: int) -> Recipe:
    recipe = load_recipe(path, overrides)
    if recipe.train.stage != stage:
        raise ConfigError(
            f"{path}: train.stage ({recipe.train.stage}) must be {stage} to run as stage {stage}: give the recipe of "
            "that stage, or leave train.stage to the recipe"
        )
    return recipe


def _override(key: str, path: Path) -> str:
    return f"{key}={json.dumps(str(path), ensure_ascii=False)}"  # JSON is YAML in which no path needs care


def _for_stage(text: str) -> tuple[int | None, str]:
    """The stage that `0:A.B=V` is for, None for every stage, and the rest."""
    match = _FOR_ONE_STAGE.fullmatch(text)
    return (int(match.group(1)), match.group(2)) if match else (None, text)


def _parse_stages(stages: str | None, own_stage: int) -> tuple[int, ...]:
    if stages is None:
        return (own_stage,)
    wanted = _STAGES.get(stages.replace(" ", ""))
    if wanted is None:
        raise ConfigError(f"--stages ({stages}) must be one of {'; '.join(_STAGES)}")
    return wanted


def _join(stages: Sequence[int]) -> str:
    return ",".join(map(str, stages))


def _sibling(recipe: str, own_stage: int, stage: int) -> str:
    """The recipe of another stage, named alike beside it."""
    path = Path(recipe)
    own, other = f"stage{own_stage}", f"stage{stage}"
    where = f"the recipe of stage {stage} is looked for beside {recipe}"
    if own not in path.name:
        raise ConfigError(f"{where}, with {other} for {own} in its name, which has no {own}: rename the recipe")
    sibling = path.with_name(path.name.replace(own, other))
    # A recipe of the user's own goes with another of their own, not with a bundled one.
    if path.exists() and not sibling.exists():
        raise ConfigError(f"{sibling}: no such recipe: {where}: write it, or use --stages {own_stage}")
    return str(sibling)


def _refuse_another_start(stage: int, overrides: Sequence[str], sweeps: Sequence[tuple[int | None, Sweep]]) -> None:
    asked = [(only, sweep.key) for only, sweep in sweeps]
    asked += [(only, text.partition("=")[0].strip()) for only, text in map(_for_stage, overrides)]
    if (None, START_KEY) in asked or (stage, START_KEY) in asked:
        raise ConfigError(
            f"{START_KEY} of stage {stage} is stage 0's run folder under --stages 0,1: write 0:{START_KEY}=... for "
            f"stage 0's own, or submit stage {stage} alone with --stages {stage}"
        )


def _require_one_swept_stage(sweeps: Sequence[tuple[int | None, Sweep]], wanted: Sequence[int]) -> None:
    """Every element of stage 0 has one of stage 1 after it, so stage 1 cannot have more of its own."""
    late = [sweep.key for only, sweep in sweeps if only == 1]
    early = [sweep.key for only, sweep in sweeps if only != 1]
    if len(wanted) == 2 and late and early:
        raise ConfigError(
            f"--sweep 1:{late[0]} does not go with a sweep of stage 0 ({early[0]}): write both without 0: and 1:, "
            "which sweeps them in both stages, or sweep one stage"
        )


def _refuse_overridden_sweeps(
    overrides: Sequence[str], sweeps: Sequence[tuple[int | None, Sweep]], wanted: Sequence[int]
) -> None:
    """A sweep wins over an override of its key; one that counts in no stage then would be asked for in vain."""
    swept = {(stage, sweep.key) for only, sweep in sweeps for stage in (wanted if only is None else (only,))}
    for override in overrides:
        only, text = _for_stage(override)
        key = text.partition("=")[0].strip()
        if {(stage, key) for stage in (wanted if only is None else (only,))} <= swept:
            raise ConfigError(f"override '{override}': --sweep sets {key} in every job: remove one of them")


def _require_own_folders(first: StagePlan, second: StagePlan) -> None:
    if os.path.realpath(first.run_folder) == os.path.realpath(second.run_folder):
        folder = first.run_folder
        raise ConfigError(
            f"train.run_folder ({folder}) is the same in stages 0 and 1, and each needs its own: use "
            f"0:train.run_folder={folder}/stage0 1:train.run_folder={folder}/stage1"
        )
