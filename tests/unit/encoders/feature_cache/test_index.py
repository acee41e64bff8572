"""The index: from keys to shards, right while shards are added."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.feature_cache import CacheFolder
from sama_mega.encoders.feature_cache.index import Index, index_is_current, write_index
from tests.support.feature_caches import IDENTITY


def key(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=16).digest()


def add_shard(folder: CacheFolder, name: str, keys: list[bytes]) -> None:
    tensors = {one.hex(): torch.zeros(1) for one in keys}
    folder.write(folder.shards / f"{name}.safetensors", tensors)


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    folder = CacheFolder(tmp_path)
    folder.claim(IDENTITY)
    return folder


def test_every_key_leads_to_its_shard(folder: CacheFolder) -> None:
    for shard in range(5):
        add_shard(folder, f"s{shard}", [key(number) for number in range(shard, 200, 5)])
    write_index(folder)
    index = Index(folder.index)
    assert len(index) == 200 and index.names == [f"s{shard}.safetensors" for shard in range(5)]
    assert [index.shards_of(key(number)) for number in range(200)] == [
        [f"s{number % 5}.safetensors"] for number in range(200)
    ]
    assert [index.shards_of(key(number)) for number in range(200, 300)] == [[]] * 100


def test_keys_that_begin_alike_name_all_their_shards(folder: CacheFolder) -> None:
    first, second = bytes(8) + b"a" * 8, bytes(8) + b"b" * 8
    lowest, highest = b"\x80" + bytes(15), b"\x7f" + b"\xff" * 15
    add_shard(folder, "a", [first, lowest])
    add_shard(folder, "b", [second, highest])
    write_index(folder)
    index = Index(folder.index)
    assert index.shards_of(first) == index.shards_of(second) == ["a.safetensors", "b.safetensors"]
    assert index.shards_of(lowest) == ["a.safetensors"] and index.shards_of(highest) == ["b.safetensors"]


def test_an_index_of_nothing(folder: CacheFolder) -> None:
    assert not index_is_current(folder)
    write_index(folder)
    assert index_is_current(folder)
    index = Index(folder.index)
    assert (len(index), index.names, index.shards_of(key(0))) == (0, [], [])
    add_shard(folder, "empty", [])
    assert not index_is_current(folder)
    write_index(folder)
    assert Index(folder.index).names == ["empty.safetensors"]


def test_shards_that_come_while_it_is_written_are_in_it(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    add_shard(folder, "a", [key(0)])
    listed = folder.shard_names()
    arrivals = iter("bc")
    names = folder.shard_names

    def shard_names() -> list[str]:
        found = names()
        arrival = next(arrivals, None)
        if arrival is not None:
            add_shard(folder, arrival, [key(len(found))])
        return found

    monkeypatch.setattr(folder, "shard_names", shard_names)
    write_index(folder)
    assert listed == ["a.safetensors"]
    assert Index(folder.index).names == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert len(Index(folder.index)) == 3


def test_a_current_index_is_not_written_again(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    add_shard(folder, "a", [key(0)])
    write_index(folder)
    monkeypatch.setattr(folder, "write", lambda *_: pytest.fail("written"))
    write_index(folder)


def test_a_damaged_index_is_written_anew(folder: CacheFolder) -> None:
    add_shard(folder, "a", [key(0)])
    write_index(folder)
    with folder.index.open("r+b") as file:
        file.truncate(20)
    with pytest.raises(SafetensorError):
        Index(folder.index)
    write_index(folder)
    assert Index(folder.index).shards_of(key(0)) == ["a.safetensors"]


def test_a_damaged_shard_is_named(folder: CacheFolder) -> None:
    add_shard(folder, "a", [key(0)])
    with (folder.shards / "a.safetensors").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(ConfigError, match=r"a.safetensors cannot be read: .*delete it"):
        write_index(folder)
