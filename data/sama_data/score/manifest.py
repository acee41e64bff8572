"""Scores a manifest into a new one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.names import hash_names
from sama_data.rewrite import rewrite_manifest, target_names
from sama_data.score.asking import Outcome, Question, Report, Sheet, ask_all
from sama_data.score.journal import Answers, Journal
from sama_data.score.pictures import make_exhibit
from sama_data.score.plan import Plan
from sama_data.score.prompts import ANSWER_KEYS, answer_form, make_messages, prompt_digest
from sama_data.score.settings import EndpointSettings, JudgeSettings

UNSCORED = "unscored"


def ask_about_rows(
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

    def make_sheet(question: Question) -> Sheet:
        row = dataset[question.index]
        exhibit = make_exhibit(row, judge)
        messages = make_messages(row.kind, row.text, exhibit.originals, exhibit.edits)
        return Sheet(row.sample_id, messages, answer_form(row.kind))

    return ask_all(plan.questions, make_sheet, judge, endpoint, journal, report)


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
        return {"tool": "score", "judge": judge.identity(prompt_digest()), "endpoint": endpoint.chat_url, **counts}

    unscored = Counter(reason for reason in reasons if reason is not None)
    counts = {
        "rows": len(plan.keys),
        "scored": int(np.count_nonzero(~np.isnan(scores["if_score"]))),
        "unscored": dict(unscored.most_common()),
        "left_alone": dict(plan.left_alone),
    }
    rewrite_manifest(dataset.parts[0].manifest, out, transform, describe)
    return counts


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
