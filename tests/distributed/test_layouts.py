"""Every layout takes the step that one rank takes: losses, every gradient, every update; and planted bugs are found.

Through `verify`'s own functions, which run what `train` runs. Images, videos and all four motion tasks are in the
batch, at sequence lengths that divide nothing. One launch a number of ranks; the layouts follow one another in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.distributed import run_distributed

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 280.0
MODEL = {
    "dim": 32,
    "num_layers": 4,
    "num_heads": 4,
    "ffn_dim": 48,
    "text_dim": 16,
    "text_length": 7,
    "time_features": 16,
    # Many: the gradients of the semantic head are signs, which only a prediction that crosses its target changes.
    "semantic_dim": 96,
    "semantic_hidden_dim": 20,
    "type_embedding_std": 0.3,
}
NO_SEQUENCE = {"sequence": False}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
INTERLEAVED = {"pipeline": 2, "interleave": 2}

LAYOUTS: dict[int, list[dict[str, Any]]] = {
    2: [
        {"tensor": 2},
        {"tensor": 2} | NO_SEQUENCE,
        {"context": 2},
        {"context": 2, "ulysses": 1},
        {"pipeline": 2},
        {"pipeline": 2, "stage_layers": [3, 1]},
        INTERLEAVED,
        {"data": 2},
        {"data": 2} | OVERLAP,
    ],
    3: [{"context": 3}, {"pipeline": 3}, {"data": 3}],
    4: [
        {"tensor": 4},
        {"tensor": 2, "context": 2},
        {"tensor": 2, "context": 2} | NO_SEQUENCE,
        {"tensor": 2, "context": 2, "ulysses": 1},
        {"tensor": 2, "pipeline": 2},
        {"tensor": 2, "pipeline": 2} | NO_SEQUENCE,
        {"tensor": 2, "data": 2},
        {"tensor": 2, "data": 2} | NO_SEQUENCE | OVERLAP,
        {"context": 2, "pipeline": 2},
        {"context": 2, "data": 2},
        {"context": 2, "data": 2} | OVERLAP,
        {"pipeline": 2, "data": 2},
        {"context": 4},
        {"context": 4, "ulysses": 2},
        {"context": 4, "ulysses": 1},
        {"pipeline": 4},
        {"data": 4},
        {"tensor": 2} | INTERLEAVED,
        {"context": 2} | INTERLEAVED,
        {"data": 2} | INTERLEAVED | OVERLAP,
    ],
}
RECOMPUTED: dict[int, list[dict[str, Any]]] = {
    2: [{"tensor": 2}, {"tensor": 2} | NO_SEQUENCE, {"context": 2}, {"pipeline": 2}, INTERLEAVED],
    3: [],
    4: [{"tensor": 2, "context": 2}],
}
PLANTED: dict[int, list[dict[str, Any]]] = {
    2: [
        {"tensor": 2},
        {"tensor": 2} | NO_SEQUENCE,
        {"context": 2},
        {"context": 2, "ulysses": 1},
        {"pipeline": 2},
        {"data": 2} | OVERLAP,
    ],
    3: [],
    4: [{"tensor": 2, "context": 2}, {"tensor": 2, "pipeline": 2}, {"context": 2, "data": 2} | OVERLAP],
}
PLANTS = {
    "rank_local_qk_norm": {"tensor"},
    "qk_norm_summed_forward_only": {"tensor"},
    "dropped_tail_token": {"sequence", "context"},
    "unmasked_padding": {"sequence", "context"},
    "unsliced_output_gradient": {"sequence", "context"},
    "stale_kv_shard": {"context"},
    "unreduced_sequence_gradients": {"sequence"},
    "unreduced_stage_copies": {"pipeline"},
    "mean_of_means_loss": {"data"},
    "unawaited_parameters": {"overlap"},
}
"""By bug: what a layout must have, one of these, for it to be wrong there."""


def applies(plant: str, degrees: dict[str, Any]) -> bool:
    has = {name for name in ("tensor", "context", "pipeline", "data") if degrees.get(name, 1) > 1}
    if "tensor" in has and degrees.get("sequence", True):
        has.add("sequence")
    if degrees.get("overlap_param_gather"):
        has.add("overlap")
    return bool(has & PLANTS[plant])


NO_ANCHORS, SHIFTED_ROPE = {"anchor": {"num_frames": 0}}, {"model": {"roles": "shifted_rope"}}
OTHER_MODELS: dict[str, tuple[int, dict[str, Any], dict[str, Any], str | None]] = {
    "no anchors, tensor=2": (2, {"tensor": 2}, NO_ANCHORS, None),
    "no anchors, pipeline=2": (2, {"pipeline": 2}, NO_ANCHORS, None),
    "no anchors, data=2 mean_of_means_loss": (2, {"data": 2}, NO_ANCHORS, "mean_of_means_loss"),
    "shifted rope, tensor=2": (2, {"tensor": 2}, SHIFTED_ROPE, None),
    "shifted rope, context=2": (2, {"context": 2}, SHIFTED_ROPE, None),
}
"""By label: ranks, degrees, what the recipe says, and planted bug; each has its own one-rank step."""
NOT_FINITE = "tensor=2 with an operation that is not finite"
CASES: dict[int, list[tuple[dict[str, Any], str, str | None]]] = {
    ranks: [(degrees, "none", None) for degrees in LAYOUTS[ranks]]
    + [(degrees, mode, None) for degrees in RECOMPUTED[ranks] for mode in ("selective", "selective_ffn", "full")]
    + [(degrees, "none", plant) for degrees in PLANTED[ranks] for plant in PLANTS if applies(plant, degrees)]
    for ranks in LAYOUTS
}
"""By number of ranks: degrees, recompute, planted bug."""


def label(case: tuple[dict[str, Any], str, str | None]) -> str:
    degrees, recompute, plant = case
    words = [f"{name}={value}" for name, value in degrees.items()]
    words += [f"recompute={recompute}"] if recompute != "none" else []
    return " ".join([*words, plant or ""]).strip()


# --- run by the ranks ---------------------------------------------------------------------------------


def make_recipe(degrees: dict[str, Any], recompute: str, changes: dict[str, Any] | None = None) -> Any:
    from sama_mega.config import build_recipe
    from sama_mega.verify.recipe import verification_recipe

    train = {"stage": 0, "steps": 1, "run_folder": "unused", "recompute": recompute, "cpu_threads": 1}
    sections = {"model": MODEL, "anchor": {"local_grid": 2}, "data": {"image_weight": 0.7}, "train": train}
    for section, values in (changes or {}).items():
        sections[section] = sections[section] | values
    return verification_recipe(build_recipe(sections, "test"), degrees, None)


@contextmanager
def no_numbers_over_ranks() -> Iterator[None]:
    """The q/k norm gives NaN wherever ranks share the heads, as a kernel that is broken there would."""
    from sama_mega.model import attention
    from sama_mega.verify.plants import replaced

    original = attention.qk_norm_rope

    def broken(*inputs: Any, sum_over_ranks: Any = None, **options: Any) -> Any:
        q, k = original(*inputs, sum_over_ranks=sum_over_ranks, **options)
        return (q, k) if sum_over_ranks is None else (q * float("nan"), k)

    with replaced(attention, "qk_norm_rope", broken):
        yield


def run_cases(ranks: int) -> dict[str, Any]:
    """Every case's report, by label, on the first rank; the one-rank step is taken once."""
    import gc
    from contextlib import nullcontext

    import torch

    from sama_mega.parallel.layout import resolve_layout
    from sama_mega.parallel.runtime import form_groups, leave_groups, solo_context, start_parallel, stop_parallel
    from sama_mega.verify.layouts import compare_steps, run_step
    from sama_mega.verify.plants import find_plant
    from sama_mega.verify.report import Report
    from sama_mega.verify.samples import global_batch

    torch.set_num_threads(1)
    context = start_parallel(make_recipe({"data": ranks}, "none"), timeout_seconds=60)
    truth = run_step(make_recipe({}, "none"), solo_context(context), global_batch(0))
    # What the imports left need not be looked through again at every collection below.
    gc.freeze()
    todo = [(label(case), make_recipe(*case[:2]), case[2], truth) for case in CASES[ranks]]
    for name, (_, degrees, changes, plant) in ((name, one) for name, one in OTHER_MODELS.items() if one[0] == ranks):
        alone = run_step(make_recipe({}, "none", changes), solo_context(context), global_batch(0))
        todo.append((name, make_recipe(degrees, "none", changes), plant, alone))
    if ranks == 2:
        todo.append((NOT_FINITE, make_recipe({"tensor": 2}, "none"), None, truth))
    reports = {}
    for name, recipe, plant, expected_step in todo:
        device = context.device
        leave_groups(context)
        # Connections close when nothing refers to them, and a model refers to its groups in cycles.
        del context
        gc.collect()
        context = form_groups(resolve_layout(recipe, ranks), device, seed=0)
        bug = None if plant is None else find_plant(plant, context.layout, recipe.parallel)
        unplanted = no_numbers_over_ranks if name == NOT_FINITE else nullcontext
        with (unplanted if bug is None else bug.planted)():
            result = run_step(recipe, context, global_batch(0))
        if not context.is_first_rank:
            continue
        checks = compare_steps(result, expected_step)
        expected = None if bug is None else {one.tensor for one in checks if bug.must_break(one.tensor, recipe)}
        reports[name] = Report(tuple(checks), None if expected is None else frozenset(expected))
    stop_parallel()
    return reports


