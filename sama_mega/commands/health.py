"""`sama-mega health`: is every node of this job fit to train? Alone, is this one? Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sama_mega.cluster.health.first_rank import Outcome, check_as_first
from sama_mega.cluster.health.messages import MeetingError
from sama_mega.cluster.health.other_rank import check_as_other
from sama_mega.cluster.health.rank import Rank, read_rank
from sama_mega.cluster.health.report import report_lines, report_values
from sama_mega.cluster.health.rules import UNHEALTHY
from sama_mega.train.run_folder import RunFolder, RunFolderError

REPORT_NAME = "health.json"
_FAREWELL_SECONDS = 1.0


def run(recipe: str, overrides: Sequence[str], as_json: bool = False) -> int:
    """Checks this node, and with it all others where this is a rank of a job; rank 0 tells what was found.

    Args:
        recipe: YAML file; its run folder and layout are looked at.
        overrides: `a.b=value` items.
        as_json: Whether rank 0's last line is one JSON object.

    Returns:
        On every rank alike: 0 healthy, 1 not healthy, 2 where the recipe is wrong or does not fit the ranks.

    Raises:
        ConfigError: The ranks have no place to meet.
    """
    with _deaf_to_notice():
        rank = read_rank(recipe, overrides, os.environ)
        try:
            if rank.place.rank > 0:
                return check_as_other(rank)
            return check_as_first(rank, lambda outcome: _report(outcome, rank, as_json))
        except MeetingError as error:
            print(f"error: {error}", file=sys.stderr)
            return UNHEALTHY


@contextmanager
def _deaf_to_notice() -> Iterator[None]:
    """USR1 is Slurm's notice that time runs out; it would end a rank that does not expect it, and may come early."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _report(outcome: Outcome, rank: Rank, as_json: bool) -> None:
    _tell(outcome, as_json)
    _keep(outcome, rank)
    if outcome.status and rank.is_job:
        # srun passes output on in its own time, and drops what is under way once a task has failed.
        time.sleep(_FAREWELL_SECONDS)


def _tell(outcome: Outcome, as_json: bool) -> None:
    for line in report_lines(outcome):
        print(line)
    sys.stdout.flush()
    for finding in outcome.findings:
        print(f"{'error' if finding.is_error else 'warning'}: {finding.line}", file=sys.stderr)
    if as_json:
        print(json.dumps(report_values(outcome)), flush=True)


def _keep(outcome: Outcome, rank: Rank) -> None:
    """Leaves the report of a job in its run folder, for whoever wants to know later what a life ran on."""
    found = outcome.world.nodes[0].folder
    if found is None or found.error is not None or not rank.is_job:
        return
    folder = Path(found.path)
    if folder.is_dir():  # one that was made for this check alone is gone again
        values = {"at": datetime.now(UTC).isoformat(), "job": rank.key, **report_values(outcome)}
        with suppress(RunFolderError):  # the report has been told already
            RunFolder.write_atomically(folder / REPORT_NAME, json.dumps(values, indent=1) + "\n")
