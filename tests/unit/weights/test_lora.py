"""LoRA files on import: the sum itself, every naming, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sama_mega.config.errors import ConfigError
from sama_mega.model.diffusers_names import diffusers_name
from sama_mega.model.name_map import to_released
from sama_mega.weights.import_weights import import_weights
from sama_mega.weights.lora import LoraChoice, merge, parse_lora
from sama_mega.weights.lora_file import Change
from sama_mega.weights.source import StoredTensor
from tests.support.tiny_recipe import assert_bitwise_equal, call_main
from tests.support.wan_weights import (
    WEIGHTS_FILE,
    checkpoint_tensors,
    write_tiny_recipe,
    write_wan_folder,
    write_wan_transformer,
)

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, Tensor]
RANK, ALPHA = 3, 7.0
MODULES = [f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"] + ["ffn.0", "ffn.2"]


@dataclass(frozen=True)
class Pair:
    down: Tensor
    up: Tensor

    def change(self, factor: float) -> Tensor:
        product = self.up.flatten(1) @ self.down.flatten(1)
        return factor * product.view(len(self.up), *self.down.shape[1:])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights: `transformer` by diffusers, `wan` in Wan's layout; and their recipe."""
    folder = tmp_path_factory.mktemp("whole")
    write_wan_transformer(folder / "transformer")
    write_wan_folder(folder / "wan", folder / "transformer")
    write_tiny_recipe(folder / "recipe.yaml")
    return folder


@pytest.fixture(scope="module")
def base(whole: Path) -> Tensors:
    """The same weights by released name."""
    return load_file(whole / "wan" / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def pairs(base: Tensors) -> dict[str, Pair]:
    """By released module: every linear of the blocks, and the patch embedding's convolution."""
    generator = torch.Generator().manual_seed(5)
    modules = [f"blocks.{layer}.{module}" for layer in range(2) for module in MODULES] + ["patch_embedding"]
    drawn = {}
    for module in modules:
        shape = base[f"{module}.weight"].shape
        down = torch.randn(RANK, *shape[1:], generator=generator)
        drawn[module] = Pair(down, torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=generator))
    return drawn


def theirs(module: str) -> str:
    return (diffusers_name(f"{module}.weight") or "").removesuffix(".weight")


def imported(whole: Path, source_format: str, *loras: LoraChoice) -> Tensors:
    """What a checkpoint holds after an import, by released name."""
    folder = {"diffusers": "transformer"}.get(source_format, source_format)
    out = loras[0].path.parent / f"checkpoint-{source_format}"
    import_weights(source_format, whole / folder, out, str(whole / "recipe.yaml"), loras=loras)
    ema, model = (to_released(checkpoint_tensors(out, weights), 2) for weights in ("ema", "model"))
    assert_bitwise_equal(ema, model)
    return ema


def assert_merged(merged: Tensors, base: Tensors, pairs: dict[str, Pair], factor: float) -> None:
    """Bit for bit; what no pair changes stays what it was."""
    for name, before in base.items():
        pair = pairs.get(name.removesuffix(".weight"))
        expected = before if pair is None else before + pair.change(factor)
        assert torch.equal(merged[name], expected), name
        assert pair is None or not torch.equal(merged[name], before), name


# --- namings --------------------------------------------------------------------------------------


def diffusers_own(pairs: dict[str, Pair]) -> tuple[Tensors, dict[str, str], float]:
    """As diffusers saves it, with what the trainer chose in the header."""
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"transformer.{theirs(module)}.lora_A.weight"] = pair.down
        tensors[f"transformer.{theirs(module)}.lora_B.weight"] = pair.up
    chosen = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.alpha_pattern": {}}
    return tensors, {"lora_adapter_metadata": json.dumps(chosen)}, ALPHA / RANK


def authors(pairs: dict[str, Pair]) -> tuple[Tensors, dict[str, str], float]:
    """As DiffSynth, the authors' trainer, saves it: alpha is the rank."""
    tensors = {f"{module}.lora_A.default.weight": pair.down for module, pair in pairs.items()}
    return tensors | {f"{module}.lora_B.default.weight": pair.up for module, pair in pairs.items()}, {}, 1.0