# --- run by pytest ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports_of_2() -> dict[str, Any]:
    """By label: the first rank's, which has everybody's tensors."""
    return run_distributed(run_cases, 2, TIMEOUT_SECONDS, (2,))[0]


@pytest.fixture(scope="module")
def reports_of_3() -> dict[str, Any]:
    return run_distributed(run_cases, 3, TIMEOUT_SECONDS, (3,))[0]


@pytest.fixture(scope="module")
def reports_of_4() -> dict[str, Any]:
    return run_distributed(run_cases, 4, TIMEOUT_SECONDS, (4,))[0]


@pytest.fixture
def report(request: pytest.FixtureRequest, ranks: int, name: str) -> Any:
    """One layout's. A fixture by number of ranks, since one with a parameter starts ranks anew for every test."""
    return request.getfixturevalue(f"reports_of_{ranks}")[name]


def parameters(planted: bool) -> list[Any]:
    found = [(ranks, label(case), case[2]) for ranks, cases in CASES.items() for case in cases]
    found += [(ranks, name, plant) for name, (ranks, _, _, plant) in OTHER_MODELS.items() if plant]
    return [pytest.param(ranks, name, id=name) for ranks, name, plant in found if (plant is not None) == planted]


@pytest.mark.parametrize(("ranks", "name"), parameters(planted=False))
def test_a_layout_takes_the_step_of_one_rank(report: Any, ranks: int, name: str) -> None:
    wrong = [(check.tensor, check.error) for check in report.worst_first if not check.passed]
    assert not wrong, wrong[:5]
    # 26 parameters outside the blocks and 21 in each: a gradient and an update of every one, and six losses a step.
    assert len(report.checks) == 2 * 6 + 2 * (26 + 4 * 21)


