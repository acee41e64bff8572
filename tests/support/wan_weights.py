"""Tiny Wan weights as diffusers and Wan save them, and recipes that go with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sama_mega.config import recipe_to_yaml
from sama_mega.model.diffusers_names import released_name_of_diffusers
from sama_mega.parallel.checkpoint_io import read_plain
from tests.support.tiny_recipe import TINY, tiny_recipe

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}
"""`tests.support.tiny_recipe.TINY` as diffusers says it."""


def write_wan_transformer(folder: Path, seed: int = 0, shard_size: str = "10GB", **changes: Any) -> nn.Module:
    """A random `WanTransformer3DModel`, saved by diffusers itself; no norm or bias stays at one or zero."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(**{**WAN, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def write_wan_folder(folder: Path, transformer: Path) -> Path:
    """The same weights in Wan's own layout, from a folder that diffusers wrote as one file."""
    config = json.loads((transformer / "config.json").read_text())
    folder.mkdir(parents=True)
    tensors = {released_name_of_diffusers(name): one for name, one in load_file(transformer / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    theirs = {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config["num_attention_heads"] * config["attention_head_dim"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "eps": config["eps"],
        "text_len": TINY["model.text_length"],
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    return folder


def write_tiny_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The resolved recipe of `WAN`'s model, stage 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe_to_yaml(tiny_recipe(1, Path("run"), Path("unused.jsonl"), changes=changes)))
    return path


def load_pipeline(folder: Path, tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype = torch.float32) -> Any:
    """The exported editing pipeline as diffusers opens it, running the folder's own code."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:
        # diffusers copies the code there; its own place is in the user's home.
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.getbasetemp() / "modules"))
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def checkpoint_tensors(checkpoint: Path, weights: str = "ema") -> dict[str, Tensor]:
    """Whole tensors by our names, in the precision that the checkpoint holds."""
    return read_plain(checkpoint, f"{weights}.")
