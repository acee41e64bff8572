"""Tampered weights through the command line: exit 2, one line that says what is wrong, nothing written."""

from __future__ import annotations

import errno
import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sama_mega.parallel.checkpoint_stream import CheckpointWriter
from sama_mega.weights.safetensors_writer import SafetensorsWriter
from tests.support.tiny_recipe import call_main
from tests.support.wan_weights import WEIGHTS_FILE, write_tiny_recipe, write_wan_folder, write_wan_transformer

Capture = pytest.CaptureFixture[str]
Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good weights: `transformer` by diffusers, `wan` in Wan's layout; and their recipe."""
    folder = tmp_path_factory.mktemp("whole")
    write_wan_transformer(folder / "transformer")
    write_wan_folder(folder / "wan", folder / "transformer")
    write_tiny_recipe(folder / "recipe.yaml")
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path


def copied(whole: Path, work: Path, name: str, change: Change | None = None) -> Path:
    folder = work / name
    shutil.copytree(whole / name, folder)
    if change is not None:
        tensors = load_file(folder / WEIGHTS_FILE)
        change(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)
    return folder


def refused(capfd: Capture, whole: Path, source_format: str, path: Path, *words: str, recipe: bool = True) -> None:
    """`import` ends with status 2 and a line with these words, and leaves the place as it was."""
    out = path.parent / "checkpoint"
    before = sorted(path.parent.rglob("*"))
    options = ["--recipe", whole / "recipe.yaml"] if recipe else []
    assert call_main("import", source_format, path, "--out", out, *options) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    for word in words:
        assert word in captured.err, captured.err
    assert sorted(path.parent.rglob("*")) == before


def drop(name: str) -> Change:
    return lambda tensors: tensors.pop(name)


def put(name: str, tensor: Tensor) -> Change:
    return lambda tensors: tensors.update({name: tensor})


def convert(name: str, dtype: torch.dtype) -> Change:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("blocks.1.attn1.to_k.bias"), ["missing 1 (blocks.1.attn1.to_k.bias)"]),
        (put("blocks.1.extra.weight", torch.zeros(2)), ["unused 1 (blocks.1.extra.weight)"]),
        (
            put("blocks.0.attn2.to_out.0.weight", torch.zeros(32, 31)),
            ["wrong shape 1 (blocks.0.attn2.to_out.0.weight: [32, 31], must be [32, 32])"],
        ),
        (
            convert("proj_out.bias", torch.float64),
            ["wrong dtype 1 (proj_out.bias: float64, must be float32 or bfloat16 or float16)"],
        ),
        (convert("proj_out.bias", torch.int8), ["wrong dtype 1 (proj_out.bias: I8"]),
        (
            convert("blocks.0.attn1.to_k.weight", torch.bfloat16),
            ["blocks.0.attn1.to_k.weight: bfloat16, must be float32 like blocks.0.attn1.to_q.weight"],
        ),
    ],
)
def test_tampered_diffusers_weights(change: Change, words: list[str], whole: Path, work: Path, capfd: Capture) -> None:
    refused(capfd, whole, "diffusers", copied(whole, work, "transformer", change), *words)


def test_all_that_is_wrong_is_said_at_once_and_briefly(whole: Path, work: Path, capfd: Capture) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for number in range(9):
            tensors[f"extra{number}"] = torch.zeros(1)
        del tensors["proj_out.weight"], tensors["blocks.0.norm2.weight"]

    folder = copied(whole, work, "transformer", change)
    words = ["missing 2 (blocks.0.norm2.weight, proj_out.weight)", "unused 9 (extra0, extra1, extra2 and 6 more)"]
    refused(capfd, whole, "diffusers", folder, *words)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def test_truncated_files(whole: Path, work: Path, capfd: Capture) -> None:
    folder = copied(whole, work, "wan")
    cut(folder / WEIGHTS_FILE)
    refused(capfd, whole, "wan", folder, WEIGHTS_FILE, "cannot be read", "fetch it again")
    (folder / WEIGHTS_FILE).write_bytes(b"")
    refused(capfd, whole, "wan", folder, WEIGHTS_FILE, "cannot be read")


