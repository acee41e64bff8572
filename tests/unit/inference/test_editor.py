"""The editor around a model whose answers are known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sama_kernels.philox import random_normal
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.diffusion.streams import Stream
from sama_mega.encoders import Encoders, build_encoders
from sama_mega.inference.editor import (
    EditNotFiniteError,
    Editor,
    SamplingSettings,
    frames_from_pixels,
    pixels_from_frames,
)
from sama_mega.model import ModelInput
from tests.support.tiny_recipe import SIZE, tiny_recipe

CPU = torch.device("cpu")


class KnownModel(nn.Module):
    """Points every sample at `answer(source latents, text)`, which Euler steps then reach exactly."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def forward(self, given: ModelInput) -> SimpleNamespace:
        latents, timestep, text = given.noisy_latents, given.timesteps, given.text
        source, semantic = given.source_latents, given.noisy_semantic
        assert given.semantic_target is None
        self.calls.append(
            {"latents": latents, "timestep": timestep, "text": text, "source": source, "semantic": semantic}
        )
        sigma = timestep.view(-1, 1, 1, 1, 1) / 1000
        velocity = (latents - self.answer(source, text, latents)) / sigma
        return SimpleNamespace(velocity=velocity, semantic_velocity=torch.zeros_like(semantic))


def keep_source(source: Tensor, text: Tensor, latents: Tensor) -> Tensor:
    return source


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return tiny_recipe(1, Path("unused"), Path("unused.jsonl"), changes={"anchor.num_frames": 2})


@pytest.fixture(scope="module")
def encoders(recipe: Recipe) -> Encoders:
    return build_encoders(recipe, CPU)


def make_clips(num_clips: int, frames: int = 5) -> Tensor:
    """[B, 3, T, H, W] smooth enough for the codec."""
    generator = torch.Generator().manual_seed(1)
    small = torch.rand(num_clips, 3, frames, 4, 4, generator=generator) * 1.6 - 0.8
    return nn.functional.interpolate(small, size=(frames, SIZE, SIZE), mode="trilinear")


def run(recipe: Recipe, encoders: Encoders, model: nn.Module, clips: Tensor, **changes: Any) -> Tensor:
    settings = SamplingSettings(changes.pop("steps", 3), changes.pop("guidance", 1.0), changes.pop("seed", 1))
    prompts = changes.pop("prompts", [f"[Video edit] number {place}" for place in range(len(clips))])
    return Editor(recipe, model, encoders, CPU).edit(clips, prompts, settings, **changes)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_exact_model_is_followed_to_the_end(recipe: Recipe, encoders: Encoders, steps: int) -> None:
    clips = make_clips(2)
    edited = run(recipe, encoders, KnownModel(keep_source), clips, steps=steps)
    assert edited.shape == clips.shape and edited.dtype == torch.float32
    codec = encoders.video
    torch.testing.assert_close(edited, codec.decode(codec.encode(clips)), atol=2e-5, rtol=0)


def test_the_model_sees_source_prompt_and_falling_timesteps(recipe: Recipe, encoders: Encoders) -> None:
    model, clips = KnownModel(keep_source), make_clips(2)
    prompts = ["[Video edit] make it red", "[Video edit] remove it"]
    run(recipe, encoders, model, clips, steps=3, prompts=prompts)
    assert len(model.calls) == 3
    times = [call["timestep"] for call in model.calls]
    assert all(time.shape == (2,) and time.dtype == torch.float32 for time in times)
    assert times[0].tolist() == [1000.0, 1000.0]
    assert times[0][0] > times[1][0] > times[2][0] > 0
    for call in model.calls:
        assert torch.equal(call["text"], encoders.text.encode(prompts))
        assert torch.equal(call["source"], encoders.video.encode(clips))
        assert call["semantic"].shape == (2, 2 * recipe.anchor.tokens_per_anchor, recipe.model.semantic_dim)


def test_without_anchor_frames_there_is_nothing_semantic(encoders: Encoders) -> None:
    bare = tiny_recipe(1, Path("unused"), Path("unused.jsonl"), changes={"anchor.num_frames": 0})
    seen: list[Tensor | None] = []

    def model(given: ModelInput) -> SimpleNamespace:
        seen.append(given.noisy_semantic)
        return SimpleNamespace(velocity=torch.zeros_like(given.noisy_latents), semantic_velocity=None)

    clips = make_clips(1)
    assert run(bare, encoders, model, clips, steps=2, guidance=2.0).shape == clips.shape
    assert seen == [None] * 4


def test_guidance_asks_twice_and_goes_beyond_the_instruction(recipe: Recipe, encoders: Encoders) -> None:
    negative = encoders.text.encode(["[Video edit]"])

    def answer(source: Tensor, text: Tensor, latents: Tensor) -> Tensor:
        return source * (0.5 if torch.equal(text[:1], negative) else 0.6)

    model, clips = KnownModel(answer), make_clips(1)
    edited = run(recipe, encoders, model, clips, steps=2, guidance=3.0)
    asked = ["no" if torch.equal(call["text"], negative) else "yes" for call in model.calls]
    assert asked == ["yes", "no"] * 2
    latents = encoders.video.encode(clips) * (0.5 + 3.0 * 0.1)
    torch.testing.assert_close(edited, encoders.video.decode(latents), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("own", "kind", "expected"),
    [
        (None, "video", "[Video edit]"),
        (None, "image", "[Image edit]"),
        ("blurred", "video", "blurred"),
        ("blurred", "image", "blurred"),
        ("", "image", ""),
    ],
)
def test_the_negative_prompt_is_the_recipes_or_that_of_the_kind(
    recipe: Recipe, encoders: Encoders, own: str | None, kind: str, expected: str
) -> None:
    assert recipe.diffusion.negative_prompt is None
    changed = recipe.model_copy(update={"diffusion": recipe.diffusion.model_copy(update={"negative_prompt": own})})
    model = KnownModel(keep_source)
    run(changed, encoders, model, make_clips(1, 1), steps=1, guidance=2.0, kind=kind)
    assert torch.equal(model.calls[1]["text"], encoders.text.encode([expected]))


