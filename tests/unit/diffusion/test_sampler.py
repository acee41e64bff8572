"""The sampler with models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sama_mega.diffusion.sampler import Condition, sample_edit
from sama_mega.diffusion.schedule import FlowMatchingSchedule

SIGMAS, TIMESTEPS = FlowMatchingSchedule(1000, 5.0).sampling_schedule(8)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class _PerfectModel:
    """Knows the clean answer: conditional to `clean`, unconditional to `null`."""

    def __init__(self, clean: Tensor, null: Tensor, semantic_clean: Tensor, semantic: str = "velocity") -> None:
        self.clean, self.null, self.semantic_clean, self.semantic = clean, null, semantic_clean, semantic
        self.calls: list[tuple[float, bool]] = []

    def __call__(
        self, latents: Tensor, semantic: Tensor | None, timestep: Tensor, condition: Condition
    ) -> tuple[Tensor, Tensor | None]:
        conditional = condition is Condition.BOTH
        self.calls.append((float(timestep[0]), conditional))
        sigma = timestep[0] / 1000
        velocity = (latents - (self.clean if conditional else self.null)) / sigma
        if semantic is None:
            return velocity, None
        if self.semantic == "clean":
            return velocity, self.semantic_clean
        return velocity, (semantic - self.semantic_clean) / sigma


def test_a_perfect_model_is_integrated_to_the_clean_sample() -> None:
    clean, features = _noise(2, 16, 1, 2, 2) + 3, _noise(2, 5, 8) - 2
    model = _PerfectModel(clean, clean, features)
    latents, semantic = sample_edit(model, _noise(2, 16, 1, 2, 2), _noise(2, 5, 8), SIGMAS, TIMESTEPS, 1.0)
    torch.testing.assert_close(latents, clean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(semantic, features, rtol=1e-4, atol=1e-4)
    assert model.calls == [(t, True) for t in TIMESTEPS.tolist()]


def test_a_head_that_predicts_clean_features_samples_them() -> None:
    features = _noise(1, 5, 8)
    model = _PerfectModel(torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 16, 1, 2, 2), features, "clean")
    _, semantic = sample_edit(
        model, _noise(1, 16, 1, 2, 2), _noise(1, 5, 8), SIGMAS, TIMESTEPS, 1.0, semantic_target="clean"
    )
    torch.testing.assert_close(semantic, features, rtol=1e-4, atol=1e-4)


def test_guidance_extrapolates_both_velocities_in_one_step() -> None:
    def predict(latents: Tensor, semantic: Tensor | None, timestep: Tensor, condition: Condition):
        value = 3.0 if condition is Condition.BOTH else 1.0
        return torch.full_like(latents, value), torch.full_like(semantic, -value)

    sigmas, timesteps = torch.tensor([1.0, 0.0]), torch.tensor([1000.0])
    latents, semantic = sample_edit(predict, torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 5, 8), sigmas, timesteps, 5.0)
    # 1 + 5 * (3 - 1) = 11, over a step of -1.
    assert torch.equal(latents, torch.full_like(latents, -11.0))
    assert torch.equal(semantic, torch.full_like(semantic, 11.0))


@pytest.mark.parametrize(
    ("guidance", "source_guidance", "expected"),
    [
        (1.0, 0.0, {Condition.BOTH: 1.0}),
        (5.0, 0.0, {Condition.BOTH: 5.0, Condition.SOURCE: -4.0}),
        (1.0, 2.0, {Condition.BOTH: 3.0, Condition.TEXT: -2.0}),
        # The authors': v + s_I (v - v_T) + s_T (v - v_I), with s_T = 4 and s_I = 2.
        (5.0, 2.0, {Condition.BOTH: 7.0, Condition.SOURCE: -4.0, Condition.TEXT: -2.0}),
        (0.0, -1.0, {Condition.BOTH: -1.0, Condition.SOURCE: 1.0, Condition.TEXT: 1.0}),
    ],
)
def test_both_scales_weigh_the_passes_that_they_need(
    guidance: float, source_guidance: float, expected: dict[Condition, float]
) -> None:
    known = {
        condition: (_noise(1, 16, 1, 2, 2) + place, _noise(1, 5, 8) - place)
        for place, condition in enumerate(Condition)
    }
    asked: list[Condition] = []

    def predict(_: Tensor, __: Tensor | None, ___: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        asked.append(condition)
        return known[condition]

    sigmas, timesteps = torch.tensor([1.0, 0.0]), torch.tensor([1000.0])
    start = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 5, 8)
    found = sample_edit(predict, *start, sigmas, timesteps, guidance, source_guidance=source_guidance)
    assert asked == list(expected)
    for place in (0, 1):
        truth = -sum(weight * known[condition][place] for condition, weight in expected.items())
        torch.testing.assert_close(found[place], truth, rtol=1e-5, atol=1e-5)


def test_guidance_runs_both_passes_and_reports_steps() -> None:
    clean = torch.zeros(1, 16, 1, 2, 2)
    model = _PerfectModel(clean, clean, torch.zeros(1, 5, 8))
    finished: list[int] = []
    sample_edit(model, clean, None, SIGMAS, TIMESTEPS, 5.0, on_step=finished.append)
    assert [conditional for _, conditional in model.calls] == [True, False] * 8
    assert finished == list(range(1, 9))


def test_the_inputs_are_not_changed() -> None:
    latents, semantic = _noise(1, 16, 1, 2, 2), _noise(1, 5, 8)
    before = latents.clone(), semantic.clone()
    model = _PerfectModel(torch.zeros_like(latents), torch.zeros_like(latents), torch.zeros_like(semantic))
    sample_edit(model, latents, semantic, SIGMAS, TIMESTEPS, 1.0)
    assert torch.equal(latents, before[0]) and torch.equal(semantic, before[1])


def test_mismatched_schedules_and_missing_semantics_are_refused() -> None:
    latents = torch.zeros(1, 16, 1, 2, 2)
    with pytest.raises(ValueError, match="one more"):
        sample_edit(lambda *_: (latents, None), latents, None, SIGMAS[:-1], TIMESTEPS, 1.0)
    with pytest.raises(ValueError, match="no semantic velocity"):
        sample_edit(lambda *_: (latents, None), latents, torch.zeros(1, 5, 8), SIGMAS, TIMESTEPS, 1.0)
