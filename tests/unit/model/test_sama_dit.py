"""The whole model on one rank: its kinds of sequence, its ablations, its precision.

Equality with the authors' code is tests/parity's business; here are the properties that no golden folder has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sama_mega.model.block
import sama_mega.model.heads
from sama_mega.config import ConfigError, Recipe, build_recipe
from sama_mega.model import ModelInput, ModelOutput, SamaDiT, build_model
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.parameters.shapes import our_shapes

SIZES = {
    "dim": 64,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 96,
    "text_dim": 24,
    "text_length": 7,
    "time_features": 16,
    "semantic_dim": 20,
    "semantic_hidden_dim": 12,
}
LATENTS = (2, 16, 2, 4, 6)
NUM_SEMANTIC = 5


def make_recipe(precision: str = "float32", num_anchors: int = 1, **model: Any) -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": precision}
    sections = {"model": SIZES | {"type_embedding_std": 0.3} | model, "train": train}
    return build_recipe(sections | {"anchor": {"num_frames": num_anchors}}, "test")


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(make_recipe(), environ={})
    stop_parallel()


@pytest.fixture(scope="module")
def model(context: ParallelContext) -> SamaDiT:
    return build_model(make_recipe(), context)[0]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_inputs(num_semantic: int = NUM_SEMANTIC) -> dict[str, Tensor]:
    """A source of another shape than the target's, as an image that becomes part of a video would be."""
    batch = LATENTS[0]
    return {
        "noisy_latents": normal(*LATENTS, seed=1),
        "timesteps": torch.tensor([999.25, 137.5]),
        "text": normal(batch, 7, 24, seed=2),
        "source_latents": normal(batch, 16, 3, 2, 6, seed=3),
        "noisy_semantic": normal(batch, num_semantic, 20, seed=4),
    }


def run(model: SamaDiT, **inputs: Tensor) -> ModelOutput:
    """Runs the model where it lives; the outputs come back to the CPU."""
    device = next(model.parameters()).device
    output = model(ModelInput(**{name: tensor.to(device) for name, tensor in inputs.items()}))
    tensors = (output.velocity, output.semantic_velocity, output.semantic_loss_share)
    return ModelOutput(*(None if tensor is None else tensor.cpu() for tensor in tensors))


@torch.no_grad()
def predict(model: SamaDiT, **inputs: Tensor) -> ModelOutput:
    return run(model, **inputs)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return ((ours.double() - expected.double()).norm() / expected.double().norm()).item()


# --- kinds of sequence ------------------------------------------------------------------------------


def test_an_edit_gives_both_velocities(model: SamaDiT) -> None:
    output = predict(model, **edit_inputs())
    assert output.velocity.shape == LATENTS
    assert output.semantic_velocity is not None
    assert output.semantic_velocity.shape == (2, NUM_SEMANTIC, 20)
    assert output.semantic_loss_share is None
    assert output.velocity.dtype == output.semantic_velocity.dtype == torch.float32


