"""What ranks send in a training step against the tables of docs/parallelism.md, message by message.

Ranks run a whole step of a toy model and note every message. The document's rows are parsed and evaluated with the
toy's numbers: rows and messages must be the same, so a wrong formula fails, and so does a message that no row explains.
bfloat16, so that an activation's two bytes are not mistaken for a float32's four.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest

from tests.support.distributed import run_distributed
from tests.support.message_tables import (
    BLOCK_FORWARD,
    BUCKET,
    STEP,
    TABLES,
    Document,
    expected_of,
    read_document,
    whole,
    with_definitions,
)
from tests.support.traffic import Message, TrafficRecorder

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
SIZES = {
    "dim": 64,
    "num_layers": 3,
    "num_heads": 4,
    "ffn_dim": 92,
    "text_dim": 24,
    "text_length": 7,
    "time_features": 16,
    "semantic_dim": 20,
    "semantic_hidden_dim": 12,
}
TWO_RANKS: dict[str, dict[str, Any]] = {
    "tensor + sequence": {"tensor": 2},
    "tensor": {"tensor": 2, "sequence": False},
    "context, exchange": {"context": 2},
    "context, gather": {"context": 2, "ulysses": 1},
    "data": {},
    "pipeline": {"pipeline": 2},
    "pipeline, interleaved": {"pipeline": 2, "interleave": 2},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "tensor + sequence x context": {"tensor": 2, "context": 2},
    "tensor x context, gather": {"tensor": 2, "context": 2, "sequence": False, "ulysses": 1},
    "context, exchange x gather": {"context": 4, "ulysses": 2},
    "tensor + sequence x pipeline": {"tensor": 2, "pipeline": 2},
    "context x data": {"context": 2, "data": 2},
}
RECOMPUTE = {
    "tensor + sequence": ("selective", "selective_ffn", "full"),
    "tensor": ("selective", "full"),
    "context, exchange": ("selective",),
    "context, gather": ("full",),
}
"""Modes of `train.recompute`, by layout of two ranks."""
LAYOUTS = [*TWO_RANKS, *FOUR_RANKS, *(f"{label}, {mode}" for label, modes in RECOMPUTE.items() for mode in modes)]
PHASES = ("block forward", "backward", "micro-batch", "encoding", "step")

# --- run by the ranks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observed:
    """One rank's step.

    Attributes:
        messages: What it sent.
        num_blocks: Blocks that it runs.
        micro_batches: Numbers of the document's names, by micro-batch.
        step: Those of the step.
        buckets: Those of every bucket.
    """

    messages: Counter[Message]
    num_blocks: int
    micro_batches: list[dict[str, Any]]
    step: dict[str, Any]
    buckets: list[dict[str, Any]]


def make_recipe(degrees: Mapping[str, Any], recompute: str = "none") -> Any:
    from sama_mega.config import build_recipe

    num_layers = 4 if degrees.get("interleave") else SIZES["num_layers"]
    return build_recipe(
        {
            "model": SIZES | {"num_layers": num_layers},
            "parallel": degrees,
            "data": {"micro_batch_images": 2, "micro_batch_videos": 2},
            "train": {
                "stage": 1,
                "steps": 1,
                "run_folder": "unused",
                "precision": "bfloat16",
                "recompute": recompute,
            },
        },
        "test",
    )


def observe_step(recipe: Any, context: Any) -> Observed:
    """Runs one step of what `train` runs: images and clips of several shapes, dealt to the data ranks."""
    from sama_mega.encoders import build_encoders
    from sama_mega.model.block import SamaBlock
    from sama_mega.train import shared_encoding, step
    from sama_mega.train.agreement import agreeing_batches
    from sama_mega.train.batch import Batcher, group_by_shape
    from sama_mega.train.state import build_train_state
    from sama_mega.train.stop import StopRequest
    from sama_mega.verify.samples import global_batch, share_of

    state = build_train_state(recipe, context, initialize=True)
    sharing = shared_encoding.Sharing.among(context)
    batcher = Batcher(recipe, build_encoders(recipe, context.device), context.device, sharing)
    drawn = share_of(global_batch(recipe.train.stage), context.data_rank, context.layout.data)
    recorder = TrafficRecorder(
        {
            "tensor": context.tensor_group,
            "exchange": context.ulysses_group,
            "gather": context.key_value_group,
            "sequence": context.sequence_group,
            "pipeline": context.pipeline_group,
            "copy": context.model_group,
            "data": context.groups.dp_cp,
            "world": context.world_group,
            "host": context.host_world_group,
        }
    )
    in_block = recorder.during("block forward", SamaBlock.forward)
    in_schedule = recorder.during("micro-batch", step.run_forward_backward)
    in_encoding = recorder.during("encoding", shared_encoding.run_shared)
    with (
        patch.object(SamaBlock, "forward", in_block),
        patch.object(step, "run_forward_backward", in_schedule),
        patch.object(shared_encoding, "run_shared", in_encoding),
        recorder.recording(),
    ):
        agreed = next(agreeing_batches(iter([drawn]), context, StopRequest()))
        outcome = step.TrainStep(recipe, context, state, batcher).run(agreed, 1e-3)
    assert outcome.skipped is None
    names = layout_names(recipe, context)
    return Observed(
        messages=Counter(recorder.messages),
        num_blocks=sum(len(stage.module.blocks) for stage in state.stages),
        micro_batches=[names | sample_names(group, recipe) for group in group_by_shape(drawn.samples, recipe)],
        step=names | step_names(state, drawn.num_slots),
        buckets=[
            names | {"G": bucket.grad_data.numel(), "p": buffer.param_dtype.itemsize}
            for stage in state.stages
            for buffer in stage.buffers
            for bucket in buffer.buckets
        ],
    )


def layout_names(recipe: Any, context: Any) -> dict[str, Any]:
    layout, model = context.layout, recipe.model
    stages = [layout.stage(index) for index in context.stages]
    return {
        "tp": layout.tensor,
        "cp": layout.context,
        "pp": layout.pipeline,
        "dp": layout.data,
        "sp": layout.sequence,
        "u": layout.ulysses,
        "v": layout.interleave,
        "before": sum(not stage.is_first for stage in stages),
        "after": sum(not stage.is_last for stage in stages),
        "last": any(stage.is_last for stage in stages),
        "dim": model.dim,
        "L": model.text_length,
        "text": model.text_dim,
        "M": recipe.anchor.num_tokens,
        "features": model.semantic_dim,
        "P": model.out_channels * math.prod(model.patch_size),
        "e": 2,
        "mode": recipe.train.recompute,
    }


def sample_names(samples: Sequence[Any], recipe: Any) -> dict[str, int]:
    """Of stage 1: edits have source and target of one shape."""
    frames, height, width = samples[0].target_frames.shape[:3]
    patches = (1 + (frames - 1) // 4) * (height // 16) * (width // 16)
    return {"B": len(samples), "X": patches, "Y": patches, "N": 2 * patches + recipe.anchor.num_tokens}


def step_names(state: Any, num_slots: int) -> dict[str, int]:
    owned = state.optimizer.owned
    copies: dict[str, int] = {one.name: one.end - one.start for one in owned if one.stage_copy is not None}
    on_tensor_ranks = [one for one in owned if getattr(one.parameter, "sequence_parallel", False)]
    return {"Q": sum(one.end - one.start for one in on_tensor_ranks), "C": sum(copies.values()), "slots": num_slots}


# Planted changes of what is sent; each computes the right thing.


def statistics_in_two_messages() -> AbstractContextManager[Any]:
    from sama_mega.model import attention

    def with_two(*inputs: Any, sum_over_ranks: Callable[[Any], Any], **options: Any) -> Any:
        def sum_halves(both: Any) -> None:
            for half in both.chunk(2):
                sum_over_ranks(half)

        return qk_norm_rope(*inputs, sum_over_ranks=sum_halves, **options)

    qk_norm_rope = attention.qk_norm_rope
    return patch.object(attention, "qk_norm_rope", with_two)


def whole_q_gathered() -> AbstractContextManager[Any]:
    import torch
    from megatron.core.parallel_state import get_tensor_model_parallel_group

    from sama_mega.model import attention

    def with_gather(q: Any, *rest: Any, **options: Any) -> Any:
        group = get_tensor_model_parallel_group()
        everyone = q.new_empty(group.size() * q.shape[0], *q.shape[1:])
        torch.distributed.all_gather_into_tensor(everyone, q.detach().contiguous(), group=group)
        return qk_norm_rope(q, *rest, **options)

    qk_norm_rope = attention.qk_norm_rope
    return patch.object(attention, "qk_norm_rope", with_gather)


PLANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "statistics of q and k in two messages": statistics_in_two_messages,
    "whole q gathered": whole_q_gathered,
}


def observe_layouts(layouts: Mapping[str, Mapping[str, Any]], with_plants: bool) -> dict[str, Observed]:
    """One step in every layout, in the same processes."""
    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, start_parallel, stop_parallel

    runs = [(label, make_recipe(degrees), nullcontext) for label, degrees in layouts.items()]
    if with_plants:
        runs += [
            (f"{label}, {mode}", make_recipe(TWO_RANKS[label], mode), nullcontext)
            for label, modes in RECOMPUTE.items()
            for mode in modes
        ]
        degrees = TWO_RANKS["tensor + sequence"]
        runs += [(plant, make_recipe(degrees), make) for plant, make in PLANTS.items()]
    context = start_parallel(runs[0][1], timeout_seconds=60)
    observed = {}
    for label, recipe, plant in runs:
        context = form_groups(resolve_layout(recipe, context.world_size), context.device, seed=recipe.train.seed)
        with plant():
            observed[label] = observe_step(recipe, context)
    stop_parallel()
    return observed


# --- run by pytest ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> Document:
    return read_document()


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Observed]]:
    """By rank, by label; ranks of both worlds follow one another."""
    return [
        *run_distributed(observe_layouts, 2, TIMEOUT_SECONDS, (TWO_RANKS, True)),
        *run_distributed(observe_layouts, 4, TIMEOUT_SECONDS, (FOUR_RANKS, False)),
    ]


def observed_by_ranks(steps: list[dict[str, Observed]], label: str) -> list[Observed]:
    return [rank[label] for rank in steps if label in rank]


def expected_messages(seen: Observed, document: Document, phase: str) -> Counter[tuple[str, str, int]]:
    """What the document says that a rank sends in a phase."""
    total: Counter[tuple[str, str, int]] = Counter()
    if phase == "step":
        total += expected_of(document.rows[STEP], with_definitions(seen.step, document))
        for names in seen.buckets:
            total += expected_of(document.rows[BUCKET], with_definitions(names, document))
        return total
    for names in seen.micro_batches:
        for title in TABLES[phase]:
            times = seen.num_blocks if title.startswith("Each block") else 1
            total += expected_of(document.rows[title], with_definitions(names, document), times)
    return total


def sent(seen: Observed, phase: str) -> Counter[tuple[str, str, int]]:
    found: Counter[tuple[str, str, int]] = Counter()
    for message, count in seen.messages.items():
        if message.phase == phase:
            found[message.operation, message.group, message.num_bytes] += count
    return found


def differences(seen: Observed, document: Document, phase: str) -> dict[str, Any]:
    """What is sent and not in the document, and what is in the document and not sent."""
    expected, found = expected_messages(seen, document, phase), sent(seen, phase)
    both = {"sent, not in the document": found - expected, "in the document, not sent": expected - found}
    return {title: dict(messages) for title, messages in both.items() if messages}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_send_what_the_document_says(
    layout: str, phase: str, steps: list[dict[str, Observed]], document: Document
) -> None:
    for rank, seen in enumerate(observed_by_ranks(steps, layout)):
        assert not differences(seen, document, phase), (rank, differences(seen, document, phase))
        assert {message.phase for message in seen.messages} <= set(PHASES)


def test_every_row_is_met(steps: list[dict[str, Observed]], document: Document) -> None:
    """A row whose condition never holds, or that comes to nothing, would prove nothing."""
    everything = [seen for rank in steps for seen in rank.values()]
    numbers = {
        **{
            title: [names for seen in everything for names in seen.micro_batches]
            for titles in TABLES.values()
            for title in titles
        },
        STEP: [seen.step for seen in everything],
        BUCKET: [names for seen in everything for names in seen.buckets],
    }
    assert numbers.keys() == document.rows.keys()
    for title, rows in document.rows.items():
        known = [with_definitions(names, document) for names in numbers[title]]
        never = [row.what for row in rows if not any(expected_of([row], names) for names in known)]
        assert rows and not never, (title, never)


def test_cases_meet_padding_and_unequal_ranks(steps: list[dict[str, Observed]], document: Document) -> None:
    shards = [names for seen in observed_by_ranks(steps, "tensor + sequence x context") for names in seen.micro_batches]
    assert {4 * with_definitions(one, document)["s"] - one["N"] for one in shards} == {1, 3}
    assert {one["B"] for one in shards} == {1, 2}
    assert len({len(seen.micro_batches) for seen in observed_by_ranks(steps, "data")}) == 2
    assert len({seen.num_blocks for seen in observed_by_ranks(steps, "pipeline")}) == 2


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_messages_are_found(plant: str, steps: list[dict[str, Observed]], document: Document) -> None:
    for seen in observed_by_ranks(steps, plant):
        assert differences(seen, document, "block forward")
        # Of the plants only the statistics have a backward pass; nothing else changes.
        assert bool(differences(seen, document, "backward")) == ("statistics" in plant)
        assert not differences(seen, document, "micro-batch")
        assert not differences(seen, document, "step")


def test_a_wrong_formula_is_found(steps: list[dict[str, Observed]], document: Document) -> None:
    """Every row in turn says a message too many, then a byte too many."""
    everything = [seen for rank in steps for seen in rank.values()]
    for title, rows in document.rows.items():
        for index, row in enumerate(rows):
            for change in ({"messages": f"1 + {row.messages}"}, {"num_bytes": f"1 + {row.num_bytes}"}):
                changed = (*rows[:index], replace(row, **change), *rows[index + 1 :])
                wrong = replace(document, rows=document.rows | {title: changed})
                found = (differences(seen, wrong, phase) for seen in everything for phase in PHASES)
                assert any(found), (title, row.what, change)


def test_the_worked_example_is_computed(document: Document) -> None:
    names = with_definitions(document.example, document)
    assert len(document.example_rows) == 2
    for formula, num_bytes in document.example_rows:
        assert whole(formula, names) == num_bytes, formula
    statistics = next(row for row in document.rows[BLOCK_FORWARD] if row.what == "sums of squares of q and k")
    assert document.example_rows[0][0] == statistics.num_bytes
