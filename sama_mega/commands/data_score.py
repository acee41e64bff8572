"""`sama-mega data score`: asks a vision-language model how good each edit is; says first what that costs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sama_data.errors import DataError
from sama_data.journal import journal_path
from sama_data.manifest import load_manifest
from sama_data.rewrite import check_output
from sama_data.score.journal import Answers, Journal, read_journal
from sama_data.score.manifest import Outcome, ask_all, write_scores
from sama_data.score.plan import TOKEN_FORMULA, Plan, make_plan
from sama_data.score.settings import EndpointSettings, JudgeSettings

KEY_VARIABLE = "SAMA_MEGA_SCORE_API_KEY"

_SECONDS_BETWEEN_LINES = 30.0
_SHOWN_REASONS = 8


@dataclass(frozen=True)
class Options:
    """What users may choose besides the judge and the endpoint.

    Attributes:
        rescore: Whether to judge rows too that have all their scores.
        retry_unscored: Whether to ask again about rows that the model did not answer properly before.
        input_price: Price of a million tokens read, None where it is not known.
        output_price: Price of a million tokens written, likewise.
        yes: Whether to ask without a question.
        dry_run: Whether to show the estimate alone.
    """

    rescore: bool = False
    retry_unscored: bool = False
    input_price: float | None = None
    output_price: float | None = None
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
    path, identity = journal_path(out), judge.identity()

    def plan_now(answers: Answers) -> Plan:
        return make_plan(dataset, judge, answers, options.rescore, options.retry_unscored)

    answers = read_journal(path, identity)
    plan = plan_now(answers)
    report = {"out": str(out), **_show_estimate(plan, judge, options)}
    if not options.dry_run:
        if plan.questions:
            _ask_to_go_on(options)
        with Journal(path, identity) as journal:
            if not journal.answers.equals(answers):  # another run has ended meanwhile
                plan = plan_now(journal.answers)
            started = time.monotonic()
            with _progress() as show:
                outcome = ask_all(dataset, plan, judge, endpoint, journal, show)
            counts = write_scores(dataset, out, plan, judge, endpoint, journal.answers, outcome)
        _show_outcome(out, counts, outcome, time.monotonic() - started)
        tokens = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens}
        report |= counts | {"judged": outcome.num_judged, "requests": outcome.num_requests} | tokens
    if as_json:
        print(json.dumps(report))
    return 1 if plan.questions and not options.dry_run and not report["scored"] else 0


def api_key(variable: str | None) -> str | None:
    """Returns the key in an environment variable; None where the usual one is not set.

    Args:
        variable: The variable's name; None for the usual one.

    Raises:
        DataError: A variable was named that is not set.
    """
    value = os.environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not value:
        raise DataError(f"--api-key-variable ({variable}): the environment has no such variable: export it")
    return value or None


def _show_estimate(plan: Plan, judge: JudgeSettings, options: Options) -> dict[str, object]:
    estimate = plan.estimate
    for reason, count in plan.left_alone.items():
        print(f"not asked  {count} rows: {reason}")
    print(f"to judge   {estimate.videos} video and {estimate.images} image pairs, {judge.turns} turns by {judge.model}")
    print(f"requests   {estimate.requests} with {estimate.pictures} pictures in all")
    read = estimate.text_tokens + estimate.picture_tokens
    print(f"tokens     {read} read ({estimate.picture_tokens} of pictures), at most {estimate.answer_tokens} written:")
    print(f"           {TOKEN_FORMULA}")
    if estimate.assumed:
        print(f"           the manifest does not say how large or long {estimate.assumed} pairs are: `data probe` does")
    values: dict[str, object] = {"estimate": estimate.as_dict()}
    if options.input_price is not None or options.output_price is not None:
        values["price"] = estimate.price(options.input_price or 0.0, options.output_price or 0.0)
        print(f"price      at most {values['price']:.2f}, retries aside")
    return values


def _ask_to_go_on(options: Options) -> None:
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise DataError("nobody is there to agree to the estimate: add --yes to go on, or --dry-run to stop there")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise DataError("not agreed to: nothing was asked")


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


@contextmanager
def _progress() -> Iterator[Callable[[int, int, int], None]]:
    """Yields a callback (done, without scores, total): a bar on a terminal, a line now and then in a log."""
    if not sys.stderr.isatty():
        yield _log_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    unscored = TextColumn("{task.fields[unscored]} unscored")
    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), unscored, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("pairs", unscored=0)
        yield lambda done, failed, total: bar.update(task, completed=done, total=total, unscored=failed)


def _log_lines() -> Callable[[int, int, int], None]:
    """Returns a callback that prints a line to stderr at the end and at most every half minute before."""
    started = latest = time.monotonic()

    def report(done: int, failed: int, total: int) -> None:
        nonlocal latest
        now = time.monotonic()
        if done < total and now - latest < _SECONDS_BETWEEN_LINES:
            return
        latest = now
        left = (total - done) * (now - started) / done
        print(f"pairs {done}/{total}, {failed} unscored, {left:.0f} s left", file=sys.stderr, flush=True)

    return report
