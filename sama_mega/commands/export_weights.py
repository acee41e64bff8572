"""`sama-mega export`: writes a checkpoint's weights for other code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal


def run(
    checkpoint: Path,
    target_format: Literal["diffusers", "sama"],
    out: Path,
    weights: Literal["ema", "model"] = "ema",
    dtype: Literal["bf16", "fp32"] = "bf16",
    lora_alone: bool = False,
    as_json: bool = False,
) -> int:
    """Writes the folder or the file.

    Args:
        checkpoint: A checkpoint or a run folder.
        target_format: Who is to read it.
        out: A folder for diffusers, a file for sama; must not exist.
        weights: ``ema`` or ``model``.
        dtype: Of the tensors.
        lora_alone: Write the low-rank changes of a run that trained such, as one file, and no other weights.
        as_json: Whether the last line is one JSON object.

    Returns:
        Exit status 0.
    """
    import torch

    from sama_mega.observe.sampling import lazy_progress
    from sama_mega.weights.export_diffusers import export_diffusers
    from sama_mega.weights.export_lora import export_lora
    from sama_mega.weights.export_sama import export_sama
    from sama_mega.weights.stored_model import open_stored_model

    stored = open_stored_model(checkpoint, weights)
    precision = torch.bfloat16 if dtype == "bf16" else torch.float32
    write = export_diffusers if target_format == "diffusers" else export_sama
    with lazy_progress("exporting") as on_tensor:
        if lora_alone:
            export_lora(stored, target_format, out, precision, on_tensor)
        else:
            write(stored, out, precision, on_tensor)
    noun = "low-rank changes" if lora_alone else "weights"
    print(f"{out}: the {weights} {noun} of {stored.checkpoint} in {dtype}")
    if as_json:
        print(json.dumps({"out": str(out), "checkpoint": str(stored.checkpoint), "weights": weights, "dtype": dtype}))
    return 0
