"""The schedule against the released code's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sama_mega.diffusion.schedule import FlowMatchingSchedule

GOLDEN = Path(__file__).parents[2] / "golden" / "schedule" / "flow_matching.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def test_training_levels_equal_the_golden_ones(golden: dict[str, torch.Tensor]) -> None:
    schedule = FlowMatchingSchedule(1000, 5.0, "bell")
    assert schedule.train_sigmas.dtype == torch.float32
    assert torch.equal(schedule.train_sigmas, golden["train_sigmas"])
    assert torch.equal(schedule.train_timesteps, golden["train_timesteps"])
    torch.testing.assert_close(schedule.train_weights, golden["train_weights"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_steps", [10, 50])
def test_sampling_levels_equal_the_golden_ones(golden: dict[str, torch.Tensor], num_steps: int) -> None:
    sigmas, timesteps = FlowMatchingSchedule(1000, 5.0, "bell").sampling_schedule(num_steps)
    assert torch.equal(sigmas[:-1], golden[f"sample_sigmas_{num_steps}"])
    assert torch.equal(timesteps, golden[f"sample_timesteps_{num_steps}"])
    assert sigmas.shape == (num_steps + 1,) and float(sigmas[-1]) == 0.0


def test_the_levels_of_the_golden_sampling_run() -> None:
    run = load_file(GOLDEN.parents[1] / "edit_tiny" / "sampling.safetensors")
    sigmas, timesteps = FlowMatchingSchedule(1000, 5.0, "bell").sampling_schedule(8)
    assert torch.equal(sigmas[:-1], run["sigmas"])
    assert torch.equal(timesteps, run["timesteps"])


def test_without_shift_the_levels_are_even() -> None:
    schedule = FlowMatchingSchedule(4, 1.0, "none")
    assert schedule.train_sigmas.tolist() == [1.0, 0.75, 0.5, 0.25]
    assert schedule.train_timesteps.tolist() == [4.0, 3.0, 2.0, 1.0]
    assert schedule.train_weights.tolist() == [1.0] * 4


def test_bell_weights_average_one() -> None:
    weights = FlowMatchingSchedule(1000, 3.0, "bell").train_weights
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights.min()) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 5.0, "bell"), "num_train_timesteps"),
        ((1000, 0.0, "bell"), "shift"),
        ((1000, 5.0, "bel"), "timestep_weight"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowMatchingSchedule(*arguments)


def test_sampling_needs_a_step() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FlowMatchingSchedule().sampling_schedule(0)
