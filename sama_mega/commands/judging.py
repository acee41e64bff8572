"""What every command that asks a judge says and does around it: the estimate, the user's consent, the progress."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sama_data.errors import DataError
from sama_data.score.plan import TOKEN_FORMULA, Estimate
from sama_data.score.settings import JudgeSettings
from sama_mega.commands.judge_options import KEY_VARIABLE

_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost.

    Attributes:
        read: None where it is not known.
        written: Likewise.
    """

    read: float | None = None
    written: float | None = None


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


def show_estimate(
    estimate: Estimate, pairs: str, guessed: str, judge: JudgeSettings, prices: Prices
) -> dict[str, object]:
    """Prints what a run will cost.

    Args:
        estimate: The counts.
        pairs: What is judged, in words.
        guessed: What to say of pairs whose size is a guess; `{count}` is their number.
        judge: How it is judged.
        prices: For the last line, where they are known.

    Returns:
        The same as plain values.
    """
    print(f"to judge   {pairs}, {judge.turns} turn{'s' if judge.turns > 1 else ''} by {judge.model}")
    print(f"requests   {estimate.requests} with {estimate.pictures} pictures in all")
    read = estimate.text_tokens + estimate.picture_tokens
    print(f"tokens     {read} read ({estimate.picture_tokens} of pictures), at most {estimate.answer_tokens} written:")
    print(f"           {TOKEN_FORMULA}")
    if estimate.assumed:
        print(f"           {guessed.format(count=estimate.assumed)}")
    values: dict[str, object] = {"estimate": estimate.as_dict()}
    if prices.read is not None or prices.written is not None:
        values["price"] = estimate.price(prices.read or 0.0, prices.written or 0.0)
        print(f"price      at most {values['price']:.2f}, retries aside")
    return values


def ask_to_go_on(yes: bool) -> None:
    """Has the user agree to the estimate.

    Args:
        yes: They did already.

    Raises:
        DataError: They do not, or nobody is there to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise DataError("nobody is there to agree to the estimate: add --yes to go on, or --dry-run to stop there")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise DataError("not agreed to: nothing was asked")


@contextmanager
def asking_progress() -> Iterator[Callable[[int, int, int], None]]:
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
