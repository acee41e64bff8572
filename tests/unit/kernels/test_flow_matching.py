"""flow_matching: values, every gradient, and refusals."""

from __future__ import annotations

import pytest
import torch

from sama_kernels.flow_matching import add_noise, velocity_target, weighted_mse


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_noise_levels_zero_and_one_are_the_ends() -> None:
    x, noise = _normal(3, 5, 7), _normal(3, 5, 7, seed=1)
    noisy = add_noise(x, noise, torch.tensor([0.0, 1.0, 0.25]))
    assert torch.equal(noisy[0], x[0])
    assert torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.75 * x[2] + 0.25 * noise[2])


def test_bfloat16_is_computed_in_float32_and_rounded_once() -> None:
    x, noise = _normal(2, 33).bfloat16(), _normal(2, 33, seed=1)
    sigma = torch.tensor([0.99, 0.013])
    noisy = add_noise(x, noise, sigma)
    exact = (1 - sigma.double())[:, None] * x.double() + sigma.double()[:, None] * noise.double()
    assert noisy.dtype == torch.bfloat16
    assert float((noisy.double() - exact).abs().max()) <= float(exact.abs().max()) * 2**-8
    assert velocity_target(x, noise).dtype == torch.float32


def test_velocity_points_from_clean_to_noise() -> None:
    x, noise = _normal(2, 4), _normal(2, 4, seed=1)
    assert torch.equal(velocity_target(x, noise), noise - x)


def test_error_and_every_gradient_match_the_formula() -> None:
    velocity, target = _normal(3, 2, 5).requires_grad_(), _normal(3, 2, 5, seed=1).requires_grad_()
    weight = torch.tensor([0.5, 2.0, 0.0], requires_grad=True)
    error = weighted_mse(velocity, target, weight)
    upstream = torch.tensor([1.0, -3.0, 2.0])
    error.backward(upstream)
    difference = (velocity - target).detach()
    mean = difference.square().mean(dim=(1, 2))
    torch.testing.assert_close(error.detach(), weight.detach() * mean)
    expected = (2 * weight.detach() * upstream / 10)[:, None, None] * difference
    torch.testing.assert_close(velocity.grad, expected)
    torch.testing.assert_close(target.grad, -expected)
    torch.testing.assert_close(weight.grad, mean * upstream)


def test_no_weight_means_one() -> None:
    velocity, target = _normal(3, 7), _normal(3, 7, seed=1)
    assert torch.equal(weighted_mse(velocity, target), weighted_mse(velocity, target, torch.ones(3)))


def test_shapes_that_would_broadcast_are_refused() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="shape of x"):
        add_noise(x, torch.zeros(1, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="one value a sample"):
        add_noise(x, x, torch.zeros(1))
    with pytest.raises(ValueError, match="shape of x"):
        velocity_target(x, torch.zeros(3))
    with pytest.raises(ValueError, match="shape of velocity"):
        weighted_mse(x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="one value a sample"):
        weighted_mse(x, x, torch.zeros(()))


def test_a_backend_that_is_not_built_is_named() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"triton.*flow_matching"):
        add_noise(x, x, torch.zeros(1), backend="triton")
    assert torch.equal(add_noise(x, x, torch.zeros(1), backend="reference"), x)
