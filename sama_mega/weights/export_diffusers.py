"""A checkpoint's weights as a diffusers folder: Wan's transformer, SAMA's parts beside it, and what runs them.

`transformer/` is Wan2.1's own model with the target's type embedding folded into the bias of the patch embedding, so
that it makes videos from text as it is. `editing/` holds what an edit needs besides: the type embeddings relative to
that bias, and the semantic parts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sama_data.prompts import EDIT_PREFIXES
from sama_mega.checkpoint.encoder_paths import find_weights_of
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import BUILT_IN_ENCODERS, EncodersRecipe, Recipe
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.parallel.token_layout import SEMANTIC, SOURCE, TARGET
from sama_mega.parameters.names import released_names
from sama_mega.parameters.shapes import our_shapes, released_shapes, sama_shapes
from sama_mega.weights.model_card import model_card
from sama_mega.weights.output import complete_or_absent
from sama_mega.weights.safetensors_writer import SHARD_BYTES, PlannedTensor, SafetensorsWriter
from sama_mega.weights.stored_model import StoredModel

_log = logging.getLogger(__name__)

DIFFUSERS_VERSION = "0.42.1"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PIPELINE, MODELLING = "pipeline_sama_edit", "modeling_sama_editing"
TYPE_OFFSETS = "type_offsets"
_BIAS, _TYPES = "patch_embedding.bias", "segment_embedding.weight"
# What diffusers keeps in float32 whatever precision it is asked for (`_keep_in_fp32_modules` of its Wan model).
_KEPT_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
# What lies beside a tokenizer that lives in its encoder's folder.
_NO_TOKENIZER = ("*.safetensors", "*.safetensors.index.json", "config.json")


def export_diffusers(
    stored: StoredModel,
    out: Path,
    dtype: torch.dtype,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes the folder.

    Args:
        stored: The checkpoint.
        out: The folder to write; must not exist.
        dtype: Of the tensors, but for those that diffusers keeps in float32.
        on_tensor: Called with the parameters written and their number.
        shard_bytes: Largest size of a file of weights.

    Returns:
        The folder.

    Raises:
        ConfigError: `out` exists.
        ExportError: The disk refuses; nothing is left.
    """
    model = stored.recipe.model
    names = list(our_shapes(model))
    own_parts = sama_shapes(model)
    with complete_or_absent(out) as unfinished:
        folder = unfinished / out.name
        _write_small_files(stored, folder)
        transformer, editing = _plan(stored.recipe, dtype)
        with (
            SafetensorsWriter(folder / "transformer", WEIGHTS_FILE, transformer, shard_bytes) as wan_file,
            SafetensorsWriter(folder / "editing", WEIGHTS_FILE, editing, None) as editing_file,
        ):
            _write_types(stored, dtype, wan_file, editing_file)
            for number, name in enumerate(names, start=1):
                if name not in (_BIAS, _TYPES):
                    for released, tensor in _tensors(stored, name, dtype):
                        if released in own_parts:
                            editing_file.write(released, tensor)
                        else:
                            wan_file.write(str(diffusers_name(released)), tensor)
                on_tensor(number, len(names))
    return out


def _plan(recipe: Recipe, dtype: torch.dtype) -> tuple[dict[str, PlannedTensor], dict[str, PlannedTensor]]:
    """What both files will hold."""
    own_parts = sama_shapes(recipe.model)
    transformer = {
        name: PlannedTensor(_stored_dtype(name, dtype), shape)
        for released, shape in released_shapes(recipe.model).items()
        if released not in own_parts and (name := str(diffusers_name(released)))
    }
    editing = {TYPE_OFFSETS: PlannedTensor(torch.float32, own_parts.pop(_TYPES))}
    return transformer, editing | {name: PlannedTensor(dtype, shape) for name, shape in own_parts.items()}


def _stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if any(part in _KEPT_FLOAT32 for part in name.split(".")) else dtype