def comfy(pairs: dict[str, Pair]) -> tuple[Tensors, dict[str, str], float]:
    """As ComfyUI's users share it: Wan's names below the model's path."""
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"diffusion_model.{module}.lora_down.weight"] = pair.down
        tensors[f"diffusion_model.{module}.lora_up.weight"] = pair.up
        tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(ALPHA, dtype=torch.bfloat16)
    return tensors, {}, ALPHA / RANK


def kohya(pairs: dict[str, Pair]) -> tuple[Tensors, dict[str, str], float]:
    """As musubi-tuner saves it: underscores for dots."""
    tensors = {}
    for module, pair in pairs.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": pair.down, f"{name}.lora_up.weight": pair.up}
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    return tensors, {}, ALPHA / RANK


@pytest.mark.parametrize("naming", [diffusers_own, authors, comfy, kohya])
@pytest.mark.parametrize("source_format", ["diffusers", "wan"])
def test_merged_weights_are_the_sum(
    naming: Callable[..., tuple[Tensors, dict[str, str], float]],
    source_format: str,
    whole: Path,
    base: Tensors,
    pairs: dict[str, Pair],
    tmp_path: Path,
) -> None:
    tensors, metadata, strength = naming(pairs)
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    merged = imported(whole, source_format, LoraChoice(tmp_path / "lora.safetensors", -0.5))
    assert_merged(merged, base, pairs, -0.5 * strength)


def test_pefts_own_folder(whole: Path, base: Tensors, pairs: dict[str, Pair], tmp_path: Path) -> None:
    tensors = {}
    for module, pair in pairs.items():
        tensors[f"base_model.model.{theirs(module)}.lora_A.weight"] = pair.down
        tensors[f"base_model.model.{theirs(module)}.lora_B.weight"] = pair.up
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {"attn1.to_q": 11.0}, "use_dora": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    merged = imported(whole, "wan", LoraChoice(tmp_path / "adapter_model.safetensors"))
    queries = {module: pair for module, pair in pairs.items() if module.endswith("self_attn.q")}
    others = {module: pair for module, pair in pairs.items() if module not in queries}
    assert len(queries) == 2
    for some, alpha in ((queries, 11.0), (others, ALPHA)):
        named = {name: base[name] for name in base if name.removesuffix(".weight") in some}
        assert_merged(merged, named, some, alpha / RANK)


@pytest.mark.parametrize("naming", [comfy, kohya])
def test_diffusers_reads_the_same_from_the_file(
    naming: Callable[..., tuple[Tensors, dict[str, str], float]],
    whole: Path,
    base: Tensors,
    pairs: dict[str, Pair],
    tmp_path: Path,
) -> None:
    """Its own translation of names and alphas is the reference here."""
    from diffusers.loaders import WanLoraLoaderMixin

    blocks = {module: pair for module, pair in pairs.items() if module.startswith("blocks.")}
    tensors, _, _ = naming(blocks)
    save_file(tensors, tmp_path / "lora.safetensors")
    merged = imported(whole, "diffusers", LoraChoice(tmp_path / "lora.safetensors"))
    translated = WanLoraLoaderMixin.lora_state_dict(dict(tensors))
    assert len(translated) == 2 * len(blocks)
    for module in blocks:
        up, down = (translated[f"transformer.{theirs(module)}.lora_{side}.weight"] for side in "BA")
        expected = base[f"{module}.weight"] + up @ down
        torch.testing.assert_close(merged[f"{module}.weight"], expected, rtol=1e-5, atol=1e-5)


# --- the sum --------------------------------------------------------------------------------------


