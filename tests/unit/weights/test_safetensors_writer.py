"""Files that safetensors itself reads back, whole or in shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sama_mega.weights.safetensors_writer import PlannedTensor, SafetensorsWriter

TENSORS = {
    "a": torch.randn(3, 5),
    "b.weight": torch.randn(7).bfloat16(),
    "scalar": torch.tensor(2.5),
    "c": torch.randn(2, 1, 4).half(),
    "odd": torch.randn(3).bfloat16(),
}


def write(folder: Path, tensors: dict[str, Tensor], shard_bytes: int | None) -> None:
    planned = {name: PlannedTensor(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder, "model.safetensors", planned, shard_bytes) as file:
        for name in reversed(tensors):
            file.write(name, tensors[name])


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def test_one_file_in_any_order(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(load_file(tmp_path / "model.safetensors"), TENSORS)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_shards_hold_at_most_so_much_and_the_index_names_them(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, 64)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    total = sum(tensor.numel() * tensor.element_size() for tensor in TENSORS.values())
    assert index["metadata"] == {"total_size": total}
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert set(index["weight_map"].values()) == set(files)
    found = {}
    for name in files:
        tensors = load_file(tmp_path / name)
        assert sum(one.numel() * one.element_size() for one in tensors.values()) <= 64
        assert all(index["weight_map"][one] == name for one in tensors)
        found |= tensors
    assert_same(found, TENSORS)


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, 1)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(TENSORS)


def test_tensors_become_what_was_planned(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, "m.safetensors", {"x": PlannedTensor(torch.bfloat16, (2, 3))}) as file:
        file.write("x", torch.arange(6.0).view(3, 2).T / 3)
    assert_same(load_file(tmp_path / "m.safetensors"), {"x": (torch.arange(6.0).view(3, 2).T / 3).bfloat16()})


def test_a_tensor_that_was_not_written_is_noticed(tmp_path: Path) -> None:
    planned = {"b.weight": PlannedTensor(torch.float32, (1,))}
    with pytest.raises(AssertionError, match=r"b\.weight"), SafetensorsWriter(tmp_path, "m.safetensors", planned):
        pass