def _tensors(stored: StoredModel, name: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    wan_name = diffusers_name(released_names(name)[0])
    return stored.released([name], dtype if wan_name is None else _stored_dtype(wan_name, dtype))


def _write_types(
    stored: StoredModel, dtype: torch.dtype, transformer: SafetensorsWriter, editing: SafetensorsWriter
) -> None:
    """Folds the target's type into the bias; the editing part makes up for it, and for the bias's rounding."""
    bias, types = stored.read(_BIAS, torch.float32), stored.read(_TYPES, torch.float32)
    folded = (bias + types[TARGET]).to(dtype)
    transformer.write(str(diffusers_name(_BIAS)), folded)
    offsets = types.clone()  # semantic tokens do not pass the patch embedding
    for kind in (SOURCE, TARGET):
        offsets[kind] = (bias.double() + types[kind].double() - folded.double()).float()
    assert SEMANTIC not in (SOURCE, TARGET)
    editing.write(TYPE_OFFSETS, offsets)


def _write_small_files(stored: StoredModel, folder: Path) -> None:
    """Configs, code, card and, where the recipe has pretrained ones, the encoders."""
    recipe = stored.recipe
    for name in ("transformer", "editing", "scheduler"):
        (folder / name).mkdir(parents=True)
    encoders = _copy_encoders(stored, folder)
    _write_json(folder / "model_index.json", _model_index(encoders))
    _write_json(folder / "transformer" / "config.json", wan_config(recipe))
    _write_json(folder / "editing" / "config.json", _editing_config(recipe))
    _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler_config(recipe))
    code = resources.files("sama_mega.weights.standalone")
    (folder / f"{PIPELINE}.py").write_text(code.joinpath(f"{PIPELINE}.py").read_text())
    (folder / "editing" / f"{MODELLING}.py").write_text(code.joinpath(f"{MODELLING}.py").read_text())
    (folder / "README.md").write_text(model_card(stored, has_encoders=len(encoders) == 3))


def _model_index(encoders: set[str]) -> dict[str, Any]:
    classes = {
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    return {
        "_class_name": [PIPELINE, "SamaEditPipeline"],
        "_diffusers_version": DIFFUSERS_VERSION,
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "editing": [MODELLING, "SamaEditing"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        **{name: class_ if name in encoders else [None, None] for name, class_ in classes.items()},
    }


def wan_config(recipe: Recipe) -> dict[str, Any]:
    """The `config.json` of a recipe's model as diffusers' `WanTransformer3DModel`."""
    model = recipe.model
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "patch_size": list(model.patch_size),
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.head_dim,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "text_dim": model.text_dim,
        "freq_dim": model.time_features,
        "ffn_dim": model.ffn_dim,
        "num_layers": model.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": model.norm_eps,
        "image_dim": None,
        "added_kv_proj_dim": None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
    }


def _editing_config(recipe: Recipe) -> dict[str, Any]:
    model = recipe.model
    return {
        "_class_name": "SamaEditing",
        "_diffusers_version": DIFFUSERS_VERSION,
        "dim": model.dim,
        "semantic_dim": model.semantic_dim,
        "semantic_hidden_dim": model.semantic_hidden_dim,
        "semantic_tokens": recipe.anchor.num_tokens,
        "semantic_rope": model.semantic_rope,
        "semantic_target": recipe.anchor.target,
        "eps": model.norm_eps,
        "text_length": model.text_length,
        "video_prefix": EDIT_PREFIXES["video"],
        "image_prefix": EDIT_PREFIXES["image"],
        "negative_prompt": recipe.diffusion.negative_prompt,  # None: the prefix
        "num_inference_steps": recipe.diffusion.sampling_steps,
        "guidance_scale": recipe.diffusion.guidance,
    }


def _scheduler_config(recipe: Recipe) -> dict[str, Any]:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": recipe.diffusion.num_train_timesteps,
        "shift": recipe.diffusion.shift,
        "use_dynamic_shifting": False,
    }


def _copy_encoders(stored: StoredModel, folder: Path) -> set[str]:
    """Puts the recipe's VAE, text encoder and tokenizer into the folder, as far as they are there."""
    recipe = stored.recipe
    for role in ("video", "text"):
        with suppress(ConfigError):  # what is nowhere is said below
            recipe = find_weights_of(role, recipe, stored.checkpoint)
    places = _encoder_places(recipe.encoders)
    found = {name: place for name, place in places.items() if place.is_dir()}
    for name in places.keys() - found.keys():
        _log.warning("the export is without %s: %s is no folder", name, places[name])
    for name, place in found.items():
        left_out = _NO_TOKENIZER if name == "tokenizer" else ()
        ignore = shutil.ignore_patterns(*left_out)
        shutil.copytree(place, folder / name, copy_function=_link_or_copy, ignore=ignore)
    return set(found)


def _encoder_places(encoders: EncodersRecipe) -> dict[str, Path]:
    """Folders of the components, wherever the recipe's paths point: at a pipeline, or at one component."""
    places: dict[str, Path] = {}
    if encoders.video != BUILT_IN_ENCODERS["video"] and encoders.video_path is not None:
        places["vae"] = _component(encoders.video_path, "vae")
    if encoders.text != BUILT_IN_ENCODERS["text"] and encoders.text_path is not None:
        text = places["text_encoder"] = _component(encoders.text_path, "text_encoder")
        places["tokenizer"] = text if (text / "tokenizer.json").is_file() else text.parent / "tokenizer"
    return places


def _component(path: Path, name: str) -> Path:
    return path if (path / "config.json").is_file() else path / name


def _link_or_copy(source: str, target: str) -> str:
    """Gives a file a second name where the disk allows that: an encoder's weights are gigabytes."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
