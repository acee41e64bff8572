"""From Wan's pipeline folder to an editing pipeline: import, stage 0, stage 1, export, load in diffusers.

Every step is the command of docs/weights.md, with tiny stand-ins of random weights.
"""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sama_data.decode import decode_frames
from sama_data.prompts import edit_prompt
from sama_kernels.philox import random_normal_batch
from sama_mega.diffusion.streams import Stream
from sama_mega.inference.editor import SamplingSettings, pixels_from_frames
from sama_mega.inference.load import open_checkpoint
from tests.support.pretrained_folders import pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import FRAMES, SIZE, call_main, recipe_path, tiny_overrides, tiny_world
from tests.support.wan_weights import checkpoint_tensors, load_pipeline, write_tiny_recipe, write_wan_transformer

STEPS, SEED, GUIDANCE = 2, 7, 3.0
LIMIT = 1e-5
INSTRUCTION = "make it bigger"
UNTIDY = " make\n it &amp;amp; \u201cthe red\u201d   bigger"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `imported`, `stage0`, `stage1` and `exported`."""
    folder = tmp_path_factory.mktemp("walk")
    weights, world = pretrained_weights(tmp_path_factory), tiny_world(tmp_path_factory)
    changes: dict[str, Any] = pretrained_encoders(weights) | {"train.precision": "float32"}
    recipe = write_tiny_recipe(folder / "recipe.yaml", changes)
    pipeline = folder / "Wan2.1-T2V-Diffusers"
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(weights / name, pipeline / name)
    write_wan_transformer(pipeline / "transformer", text_dim=changes["model.text_dim"])
    with redirect_stdout(io.StringIO()) as printed:
        assert call_main("import", "diffusers", pipeline, "--out", folder / "imported", "--recipe", recipe) == 0
    _, added = printed.getvalue().splitlines()
    assert added.startswith("added, because plain Wan weights have none: type embeddings (zeros), semantic MLP")
    start = folder / "imported"
    for stage, manifest in ((0, "raw.jsonl"), (1, "pairs.jsonl")):
        run = folder / f"stage{stage}"
        overrides = tiny_overrides(
            run,
            world / manifest,
            STEPS,
            changes | {"checkpoint.init_from": str(start), "optimizer.learning_rate": 1e-2, "optimizer.ema_decay": 0.5},
        )
        assert call_main("train", recipe_path(stage), *overrides) == 0
        start = run
    options = ["--out", folder / "exported", "--dtype", "fp32"]
    assert call_main("export", folder / "stage1", "diffusers", *options) == 0
    return folder


def test_training_began_with_the_imported_weights_and_moved_the_new_parts(walk: Path) -> None:
    imported = checkpoint_tensors(walk / "imported")
    assert not imported["segment_embedding.weight"].any()
    trained = checkpoint_tensors(next((walk / "stage1/checkpoints").glob("step-*")))
    assert trained.keys() == imported.keys()
    moved = {name: (trained[name] - imported[name]).abs().max() for name in imported}
    assert moved["segment_embedding.weight"] > 0 and moved["semantic_head.proj.weight"] > 0
    # Four steps of at most 0.01 each: far from any other draw of these weights.
    assert all(move <= 0.05 for move in moved.values())


def test_an_imported_checkpoint_can_be_edited_with(
    walk: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    video = tiny_world(tmp_path_factory) / "videos/video-000000-source.mp4"
    assert call_main("edit", walk / "imported", video, INSTRUCTION, "--out", tmp_path / "edit.mp4") == 0
    assert decode_frames(tmp_path / "edit.mp4").frames.shape == (FRAMES, SIZE, SIZE, 3)


def test_the_folder_is_whole_and_says_what_it_is(walk: Path) -> None:
    exported = walk / "exported"
    index = json.loads((exported / "model_index.json").read_text())
    for name, (library, _) in ((name, value) for name, value in index.items() if name[0] != "_"):
        assert library is not None and (exported / name).is_dir(), name
    card = (exported / "README.md").read_text()
    for words in (f"Stage 1: {STEPS} steps", "pairs.jsonl | 1 |", "not named: 16", "| loss |", "trust_remote_code"):
        assert words in card, words
    # It runs anywhere: nothing of this package.
    code = [path.read_text() for path in exported.rglob("*.py")]
    assert len(code) == 2 and not any("sama_mega" in text or "sama_kernels" in text for text in code)


def test_the_pipeline_edits_as_edit_does(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    video = tiny_world(tmp_path_factory) / "videos/video-000000-source.mp4"
    frames = decode_frames(video).frames
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    seen: list[Tensor] = []
    with open_checkpoint(walk / "stage1", "ema") as opened:
        codec: Any = opened.encoders.video
        decode = codec.decode
        codec.decode = lambda latents: decode(seen.append(latents) or latents)
        pixels = pixels_from_frames(torch.from_numpy(frames))[None]
        settings = SamplingSettings(STEPS, GUIDANCE, SEED)
        expected = opened.editor.edit(pixels, [edit_prompt("video", INSTRUCTION)], settings)
        spoken = opened.encoders.text.encode([edit_prompt("video", UNTIDY)])
        tokens = (opened.recipe.anchor.num_tokens, opened.recipe.model.semantic_dim)
    shape = list(seen[0].shape[1:])
    noise = {
        "latents": random_normal_batch(SEED, [0], 0, Stream.SAMPLING_LATENT, shape, torch.device("cpu")),
        "semantic_features": random_normal_batch(SEED, [0], 0, Stream.SAMPLING_SEMANTIC, tokens, torch.device("cpu")),
    }
    settings_of_theirs = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | noise
    pipe = load_pipeline(walk / "exported", tmp_path_factory)
    told = pipe.encode_prompt(edit_prompt("video", UNTIDY))
    assert torch.equal(told.any(dim=2), spoken.any(dim=2)) and spoken[0, 9].any(), "other tokens"
    assert ((told - spoken).abs().max() / spoken.abs().max()).item() < LIMIT
    latents = pipe(frames, INSTRUCTION, output_type="latent", **settings_of_theirs).frames
    assert ((latents - seen[0]).abs().max() / seen[0].abs().max()).item() < LIMIT
    edited = pipe(frames, INSTRUCTION, output_type="pt", **settings_of_theirs).frames
    assert edited.shape == (1, FRAMES, 3, SIZE, SIZE)
    # The random VAE amplifies rounding: held to a quarter of what a pixel can show.
    assert (edited.transpose(1, 2) - (expected + 1) / 2).abs().max() < 1e-3 < expected.std()


def test_defaults_and_short_clips(walk: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Frames that are not 4k+1, of a size that is no multiple of 16, and the recipe's own settings."""
    from PIL import Image

    pipe = load_pipeline(walk / "exported", tmp_path_factory)
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (34, 50, 3), dtype=np.uint8)) for _ in range(3)]
    told: list[int] = []
    pictures = pipe(frames, INSTRUCTION, output_type="pil", callback=told.append).frames[0]
    assert [picture.size for picture in pictures] == [(48, 32)] * 3
    assert told == [1, 2]
    generator = torch.Generator().manual_seed(1)
    one, again = (
        pipe(frames[:1], INSTRUCTION, generator=generator.manual_seed(1), output_type="latent").frames for _ in range(2)
    )
    assert one.shape == (1, 16, 1, 4, 6) and torch.equal(one, again)


def test_the_transformer_alone_makes_videos_from_text(walk: Path) -> None:
    from diffusers import WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel.from_pretrained(walk / "exported", subfolder="transformer")
    parts = DiffusionParts(walk / "exported")
    pipe = WanPipeline(parts.tokenizer, parts.text_encoder, parts.vae, parts.scheduler, transformer)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe("the red circle", height=SIZE, width=SIZE, num_frames=FRAMES, num_inference_steps=2).frames
    assert frames.shape == (1, FRAMES, SIZE, SIZE, 3) and np.isfinite(frames).all()


class DiffusionParts:
    """The export's other components, loaded by their own classes."""

    def __init__(self, folder: Path) -> None:
        from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
        from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

        self.vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae")
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        self.text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
