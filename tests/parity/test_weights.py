"""Weights in and out against diffusers' own model and the authors' tensors.

One process imports what diffusers saved; two ranks load it in three layouts, predict, and save checkpoints of a run,
which are exported again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sama_mega.checkpoint.folder import RECIPE_FILE, checkpoint_name
from sama_mega.checkpoint.write import write_complete
from sama_mega.config import load_recipe, recipe_to_yaml
from sama_mega.model import ModelInput
from sama_mega.model.name_map import to_released
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel
from sama_mega.train.checkpoint import describe_position, load_initial_weights, whole_state
from sama_mega.train.state import TrainState, build_train_state
from sama_mega.verify.golden import golden_recipe, read_golden
from sama_mega.weights.export_diffusers import export_diffusers
from sama_mega.weights.export_sama import export_sama
from sama_mega.weights.import_weights import import_weights
from sama_mega.weights.stored_model import open_stored_model
from tests.support.distributed import run_distributed
from tests.support.mixed_world import meeting_points
from tests.support.tiny_recipe import assert_bitwise_equal, call_main
from tests.support.wan_weights import (
    WEIGHTS_FILE,
    checkpoint_tensors,
    load_pipeline,
    write_tiny_recipe,
    write_wan_folder,
    write_wan_transformer,
)

pytestmark = pytest.mark.distributed

LIMIT = 1e-5
TIMEOUT_SECONDS = 60.0
LAYOUTS = {"tensor": "parallel.tensor=2", "pipeline": "parallel.pipeline=2", "data": "parallel.data=2"}
FOLDERS = ("edit_tiny", "anchor4_tiny", "text_to_video_tiny")


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    yield
    stop_parallel()


def difference(ours: Tensor, expected: Tensor) -> float:
    """Largest error of any element, relative to the largest element."""
    assert ours.shape == expected.shape
    return ((ours - expected).abs().max() / expected.abs().max()).item()


# --- diffusers' own weights -----------------------------------------------------------------------


def text_to_video() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(2, 16, 16, generator=generator)
    text[0, 9:] = 0
    latents = torch.randn(2, 16, 3, 8, 12, generator=generator)
    return {"noisy_latents": latents, "timesteps": torch.tensor([937.5, 125.25]), "text": text}


def load_state(checkpoint: Path, layout: list[str]) -> tuple[TrainState, ParallelContext]:
    """A run's state that starts from a checkpoint's weights, as `train` makes it."""
    recipe = load_recipe(checkpoint / RECIPE_FILE, layout)
    context = start_parallel(recipe)
    state = build_train_state(recipe, context, initialize=False)
    load_initial_weights(checkpoint, "ema", state)
    return state, context


def predict_and_save(folder: Path) -> dict[str, Tensor]:
    """On two ranks: every layout's velocity, and its checkpoint below `folder`."""
    velocities = {}
    meet = meeting_points(folder)
    for name, layout in LAYOUTS.items():
        meet(name)
        state, context = load_state(folder / "imported", [layout])
        velocities[name] = state.model(ModelInput(**text_to_video())).velocity
        recipe = load_recipe(folder / "imported" / RECIPE_FILE, [layout])
        saved = describe_position(state, recipe, context, life=1)
        write_complete(folder / name / checkpoint_name(0), whole_state(state), saved, recipe, context)
        stop_parallel()
    return velocities


