"""The cache's folder: of one set of encoders, written whole, by many at once."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sama_mega.config.errors import ConfigError
from sama_mega.encoders.feature_cache import CacheFolder
from tests.support.feature_caches import IDENTITY, frames, random_feature, write_cache


def refusal(path: Path, identity: dict[str, dict[str, object]], key: str = "data.cache") -> str:
    with pytest.raises(ConfigError) as caught:
        CacheFolder(path).require_encoders(key, identity)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_claimed_folder_is_claimed_again_by_the_same_encoders(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "new" / "cache")
    for _ in range(2):
        folder.claim(IDENTITY)
        folder.require_encoders("data.cache", IDENTITY)
    assert sorted(os.listdir(folder.path)) == ["cache.json", "partial", "shards"]
    assert os.listdir(folder.path / "partial") == []


def test_many_claim_at_once_and_one_set_of_encoders_wins(tmp_path: Path) -> None:
    sets = [IDENTITY | {"text": {"encoder": "hash", "tokens": number}} for number in (1, 2)]

    def claim(number: int) -> bool:
        try:
            CacheFolder(tmp_path / "cache").claim(sets[number % 2])
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(claim, range(32)))
    winner = json.loads((tmp_path / "cache/cache.json").read_text())["encoders"]
    assert claimed == [sets[number % 2] == winner for number in range(32)]


def test_other_encoders_are_refused_with_what_differs(tmp_path: Path) -> None:
    CacheFolder(tmp_path).claim(IDENTITY)
    changed = IDENTITY | {"video": {"encoder": "dct", "arithmetic": "bfloat16"}}
    message = refusal(tmp_path, changed)
    assert message.startswith(f"data.cache ({tmp_path}) was made by other encoders: encoders.video is of arithmetic")
    assert "float32 there and bfloat16 here" in message and "sama-mega data cache" in message
    assert "of encoder tiny there and siglip here" in refusal(tmp_path, IDENTITY | {"semantic": {"encoder": "siglip"}})
    assert "of grid 2 there and None here" in refusal(tmp_path, IDENTITY | {"semantic": {"encoder": "tiny"}})
    with pytest.raises(ConfigError, match=r"--out .*other encoders"):
        CacheFolder(tmp_path).claim(changed)


def test_what_is_no_cache_is_refused(tmp_path: Path) -> None:
    assert "is no cache" in refusal(tmp_path / "nowhere", IDENTITY)
    (tmp_path / "cache.json").write_text("{")
    assert "cannot be read" in refusal(tmp_path, IDENTITY)
    (tmp_path / "cache.json").write_text("[]")
    assert "cannot be read" in refusal(tmp_path, IDENTITY)
    (tmp_path / "cache.json").write_text(json.dumps({"format": 2, "encoders": IDENTITY}))
    assert "has the format 2, and this version reads 1" in refusal(tmp_path, IDENTITY)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear to me")
    with pytest.raises(ConfigError, match=r"--out \(.*\) holds other files"):
        CacheFolder(tmp_path).claim(IDENTITY)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out \(.*file/cache\) cannot be written"):
        CacheFolder(tmp_path / "file" / "cache").claim(IDENTITY)


def test_files_appear_whole_and_others_may_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CacheFolder(tmp_path)
    folder.claim(IDENTITY)
    seen: list[list[str]] = []
    replace = os.replace

    def watch(draft: Path, path: Path) -> None:
        seen.append(folder.shard_names())
        replace(draft, path)

    monkeypatch.setattr(os, "replace", watch)
    folder.write(folder.shards / "a.safetensors", {"x": torch.zeros(3)})
    assert seen == [[]] and folder.shard_names() == ["a.safetensors"]
    assert (folder.shards / "a.safetensors").stat().st_mode == folder.header.stat().st_mode


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CacheFolder(tmp_path)
    folder.claim(IDENTITY)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match="No space left on device: free or change the disk"):
        folder.write(folder.shards / "a.safetensors", {"x": torch.zeros(3)})
    assert folder.shard_names() == [] and os.listdir(tmp_path / "partial") == []


def test_what_the_dead_left_is_removed(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, {"a": [("latents", frames(0), random_feature(0, 3))]})
    old, new = (tmp_path / "partial" / f"{name}.safetensors.77" for name in "bc")
    for draft, age_seconds in ((old, 4000), (new, 3000)):
        draft.write_text("half")
        os.utime(draft, (time.time() - age_seconds,) * 2)
    folder.remove_drafts()
    # The newer one may be another process's that is about to end.
    assert os.listdir(tmp_path / "partial") == [new.name] and folder.shard_names() == ["a.safetensors"]