def test_samples_of_a_batch_do_not_touch_each_other(model: SamaDiT) -> None:
    inputs = edit_inputs()
    both = predict(model, **inputs)
    for sample in range(2):
        alone = predict(model, **{name: tensor[sample : sample + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone.velocity[0], both.velocity[sample], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.semantic_velocity[0], both.semantic_velocity[sample], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["noisy_latents", "timesteps", "text", "source_latents", "noisy_semantic"])
def test_every_input_matters(name: str, model: SamaDiT) -> None:
    inputs = edit_inputs()
    before = predict(model, **inputs)
    after = predict(model, **(inputs | {name: inputs[name].flip(0)}))
    assert relative_error(after.velocity, before.velocity) > 1e-4
    assert relative_error(after.semantic_velocity, before.semantic_velocity) > 1e-4


def test_training_share_is_the_mean_error_of_the_prediction(model: SamaDiT) -> None:
    inputs, target = edit_inputs(), normal(2, NUM_SEMANTIC, 20, seed=5)
    predicted = predict(model, **inputs)
    trained = predict(model, **inputs, semantic_target=target)
    assert trained.semantic_velocity is None
    expected = (predicted.semantic_velocity - target).abs().mean(dim=(1, 2))
    torch.testing.assert_close(trained.semantic_loss_share, expected)
    assert torch.equal(trained.velocity, predicted.velocity)


def test_several_anchors_are_one_longer_semantic_segment(model: SamaDiT) -> None:
    output = predict(model, **edit_inputs(num_semantic=4 * NUM_SEMANTIC))
    assert output.semantic_velocity.shape == (2, 4 * NUM_SEMANTIC, 20)
    # All semantic tokens look alike to attention (zero rotary factors): their order follows their features.
    inputs = edit_inputs(num_semantic=4 * NUM_SEMANTIC)
    rolled = predict(model, **(inputs | {"noisy_semantic": inputs["noisy_semantic"].roll(7, 1)}))
    expected = output.semantic_velocity.roll(7, 1)
    torch.testing.assert_close(rolled.semantic_velocity, expected, rtol=1e-5, atol=1e-5)


def test_an_image_pair(model: SamaDiT) -> None:
    inputs = edit_inputs()
    inputs |= {name: inputs[name][:, :, :1] for name in ("noisy_latents", "source_latents")}
    assert predict(model, **inputs).velocity.shape == (2, 16, 1, 4, 6)


def test_text_to_video_has_target_tokens_only(context: ParallelContext) -> None:
    [model] = build_model(make_recipe(), context)
    inputs = {name: edit_inputs()[name] for name in ("noisy_latents", "timesteps", "text")}
    before = predict(model, **inputs)
    assert (before.semantic_velocity, before.semantic_loss_share) == (None, None)
    embedding = model.get_parameter("segment_embedding.weight")
    with torch.no_grad():
        embedding[:2] = 7.0
    assert torch.equal(predict(model, **inputs).velocity, before.velocity)
    with torch.no_grad():
        embedding[2] = 7.0
    assert relative_error(predict(model, **inputs).velocity, before.velocity) > 0.01


def test_every_parameter_of_an_edit_has_a_gradient(context: ParallelContext) -> None:
    [model] = build_model(make_recipe(), context)
    output = run(model, **edit_inputs(), semantic_target=normal(2, NUM_SEMANTIC, 20, seed=5))
    (output.velocity.square().mean() + output.semantic_loss_share.sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    still = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert not still
    assert model.get_parameter("segment_embedding.weight").grad.abs().sum(1).min() > 0


# --- ablations -----------------------------------------------------------------------------------------


def test_without_anchor_frames_there_is_no_part_for_semantic_tokens(context: ParallelContext, model: SamaDiT) -> None:
    [bare] = build_model(make_recipe(num_anchors=0), context)
    names = {name for name, _ in bare.named_parameters()}
    missing = {name for name, _ in model.named_parameters()} - names
    assert {name.split(".")[0] for name in missing} == {"siglip_feat_mlp", "semantic_head"}
    assert our_shapes(bare.recipe.model, anchors=False).keys() == names
    inputs = edit_inputs()
    del inputs["noisy_semantic"]
    output = run(bare, **inputs)
    assert output.semantic_velocity is None and output.semantic_loss_share is None
    # Weights are drawn by name: what is left is the same model.
    assert torch.equal(output.velocity, predict(model, **inputs).velocity)
    output.velocity.square().mean().backward()
    assert not [name for name, parameter in bare.named_parameters() if parameter.grad is None]


def test_shifted_rope_replaces_the_type_embedding(context: ParallelContext) -> None:
    [shifted] = build_model(make_recipe(roles="shifted_rope"), context)
    assert not [name for name, _ in shifted.named_parameters() if "segment" in name]
    # Without type embedding the two models share all weights: what remains is the source's time positions.
    [plain] = build_model(make_recipe(type_embedding_std=0.0), context)
    inputs = edit_inputs()
    assert relative_error(predict(shifted, **inputs).velocity, predict(plain, **inputs).velocity) > 1e-3
    text_to_video = {name: inputs[name] for name in ("noisy_latents", "timesteps", "text")}
    assert torch.equal(predict(shifted, **text_to_video).velocity, predict(plain, **text_to_video).velocity)


def test_only_position_or_type_tells_source_from_target(context: ParallelContext) -> None:
    """With neither, a target frame would be confused with the source's: the reason for both options."""
    inputs = edit_inputs()
    inputs["source_latents"] = normal(*LATENTS, seed=3)
    inputs["noisy_semantic"] = inputs["noisy_semantic"].zero_()

    def mixed(model: SamaDiT) -> float:
        """How much the semantic tokens notice that source and target were exchanged."""
        kept = predict(model, **inputs).semantic_velocity
        exchanged = inputs | {
            "source_latents": inputs["noisy_latents"],
            "noisy_latents": inputs["source_latents"],
        }
        return relative_error(predict(model, **exchanged).semantic_velocity, kept)

    assert mixed(build_model(make_recipe(type_embedding_std=0.0), context)[0]) < 1e-5
    assert mixed(build_model(make_recipe(type_embedding_std=1.0), context)[0]) > 1e-3
    identity = {"type_embedding_std": 0.0, "semantic_rope": "identity"}
    assert mixed(build_model(make_recipe(**identity, roles="shifted_rope"), context)[0]) > 1e-3


def test_semantic_rope_identity_differs_from_zero(context: ParallelContext, model: SamaDiT) -> None:
    [identity] = build_model(make_recipe(semantic_rope="identity"), context)
    inputs = edit_inputs()
    assert relative_error(predict(identity, **inputs).velocity, predict(model, **inputs).velocity) > 1e-4
    text_to_video = {name: inputs[name] for name in ("noisy_latents", "timesteps", "text")}
    assert torch.equal(predict(identity, **text_to_video).velocity, predict(model, **text_to_video).velocity)


# --- precision -----------------------------------------------------------------------------------------


def test_bfloat16_keeps_time_and_modulation_in_float32(
    context: ParallelContext, model: SamaDiT, monkeypatch: pytest.MonkeyPatch
) -> None:
    [low] = build_model(make_recipe("bfloat16"), context)
    high_precision = {name for name, parameter in low.named_parameters() if parameter.dtype == torch.float32}
    assert high_precision == {
        name for name, _ in low.named_parameters() if name.startswith("time_embedding.") or name.endswith("modulation")
    }
    seen: list[torch.dtype] = []
    block, heads = sama_mega.model.block, sama_mega.model.heads
    for module, name in ((block, "adaln"), (block, "residual_adaln"), (heads, "adaln")):
        operation = getattr(module, name)

        def spy(x: Tensor, *others: Tensor, operation: Any = operation, **options: Any) -> Any:
            assert x.dtype == torch.bfloat16
            seen.extend(modulation.dtype for modulation in others[-2:])
            return operation(x, *others, **options)

        monkeypatch.setattr(module, name, spy)
    inputs, target = edit_inputs(), normal(2, NUM_SEMANTIC, 20, seed=5)
    output = run(low, **inputs, semantic_target=target)
    monkeypatch.undo()
    # Two a block and one in the head, shift and scale each.
    assert seen == [torch.float32] * (2 * (2 * 2 + 1))
    assert output.velocity.dtype == output.semantic_loss_share.dtype == torch.float32
    exact = predict(model, **inputs, semantic_target=target)
    assert 1e-5 < relative_error(output.velocity, exact.velocity) < 0.02
    assert relative_error(output.semantic_loss_share, exact.semantic_loss_share) < 0.01
    (output.velocity.square().mean() + output.semantic_loss_share.sum()).backward()
    for name, parameter in low.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype
        assert bool(parameter.grad.isfinite().all()), name


def test_bfloat16_tells_close_timesteps_apart(context: ParallelContext) -> None:
    """999.25 and 997 are one number in bfloat16."""
    [low] = build_model(make_recipe("bfloat16"), context)
    with torch.no_grad():
        _, modulation = low.time_embedding(torch.tensor([999.25, 997.0], device=context.device))
    assert modulation.dtype == torch.float32
    assert relative_error(modulation[0], modulation[1]) > 1e-3


# --- kernels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["ops", "attention"])
def test_a_kernel_that_is_not_built_is_refused_before_any_forward(key: str, context: ParallelContext) -> None:
    recipe = make_recipe()
    kernels = recipe.kernels.model_copy(update={key: "no_such_kernel"})
    with pytest.raises(ConfigError, match=rf"kernels\.{key} \(no_such_kernel\).*not built") as caught:
        build_model(recipe.model_copy(update={"kernels": kernels}), context)
    assert "\n" not in str(caught.value)