def test_a_missing_shard_and_a_tensor_in_two_shards(whole: Path, work: Path, capfd: Capture) -> None:
    write_wan_transformer(work / "transformer", shard_size="40KB")
    shards = sorted((work / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    again = load_file(shards[0]) | load_file(shards[1])
    kept = shards[0].read_bytes()
    save_file(again, shards[0])
    refused(capfd, whole, "diffusers", work / "transformer", shards[1].name, "which another file of the folder holds")
    shards[0].write_bytes(kept)
    shards[1].unlink()
    refused(capfd, whole, "diffusers", work / "transformer", "lacks", shards[1].name)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


def test_a_pickle_that_wants_to_run_code(
    whole: Path, work: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    tensors = load_file(whole / "wan" / WEIGHTS_FILE)
    torch.save(tensors | {"head.modulation": RunsCode()}, work / "wan.pth")
    refused(capfd, whole, "wan", work / "wan.pth", "wan.pth is refused", "could run code", "safetensors")
    (work / "plain.pth").write_bytes(pickle.dumps(RunsCode()))
    refused(capfd, whole, "wan", work / "plain.pth", "plain.pth is refused")
    torch.save(tensors, work / "cut.pth")
    cut(work / "cut.pth")
    refused(capfd, whole, "wan", work / "cut.pth", "cut.pth is refused: it is damaged")
    torch.save({"state_dict": tensors}, work / "nested.pth")
    refused(capfd, whole, "wan", work / "nested.pth", "must hold tensors by name")
    torch.save(tensors, work / "wan.ckpt")
    refused(capfd, whole, "wan", work / "wan.ckpt", "must end in .safetensors or .pth or .pt")
    torch.save(tensors, work / "sama.pth")
    refused(capfd, whole, "sama", work / "sama.pth", "must end in .safetensors", "can run code")
    assert not (work / "was_run").exists()


def test_a_folder_of_pickles(whole: Path, work: Path, capfd: Capture) -> None:
    folder = copied(whole, work, "transformer")
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS_FILE).unlink()
    refused(capfd, whole, "diffusers", folder, "diffusion_pytorch_model.bin", "can run code")


def test_wans_weights_are_not_samas(whole: Path, work: Path, capfd: Capture) -> None:
    folder = copied(whole, work, "wan")
    refused(capfd, whole, "sama", folder, "missing 11 (segment_embedding.weight", "import wan")
    tensors = load_file(folder / WEIGHTS_FILE) | {"segment_embedding.weight": torch.zeros(3, 32)}
    save_file(tensors, folder / WEIGHTS_FILE)
    refused(capfd, whole, "wan", folder, "unused 1 (segment_embedding.weight)", "import sama")


@pytest.mark.parametrize(
    ("name", "source_format", "changes", "words"),
    [
        ("transformer", "diffusers", {"image_dim": 1280}, ["image_dim in config.json is 1280", "must be None"]),
        ("transformer", "diffusers", {"_class_name": "FluxTransformer"}, ["_class_name", "WanTransformer3DModel"]),
        ("transformer", "diffusers", {"num_attention_heads": 4}, ["num_attention_heads", "model.num_heads", "is 2"]),
        ("transformer", "diffusers", {"eps": 1e-5}, ["eps in config.json is 1e-05", "model.norm_eps"]),
        ("wan", "wan", {"model_type": "i2v"}, ["model_type in config.json is 'i2v'", "must be 't2v'"]),
        ("wan", "wan", {"num_heads": 4}, ["num_heads in config.json is 4", "model.num_heads"]),
    ],
)
def test_a_config_of_another_model(
    name: str,
    source_format: str,
    changes: dict[str, Any],
    words: list[str],
    whole: Path,
    work: Path,
    capfd: Capture,
) -> None:
    folder = copied(whole, work, name)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    refused(capfd, whole, source_format, folder, *words)


def test_a_recipe_without_semantic_tokens(whole: Path, work: Path, capfd: Capture) -> None:
    write_tiny_recipe(work / "bare/recipe.yaml", {"anchor.num_frames": 0})
    words = ["bare/recipe.yaml", "anchor.num_frames is 0", "set it to 1"]
    refused(capfd, work / "bare", "diffusers", whole / "transformer", *words)


def test_a_recipe_of_another_size(whole: Path, work: Path, capfd: Capture) -> None:
    folder = copied(whole, work, "transformer")
    refused(capfd, whole, "diffusers", folder, "is of no published size (dim 32", "give --recipe", recipe=False)
    write_tiny_recipe(work / "other/recipe.yaml", {"model.dim": 48, "model.num_layers": 3})
    words = ["is not the recipe of", "model.dim is 48 and 32 there", "model.num_layers is 3 and 2 there"]
    refused(capfd, work / "other", "diffusers", folder, *words)


def test_what_is_there_is_not_replaced(whole: Path, work: Path, capfd: Capture) -> None:
    folder = copied(whole, work, "transformer")
    (work / "checkpoint").mkdir()
    refused(capfd, whole, "diffusers", folder, "checkpoint) exists: choose another folder")
    (work / "checkpoint").rmdir()
    refused(capfd, whole, "diffusers", work / "nowhere", "nowhere does not exist")


class FullDisk:
    """Raises as a full disk does, at the tenth tensor."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: object) -> None:
        self.calls += 1
        if self.calls == 10:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing(
    whole: Path, checkpoint: Path, work: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(whole, work, "transformer")
    before = sorted(work.rglob("*"))
    monkeypatch.setattr(CheckpointWriter, "add", FullDisk())
    options = ["--out", work / "new", "--recipe", whole / "recipe.yaml"]
    assert call_main("import", "diffusers", folder, *options) == 2
    assert "new cannot be written: [Errno 28]" in capfd.readouterr().err
    for target, out in (("sama", work / "new.safetensors"), ("diffusers", work / "new")):
        monkeypatch.setattr(SafetensorsWriter, "write", FullDisk())
        assert call_main("export", checkpoint, target, "--out", out) == 2
        assert f"{out.name} cannot be written: [Errno 28]" in capfd.readouterr().err
    assert sorted(work.rglob("*")) == before


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    assert call_main("import", "wan", whole / "wan", "--out", out, "--recipe", whole / "recipe.yaml") == 0
    return out


def export_refused(capfd: Capture, checkpoint: Path, target: str, out: Path, *words: str) -> None:
    before = sorted(out.parent.rglob("*"))
    capfd.readouterr()
    assert call_main("export", checkpoint, target, "--out", out) == 2
    captured = capfd.readouterr()
    *progress, line = captured.err.splitlines()
    assert line.startswith("error: ") and captured.out == "", captured.err
    assert all(one.startswith("exporting ") for one in progress), captured.err
    for word in words:
        assert word in line, line
    assert sorted(out.parent.rglob("*")) == before


def test_export_refuses(checkpoint: Path, tmp_path: Path, capfd: Capture) -> None:
    export_refused(capfd, checkpoint, "sama", tmp_path / "sama.bin", "must end in .safetensors")
    (tmp_path / "there").mkdir()
    export_refused(capfd, checkpoint, "diffusers", tmp_path / "there", "exists: choose another name")
    export_refused(capfd, tmp_path / "there", "diffusers", tmp_path / "new", "holds no complete checkpoint")


def test_export_names_a_damaged_checkpoint(checkpoint: Path, tmp_path: Path, capfd: Capture) -> None:
    damaged = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, damaged)
    shard = damaged / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    export_refused(capfd, damaged, "sama", tmp_path / "out.safetensors", "cannot read ema.", str(damaged))
    recipe = (damaged / "recipe.yaml").read_text()
    (damaged / "recipe.yaml").write_text(recipe.replace("num_layers: 2", "num_layers: 3"))
    export_refused(
        capfd, damaged, "diffusers", tmp_path / "out", "does not hold the ema weights", "missing 21 (blocks.2."
    )
    (damaged / "recipe.yaml").write_text(recipe.replace("roles: segment", "roles: shifted_rope"))
    export_refused(capfd, damaged, "diffusers", tmp_path / "out", "model.roles is shifted_rope")
    (damaged / "recipe.yaml").write_text(re.sub(r"num_frames: \d", "num_frames: 0", recipe))
    export_refused(capfd, damaged, "diffusers", tmp_path / "out", "anchor.num_frames is 0")
