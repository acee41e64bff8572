"""A predicted step: against figures that were measured on an H200, and against what must hold of any prediction."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from sama_data.shapes import Shape
from sama_mega.config import load_recipe
from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import block_flops
from sama_mega.observe.gpu_kinds import load_gpu_kinds
from sama_mega.parallel.layout import resolve_layout
from sama_mega.planner.rank_time import PARTS
from sama_mega.planner.rates import Rates, rates_of
from sama_mega.planner.step_time import StepTime, predict_parts, predict_step_time
from sama_mega.planner.work import Passes, block_passes, block_sizes
from sama_mega.planner.workload import micro_batch_shape, plan_workload
from tests.support.distributed import REPOSITORY

KINDS = load_gpu_kinds(environ={})
H200 = KINDS["H200"]


def wan(*overrides: str) -> Recipe:
    return load_recipe(REPOSITORY / "recipes/wan14b_stage1.yaml", ["data.buckets=[[832,480]]", *overrides])


def step(num_gpus: int, *overrides: str, gpus_per_node: int = 8) -> StepTime:
    recipe = wan(*overrides)
    return predict_step_time(recipe, resolve_layout(recipe, num_gpus), H200, gpus_per_node)


def block(mode: str, num_frames: int, num_samples: int, **degrees: Any) -> Passes:
    recipe = wan("parallel.tensor=1", *(f"parallel.{key}={value}" for key, value in degrees.items()))
    layout = resolve_layout(recipe, degrees.get("tensor", 1) * degrees.get("context", 1))
    batch = micro_batch_shape(recipe, layout, Shape("video", 832, 480, num_frames, num_frames), num_samples)
    return block_passes(block_sizes(recipe, layout, batch), mode)


def test_one_block_at_65585_tokens_is_near_what_an_h200_takes() -> None:
    """Products alone 0.173 s, self-attention alone 0.491 s (FlashAttention-4)."""
    rates = rates_of(H200, "bfloat16")
    once = block("none", 81, 1).forward + block("none", 81, 1).backward
    assert once.gemm_seconds(rates) == pytest.approx(0.173, rel=0.01)
    assert once.attention_seconds(rates) == pytest.approx(0.491, rel=0.03)


@pytest.mark.parametrize(("num_frames", "num_samples", "measured"), [(81, 1, 0.810), (49, 1, 0.366), (1, 8, 0.109)])
def test_a_fused_block_is_predicted_below_the_unfused_one_that_was_measured(
    num_frames: int, num_samples: int, measured: float
) -> None:
    passes = block("none", num_frames, num_samples)
    predicted = (passes.forward + passes.backward).seconds(rates_of(H200, "bfloat16"))
    assert 0.75 * measured < predicted < measured


def test_operations_are_those_of_the_formula() -> None:
    passes, flops = block("none", 49, 2), block_flops(5120, 13824, 40_625, 512) * 2
    assert passes.forward.gemm == pytest.approx(flops.gemm)
    assert passes.forward.attention_forward == pytest.approx(flops.attention)
    assert passes.backward.gemm + passes.backward.attention_backward == pytest.approx(flops.backward)


@pytest.mark.parametrize("degrees", [{"tensor": 4}, {"context": 4}, {"tensor": 2, "context": 2}])
def test_ranks_share_a_blocks_work(degrees: dict[str, int]) -> None:
    alone, shared = block("full", 81, 1), block("full", 81, 1, **degrees)
    for field in ("gemm", "attention_forward", "attention_backward"):
        for name in ("forward", "backward", "again"):
            own, whole = getattr(getattr(shared, name), field), getattr(getattr(alone, name), field)
            # Text's keys and values are every context rank's, and a sequence is padded.
            assert whole / 4 <= own <= 1.03 * whole / 4


def test_recompute_repeats_more_from_mode_to_mode() -> None:
    rates = rates_of(H200, "bfloat16")
    again = [block(mode, 81, 1).again for mode in ("none", "selective", "selective_ffn", "full")]
    seconds = [work.seconds(rates) for work in again]
    assert seconds[0] == 0 and sorted(seconds) == seconds and len(set(seconds)) == 4
    assert again[1].gemm == again[1].attention_forward == 0
    assert again[3] == block("full", 81, 1).forward


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.tensor=8"],
        ["parallel.tensor=8", "parallel.sequence=false"],
        ["parallel.tensor=2", "parallel.context=4"],
        ["parallel.tensor=4", "parallel.pipeline=4", "parallel.interleave=2"],
        ["optimizer.ema_device=host", "lora.rank=16"],
    ],
)
def test_parts_are_the_step(overrides: list[str]) -> None:
    time = step(64, *overrides)
    assert list(time.parts) == list(PARTS) and time.seconds == pytest.approx(sum(time.parts.values()))
    assert all(seconds >= 0 for seconds in time.parts.values()), time.parts
    assert time.mfu is None or 0.05 < time.mfu < 0.7
    assert time.tokens_per_second == time.num_tokens / time.seconds
    assert time.gpu_hours_per_1000_steps == pytest.approx(64 * time.seconds / 3.6)
    assert time.parts[time.bottleneck] == max(time.parts.values())
    assert bool(time.parts["pipeline_bubble"]) == ("parallel.pipeline=4" in overrides)


def test_messages_that_leave_the_node_take_longer() -> None:
    inside, outside = step(8), step(8, gpus_per_node=4)
    assert inside.parts["network_messages"] == 0 and outside.parts["network_messages"] > 0
    assert outside.seconds > inside.seconds
    assert outside.parts["gemm"] == inside.parts["gemm"]


def test_overlap_hides_gradients_and_parameters() -> None:
    plain = step(64, "parallel.overlap_grad_reduce=false", "parallel.overlap_param_gather=false")
    hiding = step(64)
    moved = hiding.hidden_message_seconds - plain.hidden_message_seconds
    exposed = plain.parts["network_messages"] - hiding.parts["network_messages"]
    # Gradients that travel early are cut into buckets, and padded.
    assert moved > 0.01 and moved == pytest.approx(exposed, rel=1e-4)


def test_data_ranks_without_samples_wait() -> None:
    alike, uneven = step(64), step(8 * 448)
    assert alike.parts["uneven_dealing"] < 0.01 * alike.seconds
    # 112 clips for 448 ranks: most of them wait for those that have one.
    assert uneven.bottleneck == "uneven_dealing"


def test_a_cache_of_features_saves_the_encoders(tmp_path: Any) -> None:
    assert step(64).parts["encoders"] > 0
    assert step(64, f"data.cache={tmp_path}").parts["encoders"] == 0


def test_a_cache_holds_no_perturbed_sources(tmp_path: Any) -> None:
    stage0 = ["train.stage=0", "data.images_per_step=0"]
    whole = step(64, *stage0, "motion.speed=0").parts["encoders"]
    cached = step(64, *stage0, "motion.speed=0", f"data.cache={tmp_path}").parts["encoders"]
    # Of target and source the source, of 7 weights those of cube and tube; text and pictures are little beside it.
    assert cached == pytest.approx(whole / 2 * 6 / 7, rel=0.03)
    unperturbed = [f"motion.{kind}=0" for kind in ("cube", "speed", "tube")]
    assert step(64, *stage0, *unperturbed, f"data.cache={tmp_path}").parts["encoders"] == 0


def test_low_rank_training_has_no_mfu() -> None:
    time = step(64, "lora.rank=16")
    assert time.mfu is None and time.flops is None and "MFU" not in time.describe()


def test_other_kinds_follow_their_data_sheets() -> None:
    recipe = wan()
    layout = resolve_layout(recipe, 8)
    seconds = {name: predict_step_time(recipe, layout, gpu, 8).seconds for name, gpu in KINDS.items()}
    assert seconds["A100"] > seconds["H100"] > seconds["H200"] > seconds["B200"]
    assert H200.achieved.measured and not KINDS["B200"].achieved.measured


@pytest.mark.parametrize("field", [field.name for field in fields(Rates) if field.name != "overlap"])
def test_every_rate_counts(field: str) -> None:
    """Slower in any one of them is a slower step."""
    overrides = ["parallel.tensor=2", "parallel.context=2", "optimizer.ema_device=host"]
    if field == "pixel_seconds":
        overrides += ["encoders.video=dct", "encoders.video_path=null"]
    recipe = wan(*overrides, "parallel.overlap_grad_reduce=false")
    layout = resolve_layout(recipe, 8)
    work, rates = plan_workload(recipe, layout), rates_of(H200, "bfloat16")
    value = getattr(rates, field)
    slower = replace(rates, **{field: 2 * value + 1e-9 if "seconds" in field or "keys" in field else value / 2})
    # Four GPUs a node: data ranks are on two of them.
    before, after = (sum(predict_parts(recipe, layout, 4, work, one)[0].values()) for one in (rates, slower))
    assert after > before
