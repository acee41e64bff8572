"""Encoding shared among the ranks of a model copy: the bits that each of them would have computed alone.

Ranks encode the micro-batches of a step twice, alone and shared, with the embedded encoders and with pretrained ones
(tiny, random weights) in both precisions, and count what each of their encoders was asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.distributed import run_distributed
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 120.0
TWO_RANKS: dict[str, dict[str, Any]] = {
    "tensor": {"tensor": 2},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
    "data": {},
}
FOUR_RANKS: dict[str, dict[str, Any]] = {
    "tensor x context": {"tensor": 2, "context": 2},
    "tensor x data": {"tensor": 2},
    "tensor x pipeline": {"tensor": 2, "pipeline": 2},
}
SHARERS = {name: 1 if name == "data" else 2 for name in (*TWO_RANKS, *FOUR_RANKS)}
SHARERS |= {"tensor x context": 4, "tensor x pipeline": 4}
PRETRAINED = ("float32", "bfloat16")
CACHED = "from a cache"


@dataclass(frozen=True)
class Seen:
    """What one rank saw of one case.

    Attributes:
        different: Tensors and facts of shared micro-batches that are not those of unshared ones.
        calls: By encoder, what it encoded: the samples of each call.
        costs: Predicted, of each of these calls.
        groups: Samples of each micro-batch.
        first_round: Micro-batches that were encoded once the first one was asked for.
        sharers: Ranks of this rank's model copy.
        data_rank: Which copy.
    """

    different: list[str]
    calls: dict[str, list[int]]
    costs: list[float]
    groups: list[int]
    first_round: int
    sharers: list[int]
    data_rank: int


# --- run by the ranks -------------------------------------------------------------------------------------


class Counted:
    """An encoder that notes how many samples each call encodes, and what it should cost."""

    def __init__(self, encoder: Any, calls: list[int], cost: Callable[[Any], float], costs: list[float]) -> None:
        self._encoder = encoder
        self._calls = calls
        self._cost = cost
        self._costs = costs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, given: Any) -> Any:
        self._calls.append(len(given))
        self._costs.append(self._cost(given))
        return self._encoder.encode(given)


def make_recipe(degrees: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    from sama_mega.config import build_recipe

    sections: dict[str, dict[str, Any]] = {
        "model": {"dim": 16, "num_layers": 4, "num_heads": 4, "ffn_dim": 16, "text_dim": 24, "text_length": 16},
        "parallel": dict(degrees),
        "data": {"micro_batch_images": 2, "micro_batch_videos": 1, "text_dropout": 0.0},
        "anchor": {"num_frames": 2, "local_grid": 2},
        "train": {"stage": 0, "steps": 1, "run_folder": "unused"},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return build_recipe(sections, "test")


def encode_both_ways(recipe: Any, context: Any, cache_folder: Path | None) -> Seen:
    from sama_mega.encoders import build_encoders
    from sama_mega.parallel.collectives import gather_objects
    from sama_mega.train.batch import Batcher, group_by_shape
    from sama_mega.train.shared_encoding import Sharing, anchors_cost, pixels_cost, tokens_cost
    from sama_mega.verify.samples import global_batch, share_of

    encoders = build_encoders(recipe, context.device)
    text = encoders.text
    calls: dict[str, list[int]] = {"video": [], "semantic": [], "text": []}
    costs: list[float] = []
    cost_of = {
        "video": lambda pixels: pixels_cost(pixels[:, 0].shape),
        "semantic": lambda frames: anchors_cost(frames.shape[0] * frames.shape[1]),
        "text": lambda prompts: tokens_cost(sum(min(text.count_tokens(one), text.max_tokens) for one in prompts)),
    }
    counted = replace(
        encoders, **{role: Counted(getattr(encoders, role), calls[role], cost_of[role], costs) for role in calls}
    )
    groups = group_by_shape(share_of(global_batch(0), context.data_rank, context.layout.data).samples, recipe)
    cache = None if cache_folder is None else make_cache(cache_folder, encoders, recipe, groups, context)
    pending = Batcher(recipe, counted, context.device, Sharing.among(context), cache).encode_step(groups)
    shared, first_round = [], 0
    for encode in pending:
        shared.append(encode())
        first_round = first_round or sum(len(one) for one in calls.values())
    alone = [Batcher(recipe, encoders, context.device).encode(samples) for samples in groups]
    done = gather_objects(first_round, context.model_group)
    return Seen(
        different=[
            f"{field.name} of micro-batch {place}"
            for place, (ours, truth) in enumerate(zip(shared, alone, strict=True))
            for field in fields(truth)
            if not same(getattr(ours, field.name), getattr(truth, field.name))
        ],
        calls=calls,
        costs=costs,
        groups=[len(samples) for samples in groups],
        first_round=sum(done) // 4,
        sharers=gather_objects(context.rank, context.model_group),
        data_rank=context.data_rank,
    )


def make_cache(path: Path, encoders: Any, recipe: Any, groups: Sequence[Sequence[Any]], context: Any) -> Any:
    """A cache of every other sample's target, anchors and prompt, made by the first rank."""
    from sama_mega.encoders.feature_cache import FeatureCache
    from sama_mega.parallel.collectives import gather_objects
    from sama_mega.train.encode import FrameEncoders
    from tests.support.feature_caches import write_cache

    encode, features = FrameEncoders(recipe, encoders, context.device), []
    for sample in [one for samples in groups for one in samples][::2]:
        anchors = encode.anchors_of(sample.target_frames)
        features.append(("latents", sample.target_frames, encode.clips([sample.target_frames], [None])[0]))
        features.append(("semantic", anchors, encode.anchors([anchors])[0]))
        features.append(("text", sample.prompt, encode.prompts([sample.prompt])[0]))
    if context.is_first_rank:
        write_cache(path, {"a": features}, encoders.identity())
    gather_objects(None, context.world_group)
    return FeatureCache(path, encoders.identity(), encoders.text.max_tokens)


