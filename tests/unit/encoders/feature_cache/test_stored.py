"""What is stored of a feature gives it back to the last bit, in half the bytes where that is possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sama_mega.encoders.feature_cache.stored import pack, unpack
from tests.support.feature_caches import random_feature


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int32)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8), st.booleans())
def test_numbers_come_back_to_the_last_bit(values: list[float], halve: bool) -> None:
    feature = torch.tensor(values)
    if halve:
        feature = feature.bfloat16().float()
    stored = pack("latents", feature)
    assert stored.dtype == torch.bfloat16 or not halve
    assert torch.equal(bits(unpack("latents", stored, 0)), bits(feature))


def test_what_bfloat16_cannot_hold_stays_float32() -> None:
    assert pack("semantic", torch.tensor([1.0, 1.0 + 2**-8])).dtype == torch.float32
    assert pack("semantic", torch.tensor([1.0, 1.0 + 2**-7])).dtype == torch.bfloat16


@pytest.mark.parametrize("used", [0, 1, 3, 6])
def test_a_text_is_stored_without_the_zeros_after_it(used: int) -> None:
    feature = torch.zeros(6, 5)
    feature[:used] = random_feature(used, used, 5)
    if used == 3:
        feature[1] = 0  # a row of zeros before the end is none of them
    stored = pack("text", feature)
    assert stored.shape == (used, 5)
    assert torch.equal(bits(unpack("text", stored, 6)), bits(feature))


def test_zeros_of_frames_are_kept() -> None:
    assert pack("latents", torch.zeros(4, 3)).shape == (4, 3)


def test_what_is_stored_stands_alone() -> None:
    whole = random_feature(0, 8, 4)
    stored = pack("text", whole.t())
    assert stored.is_contiguous() and stored.shape == (4, 8)
