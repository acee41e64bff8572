"""`sama-mega data score`: asks a vision-language model how good each edit is; says first what that costs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from sama_data.journal import journal_path
from sama_data.manifest import load_manifest
from sama_data.rewrite import check_output
from sama_data.score.asking import Outcome
from sama_data.score.journal import Answers, Journal, read_journal
from sama_data.score.manifest import ask_about_rows, write_scores
from sama_data.score.plan import Plan, make_plan
from sama_data.score.prompts import prompt_digest
from sama_data.score.settings import EndpointSettings, JudgeSettings
from sama_mega.commands.judging import Prices, ask_to_go_on, asking_progress, show_estimate

_SHOWN_REASONS = 8


@dataclass(frozen=True)
class Options:
    """What users may choose besides the judge and the endpoint.

    Attributes:
        rescore: Whether to judge rows too that have all their scores.
        retry_unscored: Whether to ask again about rows that the model did not answer properly before.
        prices: What a million tokens cost.
        yes: Whether to ask without a question.
        dry_run: Whether to show the estimate alone.
    """

    rescore: bool = False
    retry_unscored: bool = False
    prices: Prices = field(default_factory=Prices)
    yes: bool = False
    dry_run: bool = False


def run(
    manifest: Path, out: Path, judge: JudgeSettings, endpoint: EndpointSettings, options: Options, as_json: bool = False
) -> int:
    """Estimate, ask, and write a manifest with scores; a run that was killed goes on.

    Args:
        manifest: JSONL or Parquet.
        out: The Parquet manifest to write; the journal of answers lies beside it.
        judge: How edits are judged.
        endpoint: Who judges them.
        options: The rest.
        as_json: Whether the last line of stdout is one JSON object.

    Returns:
        Exit status 0; 1 when rows were asked about and none of the manifest's has scores from it.

    Raises:
        DataError: An option, the manifest or the journal is wrong, or the endpoint cannot be used.
    """
    check_output(manifest, out)
    dataset = load_manifest(manifest)
    path, identity = journal_path(out), judge.identity(prompt_digest())

    def plan_now(answers: Answers) -> Plan:
        return make_plan(dataset, judge, answers, options.rescore, options.retry_unscored)

    answers = read_journal(path, identity)
    plan = plan_now(answers)
    report = {"out": str(out), **_show_estimate(plan, judge, options)}
    if not options.dry_run:
        if plan.questions:
            ask_to_go_on(options.yes)
        with Journal(path, identity) as journal:
            if not journal.answers.equals(answers):  # another run has ended meanwhile
                plan = plan_now(journal.answers)
            started = time.monotonic()
            with asking_progress() as show:
                outcome = ask_about_rows(dataset, plan, judge, endpoint, journal, show)
            counts = write_scores(dataset, out, plan, judge, endpoint, journal.answers, outcome)
        _show_outcome(out, counts, outcome, time.monotonic() - started)
        tokens = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
        report |= counts | {"judged": outcome.num_judged, "requests": outcome.num_requests} | tokens
    if as_json:
        print(json.dumps(report))
    return 1 if plan.questions and not options.dry_run and not report["scored"] else 0


def _show_estimate(plan: Plan, judge: JudgeSettings, options: Options) -> dict[str, object]:
    for reason, count in plan.left_alone.items():
        print(f"not asked  {count} rows: {reason}")
    pairs = f"{plan.estimate.videos} video and {plan.estimate.images} image pairs"
    guessed = "the manifest does not say how large or long {count} pairs are: `data probe` does"
    return show_estimate(plan.estimate, pairs, guessed, judge, options.prices)


def _show_outcome(out: Path, counts: dict[str, object], outcome: Outcome, seconds: float) -> None:
    unscored = counts["unscored"]
    assert isinstance(unscored, dict)
    print(f"{counts['scored']} of {counts['rows']} rows have scores from this judge in {out} ({seconds:.1f} s)")
    print(
        f"  {outcome.num_judged} pairs judged now with {outcome.num_requests} requests; the endpoint counted "
        f"{outcome.prompt_tokens} tokens read and {outcome.completion_tokens} written"
    )
    for place, (reason, count) in enumerate(unscored.items()):
        if place == _SHOWN_REASONS:
            print(f"  and {len(unscored) - place} more reasons: see the column `unscored`")
            break
        print(f"  unscored: {count} rows: {reason}")
