"""The planner's messages against the tables of docs/parallelism.md, which are held to what ranks really send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sama_mega.config import build_recipe
from sama_mega.config.schema import Recipe
from sama_mega.parallel.layout import resolve_layout
from sama_mega.planner import messages
from sama_mega.planner.messages import Message, Names, names_of
from sama_mega.planner.workload import plan_workload
from tests.support.message_tables import (
    BLOCK_AGAIN,
    BLOCK_BACKWARD,
    BLOCK_FORWARD,
    BUCKET,
    ENCODING,
    MICRO_BATCH,
    MICRO_BATCH_BACKWARD,
    STEP,
    Document,
    evaluate,
    read_document,
    whole,
    with_definitions,
)

STEP_NUMBERS = {"Q": 1234, "C": 567, "slots": 11}
BUCKET_NUMBERS = {"G": 23_040, "p": 2}
ROWS: dict[str, Callable[[Names], list[Message]]] = {
    BLOCK_FORWARD: messages.block_forward,
    BLOCK_AGAIN: messages.block_again,
    BLOCK_BACKWARD: messages.block_backward,
    MICRO_BATCH: messages.micro_batch_forward,
    MICRO_BATCH_BACKWARD: messages.micro_batch_backward,
    ENCODING: messages.encoding,
    STEP: lambda names: messages.optimizer_step(names, *STEP_NUMBERS.values()),
    BUCKET: lambda names: messages.bucket(names, *BUCKET_NUMBERS.values()),
}


@pytest.fixture(scope="module")
def document() -> Document:
    return read_document()


def make_recipe(mode: str, precision: str, **parallel: Any) -> Recipe:
    return build_recipe(
        {
            "model": {"dim": 96, "num_layers": 8, "num_heads": 8, "ffn_dim": 160, "text_dim": 24, "text_length": 7},
            "parallel": parallel,
            "data": {"images_per_step": 8, "videos_per_step": 8, "buckets": [[80, 48]], "max_frames": 13},
            "train": {
                "stage": 0,
                "steps": 1,
                "run_folder": "unused",
                "recompute": mode,
                "precision": precision,
            },
        },
        "test",
    )


def sweep() -> Iterator[Names]:
    """Every rank of the pipeline, every shape of micro-batch, in all modes and kinds of layout."""
    for mode in ("none", "selective", "selective_ffn", "full"):
        for tensor, sequence in ((1, True), (2, True), (4, True), (2, False)):
            for context, ulysses in ((1, "auto"), (4, "auto"), (4, 2), (4, 1)):
                # Recompute concerns blocks, and stages do not.
                for pipeline, interleave in ((1, 1), (2, 1), (2, 2), (4, 2)) if mode == "full" else ((1, 1),):
                    degrees = {"tensor": tensor, "context": context, "pipeline": pipeline, "interleave": interleave}
                    recipe = make_recipe(
                        mode, "bfloat16" if tensor > 1 else "float32", **degrees, sequence=sequence, ulysses=ulysses
                    )
                    for data in (1, 2):
                        layout = resolve_layout(recipe, tensor * context * pipeline * data)
                        work = plan_workload(recipe, layout)
                        for rank in range(pipeline):
                            for batch in dict.fromkeys(batch for own in work.data_ranks for batch in own):
                                yield names_of(recipe, layout, rank, batch)


def document_names(names: Names, document: Document) -> dict[str, Any]:
    """By the document's letters."""
    same = {key: getattr(names, key) for key in ("tp", "cp", "pp", "dp", "sp", "u", "v", "before", "after", "last")}
    other = {
        "mode": names.mode,
        "dim": names.dim,
        "P": names.features_of_velocity,
        "e": names.element_bytes,
        "B": names.samples,
        "N": names.tokens,
        "X": names.source_tokens,
        "Y": names.target_tokens,
        "M": names.semantic_tokens,
        "L": names.text_tokens,
        "text": names.text_width,
        "features": names.semantic_width,
    }
    return with_definitions(same | other | STEP_NUMBERS | BUCKET_NUMBERS, document)


def test_messages_are_the_documents(document: Document) -> None:
    cases = list(dict.fromkeys(sweep()))
    assert len(cases) > 200
    met: Counter[tuple[str, str]] = Counter()
    for names in cases:
        known = document_names(names, document)
        for title, rows in document.rows.items():
            said = [
                Message(row.what, row.operation, row.group, whole(row.messages, known), whole(row.num_bytes, known))  # type: ignore[arg-type]
                for row in rows
                if evaluate(row.when, known)
            ]
            said = [message for message in said if message.count]
            assert ROWS[title](names) == said, (title, names)
            met.update((title, message.what) for message in said)
    # Every row was compared at least once.
    assert {(title, row.what) for title, rows in document.rows.items() for row in rows} == set(met)


def test_what_overlaps_is_a_row() -> None:
    """The constants by which the planner tells which messages travel beside products."""
    found = {message.what for names in sweep() for message in messages.block_backward(names)}
    assert {messages.TOKENS_AGAIN, *messages.TOKEN_GRADIENTS} <= found
