"""Checkpoints written and read tensor by tensor."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sama_mega.config import CheckpointError
from sama_mega.parallel.checkpoint_io import read_plain, read_shapes
from sama_mega.parallel.checkpoint_stream import CheckpointReader, CheckpointWriter
from tests.support.tiny_recipe import assert_bitwise_equal

TENSORS = {"a.weight": torch.randn(40, 50), "b": torch.randn(7).bfloat16(), "c.scalar": torch.tensor(3.0)}


def write(folder: Path, tensors: dict[str, Tensor], largest_file_bytes: int = 1 << 30) -> None:
    with CheckpointWriter(folder, largest_file_bytes) as writer:
        for name, tensor in tensors.items():
            writer.add([f"model.{name}", f"ema.{name}"], tensor)
        writer.finish()


def test_every_key_reads_back_what_was_written_once(tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    for section in ("model", "ema"):
        assert_bitwise_equal(read_plain(tmp_path, f"{section}."), TENSORS)
    reader = CheckpointReader(tmp_path)
    assert reader.shapes == read_shapes(tmp_path)
    assert_bitwise_equal({name: reader.read(f"ema.{name}") for name in TENSORS}, TENSORS)
    assert torch.equal(reader.read("ema.a.weight", torch.bfloat16), TENSORS["a.weight"].bfloat16())
    assert (tmp_path / "__0_0.distcp").stat().st_size < 2 * 4 * 40 * 50


def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path: Path) -> None:
    whole = torch.randn(1000, 100)
    write(tmp_path, {"row": whole[3], "column": whole[:, 5]})
    assert (tmp_path / "__0_0.distcp").stat().st_size < 10_000
    assert_bitwise_equal(read_plain(tmp_path, "ema."), {"row": whole[3], "column": whole[:, 5]})


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, largest_file_bytes=1)
    assert len(list(tmp_path.glob("*.distcp"))) == len(TENSORS)
    assert_bitwise_equal(read_plain(tmp_path, "model."), TENSORS)


def test_what_was_not_finished_is_no_checkpoint(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path) as writer:
        writer.add(["model.a"], torch.zeros(3))
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        CheckpointReader(tmp_path)


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path, TENSORS, largest_file_bytes=1)
    (tmp_path / "__0_1.distcp").write_bytes(b"")
    reader = CheckpointReader(tmp_path)
    assert torch.equal(reader.read("model.a.weight"), TENSORS["a.weight"])
    with pytest.raises(CheckpointError, match=r"cannot read model\.b of the checkpoint"):
        reader.read("model.b")


def test_a_disk_that_refuses_is_called_that(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"), CheckpointWriter(tmp_path) as writer:
            writer.add(["model.a"], torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
