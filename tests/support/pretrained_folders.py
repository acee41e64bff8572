"""Tiny pretrained encoders with random weights, saved by diffusers and transformers themselves in their own layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VAE_FILE = "diffusion_pytorch_model.safetensors"
MODEL_FILE = "model.safetensors"
WAN_VAE = {
    "base_dim": 4,
    "z_dim": 16,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
UMT5 = {"vocab_size": 96, "d_model": 24, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 3}
SIGLIP = {
    "hidden_size": 20,
    "intermediate_size": 28,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 35,
    "patch_size": 7,
}
WORDS = (
    "a",
    "the",
    "red",
    "blue",
    "circle",
    "square",
    "video",
    "edit",
    "image",
    "make",
    "it",
    "bigger",
    "remove",
    "of",
)
END_TOKEN = 1


def pretrained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a pipeline's three folders and `siglip`; made once a session, not to be changed."""
    root = tmp_path_factory.getbasetemp() / "pretrained"
    if not root.exists():
        write_pipeline(root)
        write_siglip(root / "siglip")
    return root


def pretrained_encoders(root: Path) -> dict[str, Any]:
    """Changes of a tiny recipe that make it use `pretrained_weights`."""
    return {
        "encoders.video": "wan",
        "encoders.video_path": str(root),
        "encoders.text": "umt5",
        "encoders.text_path": str(root),
        "encoders.semantic": "siglip",
        "encoders.semantic_path": str(root / "siglip"),
        "model.text_dim": UMT5["d_model"],
        "model.semantic_dim": SIGLIP["hidden_size"],
    }


def write_pipeline(root: Path) -> Path:
    """A folder as Wan's pipelines are published: `vae`, `text_encoder` and `tokenizer` side by side."""
    write_wan_vae(root / "vae")
    write_umt5(root / "text_encoder", root / "tokenizer")
    return root


def write_wan_vae(folder: Path, seed: int = 0, **changes: Any) -> Path:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**{**WAN_VAE, **changes})
    _scramble(vae)
    vae.save_pretrained(folder)
    return folder


def write_umt5(folder: Path, tokenizer_folder: Path | None = None, seed: int = 0, **changes: Any) -> Path:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    model = UMT5EncoderModel(UMT5Config(**{**UMT5, **changes}))
    _scramble(model)
    model.save_pretrained(folder)
    write_tokenizer(tokenizer_folder or folder)
    return folder


def write_tokenizer(folder: Path, ends_prompts: bool = True, num_words: int | None = None) -> Path:
    """Whole words and, for those it does not know, bytes; like UMT5's it puts </s> after a prompt."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *"abcdefghijklmnopqrstuvwxyz[].,"]
    pieces += [f"<extra_{number}>" for number in range((num_words or 0) - len(pieces))]
    scores = [0.0, 0.0, -10.0, *(-1.0 - 0.01 * place for place in range(len(pieces) - 3))]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if ends_prompts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END_TOKEN)]
        )
    tokenizer.enable_padding(length=512)  # as its last user left it
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_siglip(folder: Path, seed: int = 0, **changes: Any) -> Path:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(seed)
    tower = SiglipVisionModel(SiglipVisionConfig(**{**SIGLIP, **changes}))
    _scramble(tower)
    tower.save_pretrained(folder)
    return folder


def write_whole_siglip(folder: Path, seed: int = 0) -> Path:
    """Both towers, as SigLIP is published."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(seed)
    text = {"hidden_size": 20, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
    model = SiglipModel(SiglipConfig(vision_config=SIGLIP, text_config=text))
    _scramble(model)
    model.save_pretrained(folder)
    return folder


def change_weights(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Rewrites a safetensors file after `change` worked on its tensors."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    """Rewrites values of a `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.no_grad()
def _scramble(model: torch.nn.Module) -> None:
    """No parameter stays at a zero or a one that could hide a wrong load."""
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
