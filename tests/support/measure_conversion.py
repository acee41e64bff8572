"""Peak memory and time of the conversions, on random weights of any size; prints one JSON object a conversion.

    python -m tests.support.measure_conversion FOLDER --dim 5120 --heads 40 --ffn-dim 13824 --layers 4

writes a diffusers folder of 6.6 GB, imports it and exports it again; FOLDER needs room for three times as much.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from sama_mega.config import build_recipe, recipe_to_yaml
from sama_mega.config.schema import Recipe
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.parameters.shapes import our_shapes, released_shapes
from sama_mega.weights.export_diffusers import WEIGHTS_FILE, export_diffusers, wan_config
from sama_mega.weights.export_sama import export_sama
from sama_mega.weights.import_weights import import_weights
from sama_mega.weights.lora import LoraChoice
from sama_mega.weights.safetensors_writer import PlannedTensor, SafetensorsWriter
from sama_mega.weights.stored_model import open_stored_model
from tests.support.peak_memory import PeakMemory


def write_random_folder(folder: Path, recipe: Recipe) -> int:
    """A plain Wan model in float32 as diffusers names it, sharded; returns its bytes."""
    folder.mkdir(parents=True)
    names = ((diffusers_name(released), shape) for released, shape in released_shapes(recipe.model).items())
    planned = {name: PlannedTensor(torch.float32, shape) for name, shape in names if name is not None}
    (folder / "config.json").write_text(json.dumps(wan_config(recipe)))
    with SafetensorsWriter(folder, WEIGHTS_FILE, planned) as file:
        for name, tensor in planned.items():
            file.write(name, torch.randn(tensor.shape))
    return sum(tensor.num_bytes for tensor in planned.values())


def write_random_lora(path: Path, recipe: Recipe, rank: int = 32) -> Path:
    """Pairs for every linear of the blocks, in float32, as the authors' code names them."""
    tensors = {}
    for name, shape in released_shapes(recipe.model).items():
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2:
            module = name.removesuffix(".weight")
            tensors[f"{module}.lora_A.default.weight"] = torch.randn(rank, shape[1])
            tensors[f"{module}.lora_B.default.weight"] = torch.randn(shape[0], rank)
    save_file(tensors, path)
    return path


def measure(label: str, folder: Path, recipe: Recipe, work: Callable[[], object]) -> None:
    largest = 4 * max(torch.Size(shape).numel() for shape in our_shapes(recipe.model).values())
    began = time.monotonic()
    with PeakMemory() as peak:
        work()
    seconds = time.monotonic() - began
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    written = written or folder.stat().st_size
    result = {"conversion": label, "written_bytes": written, "seconds": round(seconds, 1)}
    print(json.dumps(result | {"peak_extra_bytes": peak.extra_bytes, "largest_tensor_bytes": largest}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name in ("dim", "heads", "ffn-dim", "layers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--text-dim", type=int, default=4096)
    given = parser.parse_args()
    model = {"dim": given.dim, "num_heads": given.heads, "ffn_dim": given.ffn_dim, "num_layers": given.layers}
    train = {"stage": 1, "steps": 1, "run_folder": "unused"}
    recipe = build_recipe({"model": model | {"text_dim": given.text_dim}, "train": train}, "measurement")
    given.folder.mkdir(parents=True)
    recipe_file = given.folder / "recipe.yaml"
    recipe_file.write_text(recipe_to_yaml(recipe))
    source, checkpoint = given.folder / "source", given.folder / "checkpoint"
    write_random_folder(source, recipe)
    measure(
        "import diffusers",
        checkpoint,
        recipe,
        lambda: import_weights("diffusers", source, checkpoint, str(recipe_file)),
    )
    shutil.rmtree(checkpoint)
    lora = write_random_lora(given.folder / "lora.safetensors", recipe)
    measure(
        "import diffusers with LoRA",
        checkpoint,
        recipe,
        lambda: import_weights("diffusers", source, checkpoint, str(recipe_file), loras=[LoraChoice(lora)]),
    )
    shutil.rmtree(source)
    stored = open_stored_model(checkpoint, "ema")
    for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        file, folder = given.folder / "sama.safetensors", given.folder / "exported"
        measure(f"export sama {label}", file, recipe, lambda file=file, dtype=dtype: export_sama(stored, file, dtype))
        file.unlink()
        measure(
            f"export diffusers {label}",
            folder,
            recipe,
            lambda folder=folder, dtype=dtype: export_diffusers(stored, folder, dtype),
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
