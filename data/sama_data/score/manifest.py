"""Scores a manifest into a new one."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sama_data.dataset import Dataset
from sama_data.errors import ClipError, DataError
from sama_data.names import hash_names
from sama_data.rewrite import rewrite_manifest, target_names
from sama_data.score.client import EndpointError, JudgeClient, Unanswered
from sama_data.score.journal import Answers, Journal
from sama_data.score.pictures import make_exhibit
from sama_data.score.plan import Plan, Question
from sama_data.score.prompts import ANSWER_KEYS, make_messages
from sama_data.score.settings import EndpointSettings, JudgeSettings

UNSCORED = "unscored"

# Frames of so many clips are in memory at once, whatever the number of requests.
_MAX_DECODE_THREADS = 4

Report = Callable[[int, int, int], None]


@dataclass
class Outcome:
    """What asking came to.

    Attributes:
        num_requests: Requests sent, those that failed included.
        num_judged: Pairs that were judged in this run.
        prompt_tokens: Tokens that the endpoint counted in this run.
        completion_tokens: Likewise.
        unscored: For each pair without scores, by key, why.
    """

    num_requests: int = 0
    num_judged: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unscored: dict[str, str] = field(default_factory=dict)


def ask_all(
    dataset: Dataset,
    plan: Plan,
    judge: JudgeSettings,
    endpoint: EndpointSettings,
    journal: Journal,
    report: Report = lambda done, unscored, total: None,
) -> Outcome:
    """Asks what a plan wants to know; every answer goes to the journal at once.

    Args:
        dataset: The manifest.
        plan: What to ask.
        judge: How pairs are judged.
        endpoint: Where.
        journal: Where answers are kept.
        report: Called after each pair with the pairs done, those of them without scores, and all pairs.

    Raises:
        EndpointError: The endpoint refuses us, fails for too many rows in a row, or was there for none.
        DataError: The journal cannot be written, or a clip has a URL that cannot be read here.
    """
    run = _Run(dataset, plan, judge, endpoint, journal, report)
    try:
        asyncio.run(run.all())
    except ExceptionGroup as errors:
        ours, others = errors.split(DataError)
        if ours is None or others is not None:
            raise
        raise ours.exceptions[0] from None
    run.check_endpoint_was_there()
    return run.outcome


def write_scores(
    dataset: Dataset,
    out: Path,
    plan: Plan,
    judge: JudgeSettings,
    endpoint: EndpointSettings,
    answers: Answers,
    outcome: Outcome,
) -> dict[str, Any]:
    """Writes a manifest with the scores that were given, and with a column that says why others were not.

    Args:
        dataset: The manifest's rows when the plan was made.
        out: The Parquet file.
        plan: What was asked.
        judge: How pairs were judged.
        endpoint: Where.
        answers: All that was answered, in this run and before.
        outcome: What this run came to.

    Returns:
        The counts: rows, rows `scored` from the answers, rows `unscored` by reason, and rows left alone by reason.

    Raises:
        DataError: The manifest cannot be read or is not what it was, or `out` cannot be written.
    """
    scores, reasons = _columns(plan, judge, answers, outcome)

    num_seen = 0

    def transform(batch: pa.RecordBatch, first_row: int) -> pa.RecordBatch:
        nonlocal num_seen
        num_seen = first_row + batch.num_rows
        rows = slice(first_row, num_seen)
        # Judging takes hours: a manifest that was written anew meanwhile must not get another one's scores.
        if not np.array_equal(hash_names(target_names(batch)), plan.targets[rows]):
            raise _changed(dataset)
        for name, values in scores.items():
            found = pa.array(values[rows], from_pandas=True)  # NaN becomes null
            old = batch.column(name).cast(pa.float64()) if name in batch.schema.names else found
            batch = _with_column(batch, name, pc.coalesce(found, old))
        return _with_column(batch, UNSCORED, pa.array(reasons[rows], pa.large_string()))

    def describe() -> dict[str, Any]:
        if num_seen < len(dataset):
            raise _changed(dataset)
        return {"tool": "score", "judge": judge.identity(), "endpoint": endpoint.chat_url, **counts}

    unscored = Counter(reason for reason in reasons if reason is not None)
    counts = {
        "rows": len(plan.keys),
        "scored": int(np.count_nonzero(~np.isnan(scores["if_score"]))),
        "unscored": dict(unscored.most_common()),
        "left_alone": dict(plan.left_alone),
    }
    rewrite_manifest(dataset.parts[0].manifest, out, transform, describe)
    return counts


class _Run:
    """One run's state, all of it in the event loop's thread."""

    def __init__(
        self,
        dataset: Dataset,
        plan: Plan,
        judge: JudgeSettings,
        endpoint: EndpointSettings,
        journal: Journal,
        report: Report,
    ) -> None:
        self.outcome = Outcome(unscored=dict(journal.answers.given_up))
        self._dataset = dataset
        self._total = len(plan.questions)
        self._questions = iter(plan.questions)
        self._judge = judge
        self._endpoint = endpoint
        self._journal = journal
        self._report = report
        self._num_done = self._num_failed = self._failed_in_a_row = 0
        self._num_absent, self._last_absence = 0, ""

    async def all(self) -> None:
        num_threads = max(1, min(_MAX_DECODE_THREADS, os.cpu_count() or 1))
        pool = ThreadPoolExecutor(num_threads, "decode")
        client = JudgeClient(self._endpoint, self._judge)
        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(min(self._endpoint.concurrency, self._total)):
                    group.create_task(self._work(client, pool, self._questions))
        finally:
            self.outcome.num_requests = client.num_requests
            pool.shutdown(wait=True, cancel_futures=True)

    def check_endpoint_was_there(self) -> None:
        """Raises where no row at all got as far as an answer, good or bad: a manifest of that would tell nothing."""
        if self._num_absent and self._num_absent == self._total:
            raise EndpointError(
                f"{self._endpoint.chat_url}: none of {self._total} rows got an answer, the last for: "
                f"{self._last_absence}; nothing is written: start this command again when the endpoint is there"
            )

    async def _work(self, client: JudgeClient, pool: ThreadPoolExecutor, questions: Iterator[Question]) -> None:
        for question in questions:
            try:
                await self._judge_pair(client, pool, question)
            except ClipError as error:
                self._leave_unscored(question, f"{Path(error.path).name} {error.reason}")
            except Unanswered as error:
                await self._give_up(question, error)
            else:
                self._failed_in_a_row = 0
                self.outcome.num_judged += 1
                self.outcome.unscored.pop(question.key, None)
            self._num_done += 1
            self._report(self._num_done, self._num_failed, self._total)

    async def _judge_pair(self, client: JudgeClient, pool: ThreadPoolExecutor, question: Question) -> None:
        row = self._dataset[question.index]
        loop = asyncio.get_running_loop()
        exhibit = await loop.run_in_executor(pool, make_exhibit, row, self._judge)
        messages = make_messages(row.kind, row.text, exhibit.originals, exhibit.edits)
        # One after the other: the pictures are in the server's prefix cache from the second on.
        for turn in question.turns:
            verdict = await client.ask(messages, row.kind, turn)
            await asyncio.to_thread(self._journal.add_turn, question.key, row.sample_id, turn, verdict)
            self.outcome.prompt_tokens += verdict.prompt_tokens
            self.outcome.completion_tokens += verdict.completion_tokens

    async def _give_up(self, question: Question, error: Unanswered) -> None:
        self._leave_unscored(question, error.reason)
        # What the endpoint was not there to answer is asked again by the next run.
        if error.is_final:
            sample_id = self._dataset[question.index].sample_id
            await asyncio.to_thread(self._journal.give_up, question.key, sample_id, error.reason)
        else:
            self._num_absent, self._last_absence = self._num_absent + 1, error.reason
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._endpoint.max_failed_rows:
            raise EndpointError(
                f"{self._endpoint.chat_url}: {self._failed_in_a_row} rows in a row got no scores, the last for: "
                f"{error.reason}; start this command again when that is mended (--retry-unscored asks about rows "
                "again that got wrong answers)"
            )

    def _leave_unscored(self, question: Question, reason: str) -> None:
        self.outcome.unscored[question.key] = reason
        self._num_failed += 1


def _columns(
    plan: Plan, judge: JudgeSettings, answers: Answers, outcome: Outcome
) -> tuple[dict[str, np.ndarray], list[str | None]]:
    """Returns each score column, NaN where it stays as it is, and for each row why it was not scored."""
    scores = {name: np.full(len(plan.keys), np.nan) for name in ANSWER_KEYS}
    reasons: list[str | None] = [None] * len(plan.keys)
    for index, key in enumerate(plan.keys):
        if key is None:
            continue
        found = answers.scores(key, judge.turns)
        if found is None:
            reasons[index] = outcome.unscored.get(key, "was not asked about")
            continue
        for name, value in found.items():
            scores[name][index] = value
    return scores, reasons


def _changed(dataset: Dataset) -> DataError:
    return DataError(
        f"{dataset.name}: its rows changed while they were judged: start this command again, the answers are kept"
    )


def _with_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    place = batch.schema.get_field_index(name)
    return batch.append_column(name, values) if place < 0 else batch.set_column(place, name, values)
