"""`sama-mega import`: makes a checkpoint of published weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def run(
    source_format: Literal["diffusers", "wan", "sama"],
    path: Path,
    out: Path,
    recipe: str | None = None,
    loras: Sequence[str] = (),
    as_json: bool = False,
) -> int:
    """Writes the checkpoint.

    Args:
        source_format: What the weights are.
        path: Their folder or file.
        out: The checkpoint's folder; must not exist.
        recipe: Of this model; None for the published sizes.
        loras: ``FILE[:SCALE]``, added to the weights.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0.
    """
    from sama_mega.observe.sampling import lazy_progress
    from sama_mega.weights.import_weights import import_weights
    from sama_mega.weights.lora import parse_lora

    chosen = [parse_lora(lora) for lora in loras]
    with lazy_progress("importing") as on_tensor:
        done = import_weights(source_format, path, out, recipe, on_tensor, chosen)
    model = done.recipe.model
    print(
        f"{out}: {done.num_read} parameters of a model of {model.num_layers} layers and width {model.dim}:"
        f" start a run with checkpoint.init_from={out}"
    )
    for lora, num_changed in zip(chosen, done.num_changed, strict=True):
        print(f"merged {lora.path} at scale {lora.scale:g} into {num_changed} tensors")
    if done.fresh:
        print(
            "added, because plain Wan weights have none: type embeddings (zeros), semantic MLP and semantic head"
            f" (fresh, seed {done.recipe.train.seed}): train them before you edit"
        )
    if as_json:
        merged = [
            {"path": str(lora.path), "scale": lora.scale, "tensors": num_changed}
            for lora, num_changed in zip(chosen, done.num_changed, strict=True)
        ]
        result = {"checkpoint": str(out), "parameters": done.num_read, "added": list(done.fresh), "merged": merged}
        print(json.dumps(result))
    return 0