@pytest.mark.parametrize(
    ("ranks", "name"), [(ranks, name) for name, (ranks, _, _, plant) in OTHER_MODELS.items() if not plant]
)
def test_models_without_a_part_take_the_step_of_one_rank(report: Any, ranks: int, name: str) -> None:
    wrong = [(check.tensor, check.error) for check in report.worst_first if not check.passed]
    assert not wrong, wrong[:5]
    # Without anchors 10 parameters fewer, semantic MLP and head; without types one.
    num_parameters = 26 + 4 * 21 - (10 if "no anchors" in name else 1)
    assert len(report.checks) == 2 * 6 + 2 * num_parameters


@pytest.mark.parametrize(("ranks", "name"), parameters(planted=True))
def test_a_planted_bug_breaks_exactly_what_is_written(report: Any, ranks: int, name: str) -> None:
    assert not report.ok
    assert report.must_break
    assert not report.not_as_written, report.not_as_written[:5]


def test_a_layout_that_is_not_finite_is_compared_and_wrong_in_everything(reports_of_2: dict[str, Any]) -> None:
    report = reports_of_2[NOT_FINITE]
    assert not [check.tensor for check in report.checks if check.passed]
    errors = {check.tensor: check.error for check in report.checks}
    assert math.isnan(errors["loss"]) and math.isnan(errors["grad patch_embedding.weight"])
    # The optimizer moved nothing, where the step of one rank moved everything.
    assert {error for name, error in errors.items() if name.startswith("update ")} == {1.0}


def test_every_known_bug_is_planted() -> None:
    from sama_mega.verify.plants import PLANTS as KNOWN

    planted = {case[2] for cases in CASES.values() for case in cases} - {None}
    assert planted == set(KNOWN) == set(PLANTS)


def test_every_product_up_to_four_ranks_is_there() -> None:
    axes = ("tensor", "context", "pipeline", "data")
    pairs = [{one: 2, other: 2} for one in axes for other in axes if one < other]
    for wanted in [{axis: 2} for axis in axes] + pairs:
        ranks = 2 ** len(wanted)
        assert wanted in LAYOUTS[ranks] or dict(reversed(wanted.items())) in LAYOUTS[ranks], wanted
        if "tensor" in wanted:
            assert any(
                wanted | NO_SEQUENCE == {k: degrees.get(k) for k in wanted | NO_SEQUENCE} for degrees in LAYOUTS[ranks]
            )
