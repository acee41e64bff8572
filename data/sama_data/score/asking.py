"""Asks a list of questions, many at a time; every answer goes to the journal at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sama_data.errors import ClipError, DataError
from sama_data.score.client import EndpointError, JudgeClient, Unanswered
from sama_data.score.form import AnswerForm
from sama_data.score.journal import Journal
from sama_data.score.settings import EndpointSettings, JudgeSettings

# Frames of so many clips are in memory at once, whatever the number of requests.
_MAX_DECODE_THREADS = 4

Report = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """One pair that is still to be judged.

    Attributes:
        index: Its place among the pairs: the first row in a manifest.
        key: Its name in the journal.
        turns: The turns that were not answered yet.
    """

    index: int
    key: str
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What the judge gets of one question.

    Attributes:
        sample_id: The pair's name for people.
        messages: What the judge is told and shown.
        form: What an answer must hold.
    """

    sample_id: str
    messages: list[dict[str, Any]]
    form: AnswerForm


@dataclass
class Outcome:
    """What asking came to.

    Attributes:
        num_requests: Requests sent, those that failed included.
        num_judged: Pairs that were judged in this run.
        num_absent: Pairs for which the endpoint was not to be had: the next run asks again.
        prompt_tokens: Tokens that the endpoint counted in this run.
        completion_tokens: Likewise.
        unscored: For each pair without scores, by key, why.
    """

    num_requests: int = 0
    num_judged: int = 0
    num_absent: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unscored: dict[str, str] = field(default_factory=dict)


def ask_all(
    questions: Sequence[Question],
    make_sheet: Callable[[Question], Sheet],
    judge: JudgeSettings,
    endpoint: EndpointSettings,
    journal: Journal,
    report: Report = lambda done, unscored, total: None,
) -> Outcome:
    """Asks what is still to be known.

    Args:
        questions: What to ask.
        make_sheet: Decodes what one question shows; called in several threads.
        judge: How pairs are judged.
        endpoint: Where.
        journal: Where answers are kept.
        report: Called after each pair with the pairs done, those of them without scores, and all pairs.

    Raises:
        EndpointError: The endpoint refuses us, fails for too many rows in a row, or was there for none.
        DataError: The journal cannot be written, or a clip has a URL that cannot be read here.
    """
    run = _Run(questions, make_sheet, judge, endpoint, journal, report)
    try:
        asyncio.run(run.all())
    except ExceptionGroup as errors:
        ours, others = errors.split(DataError)
        if ours is None or others is not None:
            raise
        raise ours.exceptions[0] from None
    run.check_endpoint_was_there()
    return run.outcome


class _Run:
    """One run's state, all of it in the event loop's thread."""

    def __init__(
        self,
        questions: Sequence[Question],
        make_sheet: Callable[[Question], Sheet],
        judge: JudgeSettings,
        endpoint: EndpointSettings,
        journal: Journal,
        report: Report,
    ) -> None:
        self.outcome = Outcome(unscored=dict(journal.answers.given_up))
        self._total = len(questions)
        self._questions = iter(questions)
        self._make_sheet = make_sheet
        self._judge = judge
        self._endpoint = endpoint
        self._journal = journal
        self._report = report
        self._num_done = self._num_failed = self._failed_in_a_row = 0
        self._last_absence = ""

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
        if self.outcome.num_absent and self.outcome.num_absent == self._total:
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
            self._num_done += 1
            self._report(self._num_done, self._num_failed, self._total)

    async def _judge_pair(self, client: JudgeClient, pool: ThreadPoolExecutor, question: Question) -> None:
        sheet = await asyncio.get_running_loop().run_in_executor(pool, self._make_sheet, question)
        try:
            # One after the other: the pictures are in the server's prefix cache from the second on.
            for turn in question.turns:
                verdict = await client.ask(sheet.messages, sheet.form, turn)
                await asyncio.to_thread(self._journal.add_turn, question.key, sheet.sample_id, turn, verdict)
                self.outcome.prompt_tokens += verdict.prompt_tokens
                self.outcome.completion_tokens += verdict.completion_tokens
        except Unanswered as error:
            await self._give_up(question, sheet.sample_id, error)
        else:
            self._failed_in_a_row = 0
            self.outcome.num_judged += 1
            self.outcome.unscored.pop(question.key, None)

    async def _give_up(self, question: Question, sample_id: str, error: Unanswered) -> None:
        self._leave_unscored(question, error.reason)
        # What the endpoint was not there to answer is asked again by the next run.
        if error.is_final:
            await asyncio.to_thread(self._journal.give_up, question.key, sample_id, error.reason)
        else:
            self.outcome.num_absent, self._last_absence = self.outcome.num_absent + 1, error.reason
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
