"""One optimizer step: what moves the weights, what must not, and the weight of images in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sama_data.loader import Sample, StepSamples
from sama_mega.config.schema import Recipe
from sama_mega.encoders import build_encoders
from sama_mega.parallel import transfer
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train import step as step_module
from sama_mega.train.batch import Batcher, MicroBatch
from sama_mega.train.inputs import build_loader, open_dataset
from sama_mega.train.run_folder import RunFolder
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.train.step import StepOutcome, TrainStep
from tests.support.host_waits import HostWaits
from tests.support.tiny_recipe import alone, assert_bitwise_equal, tiny_recipe, tiny_world

RATE = 3e-3


@dataclass(frozen=True)
class Material:
    """A world of one process and the samples of two steps: slots 0 and 1 images, 2 and 3 videos."""

    recipe: Recipe
    context: ParallelContext
    steps: tuple[StepSamples, StepSamples]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture(scope="module")
def material(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    folder = tmp_path_factory.mktemp("step")
    recipe = tiny_recipe(0, folder, world / "raw.jsonl", changes={"model.head_init": "xavier"})
    with alone(recipe) as context:
        loader = build_loader(recipe, open_dataset(recipe), context, RunFolder(folder))
        yield Material(recipe, context, (loader.step(0), loader.step(1)))


class Trainer:
    """Fresh state and a step that works on it."""

    def __init__(self, material: Material, batcher: type[Batcher] = Batcher, **changes: Any) -> None:
        sections: dict[str, dict[str, Any]] = {}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            sections.setdefault(section, {})[name] = value
        update = {name: getattr(material.recipe, name).model_copy(update=new) for name, new in sections.items()}
        self.recipe = material.recipe.model_copy(update=update)
        self.state: TrainState = build_train_state(self.recipe, material.context, initialize=True)
        device = material.context.device
        encode = batcher(self.recipe, build_encoders(self.recipe, device), device)
        self.step = TrainStep(self.recipe, material.context, self.state, encode)

    def run(self, drawn: StepSamples) -> StepOutcome:
        return self.step.run(drawn, RATE)

    def change_guards(self, material: Material, **guards: float | None) -> None:
        """Other guards over the same state."""
        train_section = self.recipe.train.model_copy(update=guards)
        recipe = self.recipe.model_copy(update={"train": train_section})
        self.step = TrainStep(recipe, material.context, self.state, self.step._batcher)

    def everything(self) -> dict[str, Tensor]:
        """Copies of weights, moments and moving average, and the counts."""
        state = self.state
        tensors = {f"model.{name}": value for name, value in state.stages[0].named_parameters()}
        tensors |= {f"ema.{place}": value for place, value in enumerate(state.average.values)}
        tensors |= {key: piece.data for key, piece in state.optimizer.sharded_state().items()}
        counts = [state.optimizer.steps_taken, state.average.num_updates]
        return {name: value.detach().clone() for name, value in tensors.items()} | {"counts": torch.tensor(counts)}


class PoisonedBatcher(Batcher):
    """Video latents come out as NaN while `poisoned` is set."""

    poisoned = True

    def encode(self, samples: Any) -> MicroBatch:
        batch = super().encode(samples)
        if not self.poisoned or samples[0].kind != "video":
            return batch
        return replace(batch, latents=torch.full_like(batch.latents, float("nan")))


# --- skip guards ----------------------------------------------------------------------------------


def test_a_step_moves_everything(material: Material) -> None:
    trainer = Trainer(material)
    before = trainer.everything()
    outcome = trainer.run(material.steps[0])
    after = trainer.everything()
    assert outcome.skipped is None and outcome.gradient_norm > 0
    at_rest = [name for name in before if torch.equal(before[name], after[name])]
    assert at_rest == []
    assert after["counts"].tolist() == [1, 1]


def test_the_average_may_lie_on_the_host(material: Material) -> None:
    plain, on_host = Trainer(material), Trainer(material, optimizer__ema_device="host")
    assert (plain.state.average._on_host, on_host.state.average._on_host) == (False, True)
    for trainer in (plain, on_host):
        for drawn in material.steps:
            trainer.run(drawn)
    assert_bitwise_equal(on_host.everything(), plain.everything())


@pytest.mark.parametrize("guard", ["skip_loss_above", "skip_grad_norm_above"])
def test_a_guard_leaves_every_bit_in_place(material: Material, guard: str) -> None:
    trainer = Trainer(material)
    first = trainer.run(material.steps[0])
    assert first.skipped is None
    before = trainer.everything()
    trainer.change_guards(material, **{guard: 1e-6})
    outcome = trainer.run(material.steps[1])
    assert outcome.skipped is not None and f"train.{guard} (1e-06)" in outcome.skipped
    assert_bitwise_equal(trainer.everything(), before)


def test_a_skipped_step_leaves_nothing_for_the_next(material: Material) -> None:
    """Gradients and moments of the next step are as if the skipped one had never been."""
    plain, guarded = Trainer(material), Trainer(material)
    guarded.change_guards(material, skip_loss_above=1e-6)
    assert guarded.run(material.steps[1]).skipped is not None
    guarded.change_guards(material, skip_loss_above=None)
    for drawn in material.steps:
        assert guarded.run(drawn) == plain.run(drawn)
    assert_bitwise_equal(guarded.everything(), plain.everything())


@pytest.mark.parametrize(("factor", "skipped"), [(0.999, True), (1.001, False)])
@pytest.mark.parametrize("measure", ["loss", "grad_norm"])
def test_a_guard_compares_with_its_own_number(material: Material, measure: str, factor: float, skipped: bool) -> None:
    seen = Trainer(material).run(material.steps[0])
    value = seen.losses.total if measure == "loss" else seen.gradient_norm
    trainer = Trainer(material, **{f"train__skip_{measure}_above": value * factor})
    assert (trainer.run(material.steps[0]).skipped is not None) == skipped


def test_a_loss_that_is_no_number_is_skipped_without_any_guard(material: Material) -> None:
    trainer = Trainer(material, PoisonedBatcher)
    before = trainer.everything()
    outcome = trainer.run(material.steps[0])
    assert outcome.skipped is not None and "not finite" in outcome.skipped
    assert outcome.losses.total != outcome.losses.total
    assert_bitwise_equal(trainer.everything(), before)
    trainer.step._batcher.poisoned = False  # type: ignore[attr-defined]
    plain = Trainer(material)
    assert trainer.run(material.steps[0]) == plain.run(material.steps[0])
    assert_bitwise_equal(trainer.everything(), plain.everything())


# --- clipping and weights -------------------------------------------------------------------------


def test_the_norm_is_reported_before_clipping(material: Material) -> None:
    free, clipped = Trainer(material, optimizer__clip_grad_norm=0.0), Trainer(material, optimizer__clip_grad_norm=1e-3)
    first, second = free.run(material.steps[0]), clipped.run(material.steps[0])
    assert first == second and first.gradient_norm > 1e-3
    names = [name for name in free.everything() if ".exp_avg." in name]
    ratio = clipped.everything()[names[0]].norm() / free.everything()[names[0]].norm()
    assert ratio.item() == pytest.approx(1e-3 / first.gradient_norm, rel=1e-3)


def only(drawn: StepSamples, kind: str) -> StepSamples:
    """The same step without its other kind."""
    samples: list[Sample] = [sample for sample in drawn.samples if sample.kind == kind]
    moved = [replace(sample, slot=place) for place, sample in enumerate(samples)]
    num_images = len(moved) if kind == "image" else 0
    return replace(drawn, samples=moved, num_slots=len(moved), num_image_slots=num_images)


def test_images_of_no_weight_leave_no_trace(material: Material) -> None:
    without, weightless = Trainer(material), Trainer(material, data__image_weight=0.0)
    videos = only(material.steps[0], "video")
    first, second = without.run(videos), weightless.run(material.steps[0])
    assert second.losses.total == pytest.approx(first.losses.total, rel=1e-6)
    assert second.gradient_norm == pytest.approx(first.gradient_norm, rel=1e-5)


def test_the_gradient_is_the_weighted_mean_over_samples(material: Material) -> None:
    """w per image and 1 per video, over the sum of the weights: 2 images and 2 videos here."""
    weight = 3.0
    gradients = {}
    for name, drawn, image_weight in (
        ("images", only(material.steps[0], "image"), 1.0),
        ("videos", only(material.steps[0], "video"), 1.0),
        ("both", material.steps[0], weight),
    ):
        trainer = Trainer(material, data__image_weight=image_weight, train__skip_loss_above=1e-6)
        assert trainer.run(drawn).skipped
        owned = trainer.state.optimizer.owned
        gradients[name] = torch.cat([part.gradient.flatten() for part in owned]).clone()
    expected = (2 * weight * gradients["images"] + 2 * gradients["videos"]) / (2 * weight + 2)
    torch.testing.assert_close(gradients["both"], expected, rtol=1e-4, atol=1e-7)


def test_micro_batches_change_nothing(material: Material) -> None:
    whole = Trainer(material).run(material.steps[0])
    parts = Trainer(material, data__micro_batch_images=1, data__micro_batch_videos=1).run(material.steps[0])
    assert parts.losses.sample_digest == whole.losses.sample_digest
    assert parts.losses.slot_flow_matching == pytest.approx(whole.losses.slot_flow_matching, rel=1e-5)
    assert parts.losses.total == pytest.approx(whole.losses.total, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)


def test_noise_follows_the_sample_not_its_slot(material: Material) -> None:
    drawn = material.steps[0]
    turned = [replace(sample, slot=5 - sample.slot) for sample in drawn.samples if sample.kind == "video"]
    images = [sample for sample in drawn.samples if sample.kind == "image"]
    first = Trainer(material).run(drawn)
    second = Trainer(material).run(replace(drawn, samples=images + turned))
    assert second.losses.slot_timesteps[2:] == first.losses.slot_timesteps[:1:-1]
    assert second.losses.slot_flow_matching[2:] == pytest.approx(first.losses.slot_flow_matching[:1:-1], rel=1e-5)
    assert second.losses.sample_digest != first.losses.sample_digest


def test_a_step_is_a_pure_function_of_state_and_samples(material: Material) -> None:
    first, second = Trainer(material), Trainer(material)
    for drawn in material.steps:
        assert first.run(drawn) == second.run(drawn)
    assert_bitwise_equal(first.everything(), second.everything())


# --- waiting for the device -----------------------------------------------------------------------


def test_the_host_waits_once_a_step(material: Material) -> None:
    trainer = Trainer(material, optimizer__clip_grad_norm=1e-3)
    for drawn in material.steps:
        with HostWaits() as waits:
            outcome = trainer.run(drawn)
        assert outcome.skipped is None
        assert len(waits.places) == 1 and waits.places[0].endswith(" tolist"), "\n".join(waits.places)
        assert waits.places[0].startswith(f"{transfer.__file__}:")


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_at_its_one_read(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch raises at every other wait; the first step may: libraries set themselves up in it."""
    trainer = Trainer(material, optimizer__clip_grad_norm=1e-3)
    trainer.run(material.steps[0])
    reads = []

    def read_and_wait(*tensors: Tensor) -> list[float]:
        torch.cuda.set_sync_debug_mode("default")
        numbers = transfer.read_numbers(*tensors)
        torch.cuda.set_sync_debug_mode("error")
        reads.append(len(numbers))
        return numbers

    monkeypatch.setattr(step_module, "read_numbers", read_and_wait)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcome = trainer.run(material.steps[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.skipped is None and len(reads) == 1
