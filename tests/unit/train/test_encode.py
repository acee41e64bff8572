"""Encoding with a cache: what it has is read, the rest encoded together; perturbed sources always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sama_data.graph.frames import DeviceFrames
from sama_data.pretext import BLACK_FRAME, PretextPlan, identity_plan
from sama_data.samples import Sample
from sama_mega.encoders import Encoders, build_encoders
from sama_mega.encoders.feature_cache import FeatureCache
from sama_mega.train.encode import FrameEncoders, SampleEncoder, is_unperturbed
from tests.support.feature_caches import Feature, write_cache
from tests.unit.train.test_batch import make_recipe, make_sample

RECIPE = make_recipe(anchor__num_frames=2)
LENGTH = RECIPE.model.text_length
PROMPTS = ["a red circle", "a blue square", ""]
CUBE = PretextPlan("cube", (0, BLACK_FRAME, BLACK_FRAME, 3, 4), None, "")
TARGETS, SOURCES, ANCHORS, TEXT = range(4)


class Counted:
    """An encoder that notes how many samples each call encodes."""

    def __init__(self, encoder: Any, calls: list[int]) -> None:
        self._encoder, self._calls = encoder, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, given: Any) -> Tensor:
        self._calls.append(len(given))
        return self._encoder.encode(given)  # type: ignore[no-any-return]


class Lent(DeviceFrames):
    """Frames as DALI lends them, here in the only memory there is."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self._tensor, self.shape = array, array.shape  # type: ignore[assignment]


@pytest.fixture
def encoders() -> Encoders:
    return build_encoders(RECIPE, "cpu")


@pytest.fixture
def samples() -> list[Sample]:
    """An edit, a raw clip as it is, a raw clip with black frames."""
    edit = make_sample(0, source_frames=make_sample(9).target_frames, task="edit")
    return [edit, make_sample(1), make_sample(2, plan=CUBE, task="cube")]


def run_jobs(
    samples: Sequence[Sample], encoders: Encoders, cache: FeatureCache | None
) -> tuple[list[Tensor], dict[str, list[int]]]:
    """The four results, and what each encoder was asked for."""
    calls: dict[str, list[int]] = {"video": [], "semantic": [], "text": []}
    counted = replace(encoders, **{role: Counted(getattr(encoders, role), calls[role]) for role in calls})
    jobs = SampleEncoder(RECIPE, counted, torch.device("cpu"), cache).jobs(samples, PROMPTS[: len(samples)], 6)
    results = [job.run() for job in jobs]
    assert [tuple(result.shape) for result in results] == [job.shape for job in jobs]
    return results, calls


def cached(path: Path, encoders: Encoders, features: list[Feature]) -> FeatureCache:
    write_cache(path, {"a": features}, encoders.identity())
    return FeatureCache(path, encoders.identity(), LENGTH)


def everything(samples: Sequence[Sample], encoders: Encoders) -> list[Feature]:
    """What `data cache` would store, and for each clip what nobody would encode: 1 is added."""
    encode = FrameEncoders(RECIPE, encoders, torch.device("cpu"))
    features: list[Feature] = []
    for sample, prompt in zip(samples, PROMPTS, strict=True):
        for frames in (sample.target_frames, sample.source_frames):
            features.append(("latents", frames, encode.clips([frames], [None])[0] + 1))
        anchors = encode.anchors_of(sample.target_frames)
        features.append(("semantic", anchors, encode.anchors([anchors])[0] + 1))
        text = encode.prompts([prompt])[0]
        features.append(("text", prompt, text + text.any(dim=1, keepdim=True)))
    return features


def test_without_a_cache_all_samples_are_encoded_together(samples: list[Sample], encoders: Encoders) -> None:
    results, calls = run_jobs(samples, encoders, None)
    assert calls == {"video": [3, 3], "semantic": [3], "text": [3]}
    assert [result.dtype for result in results] == [torch.float32] * 4


def test_frames_of_a_device_are_encoded_without_a_way_through_the_host(
    samples: list[Sample], encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = run_jobs(samples, encoders, None)
    lent = [
        replace(sample, source_frames=Lent(sample.source_frames), target_frames=Lent(sample.target_frames))
        for sample in samples
    ]
    monkeypatch.setattr(torch, "from_numpy", None)  # the way through the host
    given, _ = run_jobs(lent, encoders, None)
    assert all(torch.equal(one, other) for one, other in zip(given, plain, strict=True))


def test_with_everything_in_it_only_perturbed_sources_are_encoded(
    samples: list[Sample], encoders: Encoders, tmp_path: Path
) -> None:
    plain, _ = run_jobs(samples, encoders, None)
    cache = cached(tmp_path, encoders, everything(samples, encoders))
    results, calls = run_jobs(samples, encoders, cache)
    assert calls == {"video": [1], "semantic": [], "text": []}
    assert cache.hits == {"latents": 5, "semantic": 3, "text": 3} and not cache.misses
    assert torch.equal(results[TARGETS], plain[TARGETS] + 1)
    assert torch.equal(results[ANCHORS], plain[ANCHORS] + 1)
    assert torch.equal(results[TEXT], plain[TEXT] + plain[TEXT].any(dim=2, keepdim=True))
    assert torch.equal(results[SOURCES][:2], plain[SOURCES][:2] + 1)
    assert torch.equal(results[SOURCES][2], plain[SOURCES][2])  # perturbed, and not what the cache has of the clip


def test_what_is_missing_is_encoded_together_and_put_in_place(
    samples: list[Sample], encoders: Encoders, tmp_path: Path
) -> None:
    plain, _ = run_jobs(samples, encoders, None)
    of_the_second = everything(samples, encoders)[4:8]
    cache = cached(tmp_path, encoders, of_the_second)
    results, calls = run_jobs(samples, encoders, cache)
    assert calls == {"video": [2, 2], "semantic": [2], "text": [2]}
    assert cache.hits == {"latents": 2, "semantic": 1, "text": 1}
    assert cache.misses == {"latents": 3, "semantic": 2, "text": 2}
    for ours, truth in zip(results, plain, strict=True):
        assert torch.equal(ours[0], truth[0]) and torch.equal(ours[2], truth[2])
        assert not torch.equal(ours[1], truth[1])


def test_predicted_costs_leave_out_what_the_cache_should_hold(
    samples: list[Sample], encoders: Encoders, tmp_path: Path
) -> None:
    device = torch.device("cpu")
    plain = [job.cost for job in SampleEncoder(RECIPE, encoders, device).jobs(samples, PROMPTS, 6)]
    cache = cached(tmp_path, encoders, [])
    ours = [job.cost for job in SampleEncoder(RECIPE, encoders, device, cache).jobs(samples, PROMPTS, 6)]
    assert min(plain) > 0 and plain[TARGETS] == plain[SOURCES]
    assert ours == [0, pytest.approx(plain[SOURCES] / 3), 0, 0]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (identity_plan(5), True),
        (identity_plan(5, "edit"), True),
        (CUBE, False),
        (PretextPlan("speed", (0, 2, 4), None, ""), False),
        (PretextPlan("speed", (0, 1, 2), None, ""), False),
        (PretextPlan("tube", tuple(range(5)), (1, 0, 2, 3, 4, 5, 6, 7), ""), False),
    ],
)
def test_a_plan_that_changes_nothing_is_told(plan: PretextPlan, expected: bool) -> None:
    assert is_unperturbed(make_sample(0, plan=plan)) == expected
