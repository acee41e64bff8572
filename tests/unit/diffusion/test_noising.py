"""Noising against the golden tensors, and the draws behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sama_kernels.flow_matching import add_noise
from sama_kernels.philox import random_normal
from sama_mega.diffusion.noising import (
    draw_noise_levels,
    draw_text_dropout,
    noise_latents,
    noise_semantic_features,
    semantic_prediction_to_velocity,
)
from sama_mega.diffusion.schedule import FlowMatchingSchedule
from sama_mega.diffusion.streams import Stream

GOLDEN = Path(__file__).parents[2] / "golden"
FOLDERS = ["edit_tiny", "anchor4_tiny", "text_to_video_tiny"]


@pytest.fixture(params=FOLDERS)
def golden(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / request.param / "io.safetensors")


def test_latents_equal_the_golden_ones(golden: dict[str, torch.Tensor]) -> None:
    noisy, velocity = add_noise(golden["latents"], golden["noise"], golden["sigmas"])
    torch.testing.assert_close(noisy, golden["noisy_latents"], rtol=1e-6, atol=1e-7)
    assert torch.equal(velocity, golden["velocity_target"])


def test_semantic_features_equal_the_golden_ones(golden: dict[str, torch.Tensor]) -> None:
    features, noise = golden["semantic_features"], golden["semantic_noise"]
    noisy, velocity = add_noise(features, noise, golden["sigmas"])
    torch.testing.assert_close(noisy, golden["noisy_semantic_features"], rtol=1e-6, atol=1e-7)
    assert torch.equal(velocity, golden["semantic_velocity_target"])


def test_golden_levels_are_levels_of_the_schedule(golden: dict[str, torch.Tensor]) -> None:
    schedule = FlowMatchingSchedule(1000, 5.0, "bell")
    for sigma, timestep, weight in zip(golden["sigmas"], golden["timesteps"], golden["loss_weights"], strict=True):
        level = int((schedule.train_timesteps - timestep).abs().argmin())
        assert float(schedule.train_sigmas[level]) == float(sigma)
        assert float(schedule.train_weights[level]) == pytest.approx(float(weight), abs=1e-6)


def test_noise_levels_belong_together_and_cover_the_schedule() -> None:
    schedule = FlowMatchingSchedule(1000, 5.0, "bell")
    levels = draw_noise_levels(schedule, 7, list(range(8000)), 0)
    assert torch.equal(levels.timesteps, levels.sigmas * 1000)
    level = torch.searchsorted(-schedule.train_timesteps, -levels.timesteps)
    assert torch.equal(schedule.train_weights[level], levels.weights)
    assert len(level.unique()) > 990
    assert abs(float(level.double().mean()) - 499.5) < 15


def test_a_sample_keeps_its_level_in_any_batch() -> None:
    schedule = FlowMatchingSchedule()
    together = draw_noise_levels(schedule, 1, [4, 9, 2], [0, 3, 1])
    alone = draw_noise_levels(schedule, 1, [9], [3])
    assert float(together.sigmas[1]) == float(alone.sigmas[0])


def test_latents_and_features_draw_different_noise_at_one_level() -> None:
    latents, features = torch.zeros(2, 16, 1, 2, 2), torch.zeros(2, 4, 16)
    sigmas = torch.tensor([1.0, 0.5])
    noised = noise_latents(latents, 3, [10, 11], [0, 0], sigmas)
    semantic = noise_semantic_features(features, 3, [10, 11], [0, 0], sigmas)
    noise = random_normal(3, 11, 0, Stream.LATENT_NOISE, [16, 1, 2, 2])
    torch.testing.assert_close(noised.noisy[1], 0.5 * noise)
    assert torch.equal(noised.target[1], noise)
    assert not torch.allclose(noised.target.flatten(1), semantic.target.flatten(1))


def test_clean_target_is_the_features() -> None:
    features = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.3, 0.9])
    clean = noise_semantic_features(features, 0, [1, 2], 0, sigmas, "clean")
    velocity = noise_semantic_features(features, 0, [1, 2], 0, sigmas, "velocity")
    assert torch.equal(clean.target, features)
    assert torch.equal(clean.noisy, velocity.noisy)


def test_a_clean_prediction_becomes_the_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    features, noise = torch.randn(1, 5, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)
    noisy, _ = add_noise(features, noise, torch.tensor([0.4]))
    velocity = semantic_prediction_to_velocity(features, noisy, 0.4, "clean")
    torch.testing.assert_close(velocity, noise - features, rtol=1e-5, atol=1e-5)
    assert semantic_prediction_to_velocity(features, noisy, 0.4, "velocity") is features


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match=r"anchor\.target"):
        noise_semantic_features(torch.zeros(1, 1), 0, 1, 0, torch.ones(1), "noise")  # type: ignore[arg-type]


def test_text_dropout_has_its_rate_and_depends_on_the_epoch() -> None:
    samples = list(range(5000))
    first = draw_text_dropout(0, samples, [0] * 5000, 0.1)
    second = draw_text_dropout(0, samples, [1] * 5000, 0.1)
    assert 420 < sum(first) < 580
    assert first != second
    assert not any(draw_text_dropout(0, samples, [0] * 5000, 0.0))
    assert all(draw_text_dropout(0, samples, [0] * 5000, 1.0))