def same(ours: Any, truth: Any) -> bool:
    import torch

    if not isinstance(truth, torch.Tensor):
        return bool(ours == truth)
    return ours.dtype == truth.dtype and ours.is_contiguous() and torch.equal(ours, truth)


def encode_in_layouts(
    layouts: Mapping[str, Mapping[str, Any]], weights: Path | None, cache_folder: Path
) -> dict[tuple[str, str], Seen]:
    """Every layout with the embedded encoders; the first one with pretrained ones and with a cache too."""
    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, start_parallel, stop_parallel

    cases = [(name, "embedded", make_recipe(degrees, {})) for name, degrees in layouts.items()]
    first, degrees = next(iter(layouts.items()))
    for precision in PRETRAINED if weights else ():
        cases.append(
            (first, precision, make_recipe(degrees, pretrained_encoders(weights) | {"train.precision": precision}))
        )
    cases.append((first, CACHED, make_recipe(degrees, {})))
    context = start_parallel(cases[0][2], timeout_seconds=60)
    seen = {}
    for name, encoders, recipe in cases:
        context = form_groups(resolve_layout(recipe, context.world_size), context.device, seed=0)
        seen[name, encoders] = encode_both_ways(recipe, context, cache_folder if encoders == CACHED else None)
    stop_parallel()
    return seen


# --- run by pytest ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Seen]]:
    """By rank; those of both worlds follow one another."""
    weights, caches = pretrained_weights(tmp_path_factory), tmp_path_factory.mktemp("caches")
    return [
        *run_distributed(encode_in_layouts, 2, TIMEOUT_SECONDS, (TWO_RANKS, weights, caches / "2")),
        *run_distributed(encode_in_layouts, 4, TIMEOUT_SECONDS, (FOUR_RANKS, None, caches / "4")),
    ]


CASES = [(name, "embedded") for name in (*TWO_RANKS, *FOUR_RANKS)]
CASES += [("tensor", precision) for precision in PRETRAINED]
CACHED_CASES = [("tensor", CACHED), ("tensor x context", CACHED)]


def seen_in(case: tuple[str, str], ranks: Sequence[Mapping[tuple[str, str], Seen]]) -> list[Seen]:
    return [rank[case] for rank in ranks if case in rank]


@pytest.mark.parametrize("case", [*CASES, *CACHED_CASES], ids=" ".join)
def test_shared_results_are_the_unshared_ones(case: tuple[str, str], ranks: list[dict[tuple[str, str], Seen]]) -> None:
    for rank, seen in enumerate(seen_in(case, ranks)):
        assert seen.groups and seen.different == [], rank


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_every_result_is_encoded_by_one_rank_of_a_copy(
    case: tuple[str, str], ranks: list[dict[tuple[str, str], Seen]]
) -> None:
    world = seen_in(case, ranks)
    for seen in world:
        assert len(seen.sharers) == SHARERS[case[0]]
        copy = [world[rank] for rank in seen.sharers]
        for role, per_micro_batch in (("video", 2), ("semantic", 1), ("text", 1)):
            done = Counter(size for one in copy for size in one.calls[role])
            assert done == Counter(seen.groups * per_micro_batch), role


@pytest.mark.parametrize("case", CACHED_CASES, ids=" ".join)
def test_what_the_cache_has_nobody_encodes(case: tuple[str, str], ranks: list[dict[tuple[str, str], Seen]]) -> None:
    for seen in seen_in(case, ranks):
        copy = [seen_in(case, ranks)[rank] for rank in seen.sharers]
        num_samples = sum(seen.groups)
        for role in ("semantic", "text"):
            assert sum(sum(one.calls[role]) for one in copy) == num_samples // 2


@pytest.mark.parametrize("case", [case for case in CASES if "pipeline" in case[0]], ids=" ".join)
def test_work_is_dealt_evenly(case: tuple[str, str], ranks: list[dict[tuple[str, str], Seen]]) -> None:
    """In a round, here the whole step, no rank has more above another's work than one job."""
    world = seen_in(case, ranks)
    works = [sum(seen.costs) for seen in world]
    assert max(works) - min(works) <= max(max(seen.costs) for seen in world)
    assert sum(works) > 0.9 * len(works) * max(works)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_round_is_a_micro_batch_a_rank_and_with_stages_the_whole_step(
    case: tuple[str, str], ranks: list[dict[tuple[str, str], Seen]]
) -> None:
    for seen in seen_in(case, ranks):
        num_sharers = len(seen.sharers)
        expected = len(seen.groups) if "pipeline" in case[0] else min(num_sharers, len(seen.groups))
        assert seen.first_round == expected
        assert len(seen.groups) > 2 or case[0] != "tensor"  # else no second round is met


def test_costs_put_clips_before_anchors_before_prompts() -> None:
    from sama_mega.train.shared_encoding import anchors_cost, pixels_cost, tokens_cost

    clip, picture = pixels_cost((1, 81, 480, 832)), pixels_cost((1, 1, 480, 832))
    assert clip == 81 * picture > 60 * anchors_cost(1) > 60 * tokens_cost(40) > 0
    assert anchors_cost(3) == 3 * anchors_cost(1) and tokens_cost(80) == 2 * tokens_cost(40)