def test_several_files_are_added_and_rounded_once(
    whole: Path, base: Tensors, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    half = {name: tensor.bfloat16() for name, tensor in base.items()}
    save_file(half, tmp_path / "wan.safetensors")
    loras = [LoraChoice(tmp_path / "one.safetensors", 0.3), LoraChoice(tmp_path / "two.safetensors", -0.7)]
    for lora in loras:
        save_file(authors(pairs)[0], lora.path)
    out = tmp_path / "checkpoint"
    import_weights("wan", tmp_path / "wan.safetensors", out, str(whole / "recipe.yaml"), loras=loras)
    merged = to_released(checkpoint_tensors(out), 2)
    rounded_twice = 0
    for module, pair in pairs.items():
        before, name = half[f"{module}.weight"].float(), f"{module}.weight"
        assert torch.equal(merged[name], (before + pair.change(0.3) + pair.change(-0.7)).bfloat16()), name
        twice = (before + pair.change(0.3)).bfloat16().float() + pair.change(-0.7)
        rounded_twice += not torch.equal(merged[name], twice.bfloat16())
    assert rounded_twice, "these weights cannot tell"


def test_whole_changes_of_weights_and_biases(whole: Path, base: Tensors, tmp_path: Path) -> None:
    added = {"norm3.diff": torch.randn(32), "norm3.diff_b": torch.randn(32), "self_attn.k.diff_b": torch.randn(32)}
    file = tmp_path / "lora.safetensors"
    save_file({f"diffusion_model.blocks.1.{name}": one for name, one in added.items()}, file)
    merged = imported(whole, "diffusers", LoraChoice(file, 2.0))
    changed = {
        "blocks.1.norm3.weight": added["norm3.diff"],
        "blocks.1.norm3.bias": added["norm3.diff_b"],
        "blocks.1.self_attn.k.bias": added["self_attn.k.diff_b"],
    }
    for name, before in base.items():
        assert torch.equal(merged[name], before + 2.0 * changed[name] if name in changed else before), name


def test_rows_are_merged_in_pieces_and_the_weights_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    tensor, up, down = (
        torch.randint(-9, 9, shape, generator=generator) * 1.0 for shape in ((2500, 6), (2500, 4), (4, 6))
    )
    before = tensor.clone()

    def stored(one: Tensor) -> StoredTensor:
        return StoredTensor("float32", tuple(one.shape), lambda: one)

    assert torch.equal(merge(tensor, [Change(stored(up), stored(down), 2.0)]), before + 2.0 * up @ down)
    assert torch.equal(tensor, before)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("c:\\a.safetensors", "c:\\a.safetensors", 1.0),
        (":2", ":2", 1.0),
    ],
)
def test_file_and_scale(text: str, path: str, scale: float) -> None:
    assert parse_lora(text) == LoraChoice(Path(path), scale)


def test_a_file_whose_name_ends_in_a_number(tmp_path: Path) -> None:
    (tmp_path / "lora:2").touch()
    assert parse_lora(f"{tmp_path / 'lora:2'}") == LoraChoice(tmp_path / "lora:2")
    with pytest.raises(ConfigError, match=r"scale \(nan\) must be a finite number"):
        parse_lora("lora:nan")


