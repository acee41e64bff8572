"""What all encoders promise: a sample's result is its own, to the last bit, in whatever company it is encoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_mega.encoders import Encoders, build_encoders
from sama_mega.encoders.dct import DctCodec
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import tiny_recipe

PROMPTS = ["a red circle", "", "[Video edit] remove the blue square of a video and make it bigger " * 2]


@pytest.fixture(scope="module", params=["embedded", "pretrained float32", "pretrained bfloat16"])
def encoders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    changes = {}
    if request.param != "embedded":
        changes = pretrained_encoders(pretrained_weights(tmp_path_factory))
        changes["train.precision"] = request.param.split()[1]
    return build_encoders(tiny_recipe(0, Path("unused"), Path("unused"), changes=changes), "cpu")


def random_pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def assert_alone_as_in_company(encode: Callable[[Tensor], Tensor], given: Tensor) -> None:
    together = encode(given)
    assert torch.equal(torch.cat([encode(one) for one in given.split(1)]), together)
    assert torch.equal(encode(given.flip(0)).flip(0), together)
    assert torch.equal(encode(torch.cat([given, given]))[: len(given)], together)


@pytest.mark.parametrize("shape", [(4, 3, 5, 32, 32), (2, 3, 9, 48, 32), (5, 3, 1, 32, 48)])
def test_clips(encoders: Encoders, shape: tuple[int, ...]) -> None:
    clips = random_pixels(*shape)
    assert_alone_as_in_company(encoders.video.encode, clips)
    assert_alone_as_in_company(encoders.video.decode, encoders.video.encode(clips))


@pytest.mark.parametrize("shape", [(3, 3, 13, 64, 48), (2, 3, 9, 112, 64), (12, 3, 1, 64, 112)])
def test_clips_of_the_demos_sizes(shape: tuple[int, ...]) -> None:
    """Large enough for matrix products that are cut into blocks."""
    assert_alone_as_in_company(DctCodec().encode, random_pixels(*shape))


@pytest.mark.parametrize("shape", [(5, 1, 3, 32, 32), (3, 2, 3, 48, 64)])
def test_anchor_frames(encoders: Encoders, shape: tuple[int, ...]) -> None:
    assert_alone_as_in_company(encoders.semantic.encode, random_pixels(*shape))


def test_prompts(encoders: Encoders) -> None:
    together = encoders.text.encode(PROMPTS)
    assert torch.equal(torch.cat([encoders.text.encode([prompt]) for prompt in PROMPTS]), together)
    assert torch.equal(encoders.text.encode(PROMPTS[::-1]).flip(0), together)
