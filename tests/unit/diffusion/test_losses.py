"""Losses against the golden ones, and their independence of how a batch is cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sama_mega.diffusion.losses import flow_matching_error, sama_loss, weighted_share

GOLDEN = Path(__file__).parents[2] / "golden"


def _golden_errors(folder: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor | None]:
    io = load_file(GOLDEN / folder / "io.safetensors")
    errors = flow_matching_error(io["velocity"], io["velocity_target"], io["loss_weights"])
    if "semantic_velocity" not in io:
        return io, errors, None
    difference = io["semantic_velocity"] - io["semantic_velocity_target"]
    return io, errors, difference.abs().flatten(1).mean(1)


@pytest.mark.parametrize("folder", ["edit_tiny", "anchor4_tiny", "text_to_video_tiny"])
def test_losses_equal_the_golden_ones(folder: str) -> None:
    io, errors, semantic_errors = _golden_errors(folder)
    loss = sama_loss(errors, semantic_errors, torch.ones(len(errors)), len(errors), 0.1)
    for value, name in (
        (loss.flow_matching, "flow_matching_loss"),
        (loss.semantic, "semantic_loss"),
        (loss.total, "total_loss"),
    ):
        torch.testing.assert_close(value, io[name][0], rtol=1e-5, atol=0)


def test_micro_batches_sum_to_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(7, generator=generator)
    weights = torch.tensor([1.0, 1, 0.25, 0.25, 1, 0.25, 1])
    total = float(weights.sum())
    whole = weighted_share(errors, weights, total)
    parts = sum(weighted_share(errors[cut], weights[cut], total) for cut in (slice(0, 1), slice(1, 5), slice(5, 7)))
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(whole, (errors * weights).sum() / weights.sum())


def test_a_long_sample_weighs_as_much_as_a_short_one() -> None:
    short = flow_matching_error(torch.ones(1, 16, 1, 2, 2), torch.zeros(1, 16, 1, 2, 2))
    long = flow_matching_error(torch.full((1, 16, 5, 8, 8), 3.0), torch.zeros(1, 16, 5, 8, 8))
    share = weighted_share(torch.cat([short, long]), torch.ones(2), 2)
    assert float(share) == pytest.approx((1 + 9) / 2)


def test_gradient_reaches_both_parts_with_lambda() -> None:
    flow, semantic = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    sama_loss(flow, semantic, torch.ones(2), 2, 0.1).total.backward()
    torch.testing.assert_close(flow.grad, torch.full((2,), 0.5))
    torch.testing.assert_close(semantic.grad, torch.full((2,), 0.05))


def test_impossible_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        weighted_share(torch.ones(1), torch.zeros(1), 0.0)
    with pytest.raises(ValueError, match="sample weights"):
        weighted_share(torch.ones(2), torch.ones(1), 1.0)