@pytest.fixture(scope="module")
def diffusers_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with `transformer`, `imported` and what two ranks saved; and diffusers' model."""
    folder = tmp_path_factory.mktemp("wan")
    model = write_wan_transformer(folder / "transformer", shard_size="60KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    recipe = write_tiny_recipe(folder / "recipe.yaml", {"train.precision": "float32"})
    options = ["--out", folder / "imported", "--recipe", recipe]
    assert call_main("import", "diffusers", folder, *options) == 0
    return folder, model


@pytest.fixture(scope="module")
def by_layout(diffusers_model: tuple[Path, Any]) -> dict[str, Tensor]:
    folder, _ = diffusers_model
    first, second = run_distributed(predict_and_save, 2, TIMEOUT_SECONDS, (folder,))
    assert all(torch.equal(first[name], second[name]) for name in ("tensor", "pipeline"))
    return first


def velocity_of(model: Any) -> Tensor:
    given = text_to_video()
    with torch.no_grad():
        return model(given["noisy_latents"], given["timesteps"], given["text"]).sample


def test_one_rank_predicts_what_diffusers_does(diffusers_model: tuple[Path, Any]) -> None:
    folder, model = diffusers_model
    state, _ = load_state(folder / "imported", [])
    ours = state.model(ModelInput(**text_to_video())).velocity
    assert difference(ours, velocity_of(model)) <= LIMIT


@pytest.mark.parametrize("kind", ["folder", "file", "pth"])
def test_wans_own_files_are_the_same_model(kind: str, diffusers_model: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = diffusers_model
    write_wan_transformer(tmp_path / "transformer")
    path = write_wan_folder(tmp_path / "wan", tmp_path / "transformer")
    if kind == "file":
        path /= WEIGHTS_FILE
    if kind == "pth":
        torch.save(load_file(path / WEIGHTS_FILE), tmp_path / "wan.pth")
        path = tmp_path / "wan.pth"
    import_weights("wan", path, tmp_path / "imported", str(folder / "recipe.yaml"))
    assert_bitwise_equal(checkpoint_tensors(tmp_path / "imported"), checkpoint_tensors(folder / "imported"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_predict_what_diffusers_does(
    layout: str, diffusers_model: tuple[Path, Any], by_layout: dict[str, Tensor]
) -> None:
    assert difference(by_layout[layout], velocity_of(diffusers_model[1])) <= LIMIT


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_any_layout_saved_comes_out_as_diffusers_wrote_it(
    layout: str, weights: str, diffusers_model: tuple[Path, Any], by_layout: dict[str, Tensor], tmp_path: Path
) -> None:
    from diffusers import WanTransformer3DModel

    folder, model = diffusers_model
    out = tmp_path / "exported"
    options = ["--out", out, "--weights", weights, "--dtype", "fp32"]
    assert call_main("export", folder / layout, "diffusers", *options) == 0
    assert_bitwise_equal(load_file(out / "transformer" / WEIGHTS_FILE), model.state_dict())
    loaded, report = WanTransformer3DModel.from_pretrained(out, subfolder="transformer", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(velocity_of(loaded), velocity_of(model))


def test_a_half_precision_export_keeps_what_diffusers_keeps(diffusers_model: tuple[Path, Any], tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    folder, _ = diffusers_model
    stored = open_stored_model(folder / "imported", "ema")
    out = export_diffusers(stored, tmp_path / "exported", torch.bfloat16, shard_bytes=40_000)
    original = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.bfloat16)
    ours = WanTransformer3DModel.from_pretrained(out / "transformer", torch_dtype=torch.bfloat16)
    assert len(list((out / "transformer").glob("*.safetensors"))) > 1
    assert {one.dtype for one in ours.state_dict().values()} == {torch.float32, torch.bfloat16}
    assert all(one.dtype == original.state_dict()[name].dtype for name, one in ours.state_dict().items())
    assert_bitwise_equal(ours.state_dict(), original.state_dict())


# --- the authors' weights -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A golden folder's weights, imported beside its recipe and its own files."""
    source = repo_root / "tests" / "golden" / request.param
    folder = tmp_path_factory.mktemp("golden")
    (folder / "golden").symlink_to(source)
    content = read_golden(source)
    recipe = golden_recipe(content, {}, {})
    semantic = recipe.anchor.model_copy(update={"num_frames": content.config["semantic_tokens"] // 65})
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe.model_copy(update={"anchor": semantic})))
    import_weights("sama", source / "weights.safetensors", folder / "imported", str(folder / "recipe.yaml"))
    return folder


def test_golden_weights_survive_import_export_import(golden: Path, tmp_path: Path) -> None:
    out = export_sama(open_stored_model(golden / "imported", "ema"), tmp_path / "sama.safetensors", torch.float32)
    assert_bitwise_equal(load_file(out), load_file(golden / "golden" / "weights.safetensors"))
    again = import_weights("sama", out, tmp_path / "again", str(golden / "recipe.yaml"))
    assert again.fresh == ()
    for weights in ("ema", "model"):
        assert_bitwise_equal(
            checkpoint_tensors(tmp_path / "again", weights), checkpoint_tensors(golden / "imported", weights)
        )


def test_released_precision_is_bfloat16_throughout_and_comes_back(golden: Path, tmp_path: Path) -> None:
    assert call_main("export", golden / "imported", "sama", "--out", tmp_path / "sama.safetensors") == 0
    expected = load_file(golden / "golden" / "weights.safetensors")
    rounded = load_file(tmp_path / "sama.safetensors")
    assert_bitwise_equal(rounded, {name: tensor.bfloat16() for name, tensor in expected.items()})
    import_weights("sama", tmp_path / "sama.safetensors", tmp_path / "again", str(golden / "recipe.yaml"))
    assert {tensor.dtype for tensor in checkpoint_tensors(tmp_path / "again").values()} == {torch.bfloat16}
    export_sama(open_stored_model(tmp_path / "again", "model"), tmp_path / "b.safetensors", torch.bfloat16)
    assert_bitwise_equal(load_file(tmp_path / "b.safetensors"), rounded)
    # A float32 run starts from them, rounded as they are.
    state, _ = load_state(tmp_path / "again", [])
    started = to_released(dict(state.stages[0].module.named_parameters()), num_heads=2)
    assert_bitwise_equal(started, {name: tensor.float() for name, tensor in rounded.items()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exported_models_compute_what_the_authors_did(
    golden: Path, dtype: torch.dtype, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Text to video with the type embedding in the bias, and edits with all three kinds of tokens.

    In bfloat16, weights and activations, only a mistake would show; in float32 everything does.
    """
    types = load_file(golden / "golden" / "weights.safetensors")["segment_embedding.weight"]
    assert types.abs().max() > 1e-3, "type embeddings of zero would show nothing"
    out = export_diffusers(open_stored_model(golden / "imported", "ema"), tmp_path / "exported", dtype)
    pipe = load_pipeline(out, tmp_path_factory, dtype)
    assert {pipe.transformer.patch_embedding.bias.dtype, pipe.editing.semantic_head.proj.weight.dtype} == {dtype}
    assert pipe.editing.type_offsets.dtype == torch.float32
    inputs = load_file(golden / "golden" / "io.safetensors")
    given = [inputs[name] for name in ("noisy_latents", "timesteps", "text_embeddings")]
    limit = LIMIT if dtype is torch.float32 else 0.03
    if "source_latents" not in inputs:
        with torch.no_grad():
            latents, timesteps, text = given
            velocity = pipe.transformer(latents.to(dtype), timesteps, text.to(dtype)).sample.float()
        assert difference(velocity, inputs["velocity"]) <= limit
        return
    with torch.no_grad():
        velocity, semantic = pipe.editing(
            pipe.transformer, *given, inputs["source_latents"], inputs["noisy_semantic_features"]
        )
    assert difference(velocity, inputs["velocity"]) <= limit
    assert difference(semantic, inputs["semantic_velocity"]) <= limit
    if dtype is torch.float32:
        assert difference(*ours_and_theirs(golden, inputs, velocity)) <= LIMIT


def ours_and_theirs(golden: Path, inputs: dict[str, Tensor], velocity: Tensor) -> tuple[Tensor, Tensor]:
    state, _ = load_state(golden / "imported", [])
    given = ModelInput(inputs["noisy_latents"], inputs["timesteps"], inputs["text_embeddings"])
    given = replace(given, source_latents=inputs["source_latents"], noisy_semantic=inputs["noisy_semantic_features"])
    return velocity, state.model(given).velocity
