"""Which backend computes attention: measured once, remembered, and one answer for every rank."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sama_kernels.attention.measure import AttentionShape, Trial, fastest
from sama_mega.config import Recipe, build_recipe
from sama_mega.config.errors import ConfigError
from sama_mega.model import attention_choice, build_model
from sama_mega.model.attention import AttentionHeads
from sama_mega.model.attention_choice import AttentionChoice, ChoiceFile, always, attention_shapes, choose_attention
from sama_mega.parallel.layout import resolve_layout
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

GPU = torch.device("cuda", 0)
TRIALS = [Trial("flash4", None, "not installed"), Trial("cudnn", 0.2), Trial("te", 0.1), Trial("torch", 0.3)]
MODEL_14B = {"dim": 5120, "num_layers": 1, "num_heads": 40, "ffn_dim": 13824}
TINY = {"dim": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 48}


def make_recipe(model: dict[str, Any], parallel: dict[str, Any] | None = None, **kernels: str) -> Recipe:
    train = {"stage": 1, "steps": 1, "run_folder": "unused", "precision": "bfloat16", "recompute": "none"}
    return build_recipe({"model": model, "train": train, "kernels": kernels, "parallel": parallel or {}}, "test")


@pytest.fixture(scope="module")
def context() -> Iterator[ParallelContext]:
    yield start_parallel(make_recipe(TINY), environ={})
    stop_parallel()


@pytest.fixture
def on_gpu(context: ParallelContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ParallelContext:
    """A context that says it is on a GPU; its attention takes the times of TRIALS."""
    monkeypatch.setenv(attention_choice.CACHE_FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(attention_choice, "unavailable", lambda *_: None)
    return replace(context, device=GPU)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[AttentionShape]:
    """The shapes that were measured."""
    shapes: list[AttentionShape] = []

    def measure(shape: AttentionShape, device: torch.device) -> list[Trial]:
        shapes.append(shape)
        return TRIALS

    monkeypatch.setattr(attention_choice, "measure_backends", measure)
    return shapes


def test_the_nearest_shape_decides() -> None:
    choice = AttentionChoice(((3185, 3185, "cudnn"), (65585, 65585, "flash4"), (65585, 512, "triton")))
    assert choice.backend(3000, 3000) == "cudnn"
    assert choice.backend(40625, 40625) == "flash4"
    assert choice.backend(30000, 512) == "triton"
    assert always("torch").backend(7, 13) == "torch"


def test_the_fastest_that_ran_is_taken() -> None:
    assert fastest(TRIALS) == "te"
    assert fastest(TRIALS[:1]) == "torch"


def test_shapes_of_the_published_model() -> None:
    recipe = make_recipe(MODEL_14B)
    image, image_text, video, video_text = attention_shapes(recipe, resolve_layout(recipe, 1))
    # 832x480 has 1,560 patches a frame; the largest bucket has 1,600.
    assert (image.queries, image.keys, image.heads, image.head_dim) == (3265, 3265, 40, 128)
    assert (video.queries, video.keys, video.dtype) == (67265, 67265, "bfloat16")
    assert (image_text.keys, video_text.queries, video_text.keys) == (512, 67265, 512)


def test_ranks_share_heads_and_tokens() -> None:
    recipe = make_recipe(MODEL_14B, {"tensor": 2, "context": 8, "ulysses": 4})
    _, _, video, text = attention_shapes(recipe, resolve_layout(recipe, 16))
    assert (video.heads, text.heads) == (5, 20)
    assert (video.keys, text.queries) == (67265, 8409)
    assert video.queries == 4 * 8409


def test_the_cpu_and_a_name_are_not_measured(
    context: ParallelContext, on_gpu: ParallelContext, measured: list[AttentionShape]
) -> None:
    assert choose_attention(make_recipe(TINY), context) == always("auto")
    assert choose_attention(make_recipe(TINY, attention="cudnn"), on_gpu) == always("cudnn")
    assert not measured


def test_auto_is_measured_once_logged_and_remembered(
    on_gpu: ParallelContext, measured: list[AttentionShape], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(MODEL_14B)
    with caplog.at_level(logging.INFO):
        first = choose_attention(recipe, on_gpu)
    assert {backend for _, _, backend in first.by_shape} == {"te"}
    assert len(measured) == 4
    assert "over 512 keys: te (forward and backward: cudnn 200.0 ms" in caplog.text
    assert "flash4: not installed" in caplog.text
    assert choose_attention(recipe, on_gpu) == first
    assert len(measured) == 4, "the file was not read"


@pytest.mark.parametrize(("rank", "failure"), [(0, OSError), (1, RuntimeError)])
def test_no_rank_waits_for_a_first_rank_that_fails(
    rank: int, failure: type[Exception], on_gpu: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(shape: AttentionShape, device: torch.device) -> list[Trial]:
        raise OSError("no device")

    sent: list[object] = []
    monkeypatch.setattr(attention_choice, "measure_backends", fail)
    # What the other ranks get from one that failed.
    monkeypatch.setattr(attention_choice, "broadcast_object", lambda value, group: sent.append(value))
    with pytest.raises(failure):
        choose_attention(make_recipe(MODEL_14B), replace(on_gpu, rank=rank))
    assert sent == [None]


def test_selective_recomputation_needs_a_backend_that_it_can_keep(
    on_gpu: ParallelContext, measured: list[AttentionShape]
) -> None:
    recipe = make_recipe(MODEL_14B)
    selective = recipe.model_copy(update={"train": recipe.train.model_copy(update={"recompute": "selective"})})
    assert {backend for _, _, backend in choose_attention(selective, on_gpu).by_shape} == {"cudnn"}


def test_another_version_is_measured_again(
    on_gpu: ParallelContext, measured: list[AttentionShape], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_attention(make_recipe(MODEL_14B), on_gpu)
    monkeypatch.setattr(attention_choice, "version", lambda package: "1000.0")
    choose_attention(make_recipe(MODEL_14B), on_gpu)
    assert len(measured) == 8


def test_other_kernels_are_measured_again(
    on_gpu: ParallelContext, measured: list[AttentionShape], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of this project: a time, or an error that is mended."""
    choose_attention(make_recipe(MODEL_14B), on_gpu)
    changed = tmp_path / "sama_kernels"
    (changed / "rope_attention").mkdir(parents=True)
    (changed / "rope_attention" / "kernel.py").write_text("another one")
    monkeypatch.setattr(attention_choice.sama_kernels, "__file__", str(changed / "__init__.py"))
    choose_attention(make_recipe(MODEL_14B), on_gpu)
    assert len(measured) == 8