def test_source_guidance_asks_once_more_without_a_source(recipe: Recipe, encoders: Encoders) -> None:
    def answer(source: Tensor | None, text: Tensor, latents: Tensor) -> Tensor:
        return torch.zeros_like(latents) if source is None else 0.5 * source

    model, clips = KnownModel(answer), make_clips(1)
    settings = SamplingSettings(2, 1.0, 1, source_guidance=0.6)
    edited = Editor(recipe, model, encoders, CPU).edit(clips, ["[Video edit] x"], settings)
    assert [call["source"] is None for call in model.calls] == [False, True] * 2
    assert all(torch.equal(call["text"], encoders.text.encode(["[Video edit] x"])) for call in model.calls)
    latents = encoders.video.encode(clips) * (0.5 + 0.6 * 0.5)
    torch.testing.assert_close(edited, encoders.video.decode(latents), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("guidance", "calls"), [(1.0, 2), (0.0, 4), (5.0, 4)])
def test_only_a_guidance_of_one_spares_the_second_pass(
    recipe: Recipe, encoders: Encoders, guidance: float, calls: int
) -> None:
    model = KnownModel(keep_source)
    run(recipe, encoders, model, make_clips(1), steps=2, guidance=guidance)
    assert len(model.calls) == calls


def test_noise_is_the_seeds_and_the_clips_own(recipe: Recipe, encoders: Encoders) -> None:
    clips = make_clips(3)
    first = KnownModel(keep_source)
    run(recipe, encoders, first, clips, seed=4)
    start = first.calls[0]["latents"]
    for key, stream in (("latents", Stream.SAMPLING_LATENT), ("semantic", Stream.SAMPLING_SEMANTIC)):
        noise = first.calls[0][key]
        for place in range(3):
            torch.testing.assert_close(noise[place], random_normal(4, place, 0, stream, noise.shape[1:], CPU))
    assert not torch.equal(start[0], start[1])
    single, other = KnownModel(keep_source), KnownModel(keep_source)
    run(recipe, encoders, single, clips[:1], seed=4)
    run(recipe, encoders, other, clips, seed=5)
    assert torch.equal(single.calls[0]["latents"][0], start[0])
    assert torch.equal(single.calls[0]["semantic"][0], first.calls[0]["semantic"][0])
    assert not torch.equal(other.calls[0]["latents"], start)
    assert not torch.equal(other.calls[0]["semantic"], first.calls[0]["semantic"])


@pytest.mark.parametrize(("given", "wanted"), [(5, 9), (9, 5), (1, 5), (5, 1), (5, None)])
def test_the_result_may_be_longer_or_shorter_than_its_source(
    recipe: Recipe, encoders: Encoders, given: int, wanted: int | None
) -> None:
    model = KnownModel(lambda source, text, latents: torch.zeros_like(latents))
    edited = run(recipe, encoders, model, make_clips(1, given), num_frames=wanted)
    assert edited.shape == (1, 3, wanted or given, SIZE, SIZE)
    assert model.calls[0]["source"].shape[2] == 1 + (given - 1) // 4
    assert model.calls[0]["latents"].shape[2] == 1 + ((wanted or given) - 1) // 4


def test_steps_are_counted_aloud_and_nothing_is_differentiated(recipe: Recipe, encoders: Encoders) -> None:
    heard: list[int] = []
    model = KnownModel(keep_source)
    edited = run(recipe, encoders, model, make_clips(1).requires_grad_(), steps=4, on_step=heard.append)
    assert heard == [1, 2, 3, 4]
    assert not edited.requires_grad


def test_frames_and_pixels_are_each_others_inverse() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (5, 4, 6, 3), generator=generator, dtype=torch.uint8)
    pixels = pixels_from_frames(frames)
    assert pixels.shape == (3, 5, 4, 6) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert torch.equal(frames_from_pixels(pixels), frames)
    assert pixels[1, 2, 3, 4].item() == pytest.approx(frames[2, 3, 4, 1].item() / 127.5 - 1)
    beyond = torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(3, 1, 1, 2)
    assert frames_from_pixels(beyond)[0, 0].tolist() == [[0, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_edit_that_is_not_finite_is_refused(recipe: Recipe, encoders: Encoders, bad: float) -> None:
    def diverge(source: Tensor, text: Tensor, latents: Tensor) -> Tensor:
        answer = source.clone()
        answer[-1, 0, 0, 0, 0] = bad
        return answer

    with pytest.raises(EditNotFiniteError, match="not finite after 3 steps with guidance 1"):
        run(recipe, encoders, KnownModel(diverge), make_clips(2))


@pytest.mark.parametrize("guidance", [(float("inf"), 0.0), (float("nan"), 0.0), (1.0, float("inf"))])
def test_guidance_is_finite(guidance: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="must be a finite number"):
        SamplingSettings(2, guidance[0], 1, guidance[1])
