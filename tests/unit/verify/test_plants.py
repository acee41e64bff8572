"""The known bugs: where each applies, what it must break, and that it is taken out again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sama_mega.config import ConfigError
from sama_mega.config.schema import ParallelRecipe
from sama_mega.model import attention, context_attention, sama_dit
from sama_mega.parallel import gradients
from sama_mega.parallel.data_parallel import ParameterBuckets
from sama_mega.parallel.layout import Layout
from sama_mega.train import step
from sama_mega.verify.plants import PLANTS, Plant, find_plant

PATCHED = (attention, context_attention, sama_dit, gradients, step, ParameterBuckets)
LAYERS = 4
OVERLAP = ParallelRecipe(overlap_param_gather=True)


def layout_of(sequence: bool = True, **degrees: int) -> Layout:
    axes = {axis: degrees.get(axis, 1) for axis in ("tensor", "context", "pipeline", "data")}
    world = axes["tensor"] * axes["context"] * axes["pipeline"] * axes["data"]
    stages = tuple([LAYERS // axes["pipeline"]] * axes["pipeline"])
    return Layout(**axes, sequence=sequence and axes["tensor"] > 1, world_size=world, stage_layers=stages)


def recipe_of(num_anchors: int = 4) -> Any:
    """What a plant reads of a recipe."""
    return SimpleNamespace(model=SimpleNamespace(num_layers=LAYERS), anchor=SimpleNamespace(num_frames=num_anchors))


TENSOR, NO_SEQUENCE = layout_of(tensor=2), layout_of(tensor=2, sequence=False)
CONTEXT, PIPELINE, DATA = layout_of(context=2), layout_of(pipeline=2), layout_of(data=2)
EVERY = {"tensor": TENSOR, "no sequence": NO_SEQUENCE, "context": CONTEXT, "pipeline": PIPELINE, "data": DATA}
WHERE = {
    "rank_local_qk_norm": {"tensor", "no sequence"},
    "qk_norm_summed_forward_only": {"tensor", "no sequence"},
    "dropped_tail_token": {"tensor", "context"},
    "unmasked_padding": {"tensor", "context"},
    "unsliced_output_gradient": {"tensor", "context"},
    "stale_kv_shard": {"context"},
    "unreduced_sequence_gradients": {"tensor"},
    "unreduced_stage_copies": {"pipeline"},
    "mean_of_means_loss": {"data"},
    "unawaited_parameters": {"context", "data"},
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_is_found_where_it_applies_and_refused_elsewhere(name: str) -> None:
    assert WHERE.keys() == PLANTS.keys()
    for label, layout in {**EVERY, "alone": layout_of()}.items():
        if label in WHERE[name]:
            assert find_plant(name, layout, OVERLAP).name == name
            continue
        with pytest.raises(ConfigError) as caught:
            find_plant(name, layout, OVERLAP)
        message = f"--plant ({name}) needs {PLANTS[name].needs}, and this is {layout.describe()}"
        assert str(caught.value) == message


def test_parameters_that_are_not_gathered_in_the_forward_pass_cannot_be_late() -> None:
    with pytest.raises(ConfigError, match=r"needs parallel\.overlap_param_gather"):
        find_plant("unawaited_parameters", DATA, ParallelRecipe())


def test_an_unknown_plant_names_all_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find_plant("rank_local_norm", TENSOR, OVERLAP)
    assert str(caught.value) == f"--plant (rank_local_norm) must be one of {', '.join(PLANTS)}"


@pytest.mark.parametrize(
    ("plant", "check", "expected"),
    [
        ("rank_local_qk_norm", "semantic_loss by sample", True),
        ("qk_norm_summed_forward_only", "loss", False),
        ("qk_norm_summed_forward_only", "gradient_norm", True),
        ("qk_norm_summed_forward_only", "grad blocks.3.self_attn.linear_qkv.weight", True),
        # Behind the last norm: LAST is the last block's number.
        ("qk_norm_summed_forward_only", "grad blocks.3.ffn.linear_in.weight", False),
        ("qk_norm_summed_forward_only", "update blocks.3.ffn.linear_in.weight", False),
        ("qk_norm_summed_forward_only", "grad blocks.2.ffn.linear_in.weight", True),
        ("qk_norm_summed_forward_only", "grad head.head.weight", False),
        ("unreduced_stage_copies", "grad text_embedding.linear_in.weight", True),
        ("unreduced_stage_copies", "grad blocks.0.modulation", False),
        ("unreduced_stage_copies", "flow_matching_loss", False),
        ("unsliced_output_gradient", "update semantic_head.proj.weight", False),
        ("unawaited_parameters", "next loss", True),
        ("unawaited_parameters", "loss", False),
    ],
)
def test_a_plant_says_what_it_must_break(plant: str, check: str, expected: bool) -> None:
    assert PLANTS[plant].must_break(check, recipe_of()) is expected


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_without_anchors_no_semantic_loss_can_break(plant: Plant) -> None:
    """It is 0 in the layout and on one rank."""
    for check in ("semantic_loss", "semantic_loss by sample", "next semantic_loss", "next semantic_loss by sample"):
        assert not plant.must_break(check, recipe_of(num_anchors=0))
    for check in ("loss", "next loss", "grad head.head.weight"):
        assert plant.must_break(check, recipe_of(num_anchors=0)) is plant.must_break(check, recipe_of())


@pytest.mark.parametrize("name", PLANTS)
def test_a_plant_is_taken_out_again(name: str) -> None:
    """Also after an error: or the next verification of this process would be of broken code."""

    def functions() -> list[dict[str, Any]]:
        return [dict(vars(module)) for module in PATCHED]

    before = functions()
    with pytest.raises(ZeroDivisionError), PLANTS[name].planted():
        assert functions() != before
        raise ZeroDivisionError
    assert functions() == before
