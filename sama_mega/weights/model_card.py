"""The README.md of an export: what the weights are, what they were trained on, and how they are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sama_data.errors import DataError
from sama_data.manifest import load_manifest
from sama_mega.checkpoint.saved_state import SavedState, read_saved_state
from sama_mega.config import recipe_to_yaml
from sama_mega.config.schema import Recipe
from sama_mega.weights.stored_model import StoredModel

_METRICS = ("loss", "flow_matching_loss", "semantic_loss")
_HEAD = """---
license: other
library_name: diffusers
pipeline_tag: video-to-video
---
"""
_USE = """## Use

`pip install diffusers transformers accelerate ftfy`. Edit a video; the code beside the weights is run, hence
`trust_remote_code`:

```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True, torch_dtype=torch.bfloat16{encoders})
pipe.to("cuda")
frames = pipe(source_video, "Turn the car red").frames[0]
```

`transformer/` alone is a plain Wan2.1 text-to-video model: the target's type embedding is part of
`patch_embedding.bias`.

```python
from diffusers import WanTransformer3DModel

transformer = WanTransformer3DModel.from_pretrained(FOLDER, subfolder="transformer")
```
"""
_OWN_ENCODERS = ",\n    vae=vae, text_encoder=text_encoder, tokenizer=tokenizer"


def model_card(stored: StoredModel, has_encoders: bool) -> str:
    """Writes the card from the recipe, the data's manifests and the run's metrics, as far as they are there.

    Args:
        stored: The exported checkpoint.
        has_encoders: Whether VAE, text encoder and tokenizer are in the folder too.
    """
    recipe, saved = stored.recipe, read_saved_state(stored.checkpoint)
    model = recipe.model
    sections = [
        _HEAD,
        "# An instruction-guided video editing model\n",
        f"SAMA on a Wan2.1 diffusion transformer: {model.num_layers} layers of width {model.dim}, {model.num_heads}"
        f" heads. {_training(recipe, saved, stored.weights)}\n",
        _USE.format(encoders="" if has_encoders else _OWN_ENCODERS),
        _data(recipe, saved),
        "## Licence\n\nWan2.1's weights are under Apache-2.0. What the data's licences ask for, as its manifests name"
        " them, holds for weights trained on it; say here which licence these weights are under.\n",
        _metrics(stored.checkpoint, saved),
        f"## Recipe\n\n```yaml\n{recipe_to_yaml(recipe)}```\n",
    ]
    return "\n".join(section for section in sections if section)


def _training(recipe: Recipe, saved: SavedState, weights: str) -> str:
    if saved.step == 0:
        return "Imported and not trained since."
    averaged = f"their moving average (decay {recipe.optimizer.ema_decay})" if weights == "ema" else "the last ones"
    return (
        f"Stage {recipe.train.stage}: {saved.step} steps, {saved.samples_seen} samples, seed {saved.seed}; the weights"
        f" are {averaged}."
    )


def _data(recipe: Recipe, saved: SavedState) -> str:
    if saved.step == 0:
        return ""
    weighted = [(entry.manifest, entry.weight) for entry in recipe.data.blend]
    if recipe.data.manifest is not None:
        weighted = [(recipe.data.manifest, 1.0)]
    lines = [f"| {path.name} | {weight:g} | {_licences(path)} |" for path, weight in weighted]
    return "\n".join(["## Data", "", "| manifest | weight | rows by licence |", "|---|---|---|", *lines, ""])


def _licences(manifest: Path) -> str:
    try:
        rows = load_manifest(manifest)
    except DataError:
        return "not at hand at export"
    counted = rows.columns(["licence"])["licence"].value_counts().to_pylist()
    ordered = sorted(counted, key=lambda entry: -entry["counts"])
    return ", ".join(f"{entry['values'] or 'not named'}: {entry['counts']:,}" for entry in ordered)


def _metrics(checkpoint: Path, saved: SavedState) -> str:
    file = checkpoint.parent.parent / "metrics.jsonl"
    if saved.step == 0 or not file.is_file():
        return ""
    row = _row_of_step(file, saved.step)
    lines = [f"| {name} | {row[name]:.4g} |" for name in _METRICS if isinstance(row.get(name), float)]
    if not lines:
        return ""
    return "\n".join(
        ["## Metrics", "", f"Of the training batch at step {saved.step}.", "", "| | |", "|---|---|", *lines, ""]
    )


def _row_of_step(file: Path, step: int) -> dict[str, Any]:
    for line in reversed(file.read_text().splitlines()):
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if row.get("step") == step:
            return row
    return {}
