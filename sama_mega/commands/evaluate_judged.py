"""`sama-mega evaluate CHECKPOINT vie-bench` and the like: real clips are edited, and a judge scores the edits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.journal import read_lines
from sama_data.score.client import EndpointError, EndpointRefusal
from sama_data.score.journal import Journal, read_journal
from sama_data.score.settings import EndpointSettings, JudgeSettings
from sama_mega.commands.judging import Prices, ask_to_go_on, asking_progress, show_estimate
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.judged.clips import ClipList, SourceClip, read_clips
from sama_mega.judged.edits import MadeWith, check_folder, claim_folder, find_edits, make_edits
from sama_mega.judged.judging import Pair, ask_about_edits, estimate, make_pairs, open_questions
from sama_mega.judged.question import question_digest
from sama_mega.judged.report import score_clips, show_table, write_scores, write_sheet
from sama_mega.judged.scores import ClipScores, table_rows
from sama_mega.judged.suite import Suite, load_suite
from sama_mega.parallel.rank_environment import RankEnvironment, read_rank_environment

JOURNAL_FILE = "judgements.jsonl"
EDITS_FOLDER = "edits"
_SHOWN_REASONS = 8


@dataclass(frozen=True)
class Options:
    """What users may choose besides the judge and the endpoint.

    Attributes:
        out: Folder for edits, answers, scores and the page.
        clips: The list of clips, or a folder with one.
        edits: Folder of edits that are there already; None makes them.
        limit: Clips at most of each category.
        weights: ``ema`` or ``model``.
        steps: Sampling steps; None takes the checkpoint's recipe.
        guidance: Guidance scale; None takes the checkpoint's recipe.
        max_frames: Of a longer clip its start is edited and judged.
        retry_unscored: Whether to ask again about edits that the model did not answer properly before.
        prices: What a million tokens cost.
        yes: Whether to go on after the estimate without a question.
        dry_run: Whether to show the estimate alone.
    """

    out: Path
    clips: Path
    edits: Path | None = None
    limit: int | None = None
    weights: str = "ema"
    steps: int | None = None
    guidance: float | None = None
    max_frames: int = 81
    retry_unscored: bool = False
    prices: Prices = field(default_factory=Prices)
    yes: bool = False
    dry_run: bool = False

    @property
    def edits_folder(self) -> Path:
        """Where the edits lie."""
        return self.out / EDITS_FOLDER if self.edits is None else self.edits


@dataclass(frozen=True)
class _Work:
    """What a run is about."""

    suite: Suite
    listed: ClipList
    judge: JudgeSettings
    options: Options

    @property
    def clips(self) -> tuple[SourceClip, ...]:
        return self.listed.clips

    @property
    def journal(self) -> Path:
        return self.options.out / JOURNAL_FILE

    @property
    def identity(self) -> dict[str, Any]:
        return {"suite": self.suite.title} | self.judge.identity(question_digest(self.suite))

    @property
    def score_names(self) -> tuple[str, ...]:
        return tuple(self.suite.form.keys)


def run(
    checkpoint: Path,
    suite_name: str,
    judge: JudgeSettings,
    endpoint: EndpointSettings | None,
    options: Options,
    as_json: bool = False,
) -> int:
    """Estimate, edit, ask, and show the table; a run that was killed goes on.

    Args:
        checkpoint: A checkpoint or a run folder, whose newest is taken; only a name where the edits are there already.
        suite_name: A suite's name, or a YAML file.
        judge: How edits are judged.
        endpoint: Who judges them; None for a dry run.
        options: The rest.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0; 1 when the judge was not to be had for some edits (the same command asks again), or nothing at
        all has scores.

    Raises:
        ConfigError: The suite, the list of clips or a folder is wrong.
        DataError: The journal is wrong, nobody agreed to the estimate, or the endpoint turns us away.
    """
    ranks = read_rank_environment(os.environ)
    try:
        work = _prepare(suite_name, judge, options)
        if endpoint is None and not options.dry_run:
            raise ConfigError("--endpoint is missing: name an OpenAI-compatible server, or add --dry-run")
        made_with = _made_with(checkpoint, options)
        if made_with is not None:
            checkpoint = Path(made_with.checkpoint)  # that step from here on: the run may train on and save
            # The first rank alone: where the run saved meanwhile, the others found another step.
            if ranks.rank == 0:
                check_folder(options.edits_folder, made_with)
        values = _agree_to_cost(work, ranks) | {"checkpoint": str(checkpoint)}
        if endpoint is None or options.dry_run:
            return _finish(values, 0, ranks, as_json)
        unmade = _without_edit(work) if made_with is not None else []
        if made_with is not None and ranks.rank == 0:
            claim_folder(options.edits_folder, made_with)
    except (UserError, DataError) as error:
        error.told_by_first_rank = ranks.rank > 0
        raise
    unedited = _edit(checkpoint, work, unmade, ranks) if unmade else {}
    if ranks.rank > 0:
        return 0
    try:
        values |= _judge(work, checkpoint, endpoint, unedited)
    except EndpointRefusal:
        raise
    except EndpointError as error:
        print(f"error: {error}; all edits and answers are kept: start the same command again", file=sys.stderr)
        return 1
    return _finish(values, 1 if values["absent"] or not values["scored"] else 0, ranks, as_json)


def _prepare(suite_name: str, judge: JudgeSettings, options: Options) -> _Work:
    suite = load_suite(suite_name)
    if options.edits is not None and not options.edits.is_dir():
        raise ConfigError(f"--edits ({options.edits}) is no folder: name the one with the edited clips")
    listed = read_clips(options.clips, suite, options.limit)
    return _Work(suite, listed, judge, options)


def _made_with(checkpoint: Path, options: Options) -> MadeWith | None:
    """Returns what edits are made with; None where none are made."""
    from sama_mega.checkpoint.folder import resolve_checkpoint, written_at

    if options.edits is not None or options.dry_run:
        return None
    step = resolve_checkpoint(checkpoint).resolve()
    return MadeWith(
        checkpoint=str(step),
        checkpoint_written=written_at(step),
        weights=options.weights,
        steps=options.steps,
        guidance=options.guidance,
        max_frames=options.max_frames,
    )


def _without_edit(work: _Work) -> list[SourceClip]:
    found = find_edits(work.listed, work.options.edits_folder)
    return [clip for clip in work.clips if clip.name not in found]


def _agree_to_cost(work: _Work, ranks: RankEnvironment) -> dict[str, Any]:
    """Shows what the run will do, and has the user agree to it."""
    options, suite = work.options, work.suite
    unmade = _without_edit(work)
    if ranks.rank > 0:
        return {}
    pairs = make_pairs(work.clips, find_edits(work.listed, options.edits_folder))
    answers = read_journal(work.journal, work.identity, work.score_names)
    questions = open_questions(pairs, work.judge, answers, options.retry_unscored)
    counts = Counter(clip.category for clip in work.clips)
    kinds = ", ".join(f"{item.label} {counts[item.key]}" for item in suite.categories if counts[item.key])
    print(f"suite      {suite.title}: {len(work.clips)} clips ({kinds})")
    for reason, count in work.listed.left_out.items():
        print(f"left out   {count} clips: {reason}")
    print(f"edits      {len(pairs)} of {len(work.clips)} are in {options.edits_folder}")
    # Edits that somebody else made are not made here.
    to_come = unmade if options.edits is None else []
    cost = estimate(suite, pairs, questions, to_come, work.judge)
    guessed = "{count} clips do not say how long they are: taken to be as long as is shown"
    values = show_estimate(cost, f"{cost.videos} edits", guessed, work.judge, options.prices)
    if (questions or to_come) and not options.dry_run:
        if ranks.world_size > 1 and not options.yes:
            raise DataError("several ranks cannot be asked to agree to the estimate: add --yes, or --dry-run")
        ask_to_go_on(options.yes)
    return values


def _edit(checkpoint: Path, work: _Work, unmade: Sequence[SourceClip], ranks: RankEnvironment) -> Mapping[str, str]:
    """Makes the edits that are missing; returns why some could not be made."""
    from sama_mega.inference.editor import SamplingSettings
    from sama_mega.inference.load import open_checkpoint
    from sama_mega.observe.sampling import sampling_progress

    options = work.options
    with open_checkpoint(checkpoint, options.weights, ranks.world_size, tiling="auto") as opened:
        diffusion = opened.recipe.diffusion
        settings = SamplingSettings(
            steps=diffusion.sampling_steps if options.steps is None else options.steps,
            guidance=diffusion.guidance if options.guidance is None else options.guidance,
            seed=opened.recipe.train.seed,
        )
        total = settings.steps * len(unmade)
        with sampling_progress(total, f"editing {len(unmade)} clips, step", opened.context.is_first_rank) as on_step:
            return make_edits(opened, unmade, options.edits_folder, settings, options.max_frames, on_step)


def _judge(work: _Work, checkpoint: Path, endpoint: EndpointSettings, unedited: Mapping[str, str]) -> dict[str, Any]:
    """Asks what is open, and writes and shows what came of all answers."""
    suite, options, clips = work.suite, work.options, work.clips
    pairs = make_pairs(clips, find_edits(work.listed, options.edits_folder))
    started = time.monotonic()
    with Journal(work.journal, work.identity, work.score_names, keeps_observations=True) as journal:
        questions = open_questions(pairs, work.judge, journal.answers, options.retry_unscored)
        with asking_progress() as show:
            outcome = ask_about_edits(suite, pairs, questions, work.judge, endpoint, journal, show)
        answers = journal.answers
    scores = score_clips(clips, pairs, answers, work.judge.turns, unedited, outcome.unscored)
    rows = table_rows(suite, scores)
    settings = {"checkpoint": str(checkpoint), "judge": work.identity, "endpoint": endpoint.chat_url}
    content = write_scores(options.out, suite, settings, rows, scores, clips, pairs)
    page = write_sheet(options.out, suite, scores, clips, pairs, _remarks(work, pairs))
    show_table(suite, rows)
    _show_missing(scores)
    print(f"{outcome.num_judged} edits judged now with {outcome.num_requests} requests in ", end="")
    print(f"{time.monotonic() - started:.1f} s; scores: {options.out}; to look at: {page}")
    if outcome.num_absent:
        print(f"the judge was not to be had for {outcome.num_absent} edits: the same command asks again")
    tokens = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
    missing = Counter(scored.reason for scored in scores if scored.reason is not None)
    return {
        "table": [asdict(row) for row in rows],
        "scored": rows[-1].num_scored,
        "clips": len(content["clips"]),
        "missing": dict(missing.most_common()),
        "absent": outcome.num_absent,
        "requests": outcome.num_requests,
        **tokens,
    }


def _remarks(work: _Work, pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Returns what the judge said that it saw, by clip."""
    names = {pair.key: pair.clip.name for pair in pairs}
    remarks: dict[str, list[str]] = defaultdict(list)
    for line in read_lines(work.journal, work.identity, "answers"):
        if "observations" in line and line["key"] in names:
            remarks[names[line["key"]]].append(line["observations"])
    return remarks


def _show_missing(scores: Sequence[ClipScores]) -> None:
    reasons = Counter(scored.reason for scored in scores if scored.reason is not None)
    if reasons:
        print(f"missing    {sum(reasons.values())} of {len(scores)} clips have no scores and count for no mean:")
    for place, (reason, count) in enumerate(reasons.most_common()):
        if place == _SHOWN_REASONS:
            print(f"           and {len(reasons) - place} more reasons: see scores.json")
            break
        print(f"           {count} clips: {reason}")


def _finish(values: Mapping[str, Any], status: int, ranks: RankEnvironment, as_json: bool) -> int:
    if as_json and ranks.rank == 0:
        print(json.dumps(values))
    return status