def test_import_says_what_it_merged(
    whole: Path, base: Tensors, pairs: dict[str, Pair], tmp_path: Path, capfd: Capture
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(authors(pairs)[0], file)
    options = ["--out", tmp_path / "checkpoint", "--recipe", whole / "recipe.yaml", "--json"]
    assert call_main("import", "wan", whole / "wan", "--lora", f"{file}:0.25", "--lora", file, *options) == 0
    lines = capfd.readouterr().out.splitlines()
    assert f"merged {file} at scale 0.25 into {len(pairs)} tensors" in lines
    said = [{"path": str(file), "scale": scale, "tensors": len(pairs)} for scale in (0.25, 1.0)]
    assert json.loads(lines[-1])["merged"] == said
    merged = to_released(checkpoint_tensors(tmp_path / "checkpoint"), 2)
    name, pair = "blocks.1.cross_attn.v.weight", pairs["blocks.1.cross_attn.v"]
    assert torch.equal(merged[name], base[name] + pair.change(0.25) + pair.change(1.0))


def refused(capfd: Capture, whole: Path, folder: Path, lora: str, *words: str) -> None:
    """`import` ends with status 2 and a line with these words, and leaves the place as it was."""
    before = sorted(folder.rglob("*"))
    options = ["--out", folder / "checkpoint", "--recipe", whole / "recipe.yaml", "--lora", lora]
    assert call_main("import", "wan", whole / "wan", *options) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err, captured.err
    assert sorted(folder.rglob("*")) == before


Q = "blocks.0.self_attn.q"
DOWN, UP = f"{Q}.lora_A.default.weight", f"{Q}.lora_B.default.weight"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({UP: None}, [f"without its partner 1 ({DOWN})"]),
        ({f"{Q}.diff": torch.zeros(32, 32)}, [f"without its partner 3 ({Q}.diff, {DOWN}, {UP})"]),
        (
            {"blocks.7.self_attn.q.lora_A.weight": torch.zeros(3, 32), f"{Q}.dora_scale": torch.zeros(32)},
            ["unknown 2 (blocks.0.self_attn.q.dora_scale, blocks.7.self_attn.q.lora_A.weight)"],
        ),
        ({"semantic_head.proj.diff_b": torch.zeros(16)}, ["unknown 1 (semantic_head.proj.diff_b)"]),
        ({"text_encoder.q.lora_A.weight": torch.zeros(3, 32)}, ["unknown 1 (text_encoder.q.lora_A.weight)"]),
        ({f"transformer.{Q}.lora_up.weight": torch.zeros(32, 3)}, ["twice 1 (", UP, f"transformer.{Q}.lora_up"]),
        ({DOWN: torch.zeros(3, 31)}, [f"wrong shape 1 ({DOWN}: [3, 31], must be [3, 32])"]),
        ({DOWN: torch.zeros(2, 32)}, [f"wrong shape 1 ({UP}: [32, 3], must be [32, 2])"]),
        ({DOWN: torch.zeros(0, 32), UP: torch.zeros(32, 0)}, ["wrong shape 2 ("]),
        ({f"{Q}.alpha": torch.zeros(2)}, [f"wrong shape 1 ({Q}.alpha: [2], must be one number)"]),
        ({f"{Q}.alpha": torch.tensor(float("nan"))}, [f"alpha of {Q} is nan: it must be a finite number"]),
        ({DOWN: torch.zeros(3, 32).double()}, [f"wrong dtype 1 ({DOWN}: float64, must be float32"]),
        (
            {UP: torch.zeros(31, 3), "extra": torch.zeros(1), f"{Q}.diff_b": torch.zeros(9)},
            ["unknown 1 (extra)", f"wrong shape 2 ({Q}.diff_b: [9], must be [32], {UP}: [31, 3], must be [32, 3])"],
        ),
        ({DOWN: None, UP: None}, ["it holds no tensors"]),
    ],
)
def test_tampered_files(
    changes: dict[str, Tensor | None], words: list[str], whole: Path, tmp_path: Path, capfd: Capture
) -> None:
    tensors: dict[str, Tensor | None] = {DOWN: torch.ones(3, 32), UP: torch.ones(32, 3)} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "lora.safetensors")
    refused(capfd, whole, tmp_path, f"{tmp_path / 'lora.safetensors'}:0.5", "lora.safetensors", *words)


def test_files_that_cannot_be_read(whole: Path, tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "lora.safetensors"
    refused(capfd, whole, tmp_path, str(file), "lora.safetensors is no file")
    tensors = {DOWN: torch.ones(3, 32), UP: torch.ones(32, 3)}
    save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:-10])
    refused(capfd, whole, tmp_path, str(file), "lora.safetensors cannot be read", "fetch it again")
    torch.save(tensors, tmp_path / "lora.pt")
    refused(capfd, whole, tmp_path, str(tmp_path / "lora.pt"), "must end in .safetensors", "can run code")
    for metadata, word in (('{"transformer.use_dora": true}', "use_dora"), ("[", "is no JSON object")):
        save_file(tensors, file, {"lora_adapter_metadata": metadata})
        refused(capfd, whole, tmp_path, str(file), word)