def test_a_shortage_of_memory_is_not_remembered(on_gpu: ParallelContext, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[AttentionShape] = []

    def measure(shape: AttentionShape, device: torch.device) -> list[Trial]:
        shapes.append(shape)
        return [Trial("flash4", None, "OutOfMemoryError", lasting=False), Trial("torch", 0.3)]

    monkeypatch.setattr(attention_choice, "measure_backends", measure)
    for count in (4, 8):
        assert choose_attention(make_recipe(MODEL_14B), on_gpu).backend(7, 7) == "torch"
        assert len(shapes) == count


def test_a_file_that_is_no_good_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    shape = AttentionShape(7, 7, 1, 32, 1, "bfloat16")
    file = ChoiceFile.at(tmp_path)
    assert file.trials(shape, GPU) is None
    file.path.write_text("{ cut off")
    assert file.trials(shape, GPU) is None
    file.remember(shape, GPU, TRIALS)
    assert file.trials(shape, GPU) == TRIALS
    assert [path.name for path in tmp_path.iterdir()] == ["attention.json"]
    (tmp_path / "a file").write_text("")
    ChoiceFile.at(tmp_path / "a file").remember(shape, GPU, TRIALS)
    assert "attention is measured again" in caplog.text


def test_an_absent_backend_is_a_line_about_the_recipe(on_gpu: ParallelContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "unavailable", lambda *_: "'te' needs the package")
    with pytest.raises(ConfigError, match=r"^kernels\.attention \(te\): 'te' needs the package$"):
        choose_attention(make_recipe(TINY, attention="te"), on_gpu)


def test_every_attention_of_the_model_takes_the_choice(
    context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = AttentionChoice(((1, 1, "reference"),))
    monkeypatch.setattr("sama_mega.model.choose_attention", lambda *_: choice)
    [stage] = build_model(make_recipe(TINY), context)
    found = [module.attention_choice for module in stage.modules() if isinstance(module, AttentionHeads)]
    assert len(found) == 2 and all(one is choice for one in found)
