"""What training asks of a cache: found to the last bit, or missed, counted and said once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from sama_mega.config.errors import ConfigError
from tests.support.feature_caches import IDENTITY, frames, open_cache, random_feature, write_cache

LATENTS, SEMANTIC = random_feature(0, 4, 2, 3), random_feature(1, 5, 7)
TEXT = torch.cat([random_feature(2, 3, 4).bfloat16().float(), torch.zeros(3, 4)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    shards = {
        "a": [("latents", frames(0), LATENTS), ("text", "a prompt", TEXT)],
        "b": [("semantic", frames(0), SEMANTIC)],
    }
    write_cache(tmp_path, shards)  # type: ignore[arg-type]
    return tmp_path


def test_features_come_back(path: Path) -> None:
    cache = open_cache(path)
    assert len(cache) == 3
    for kind, content, expected in (
        ("latents", frames(0), LATENTS),
        ("semantic", frames(0), SEMANTIC),
        ("text", "a prompt", TEXT),
    ):
        found = cache.find(kind, content)  # type: ignore[arg-type]
        assert found is not None and found.dtype == torch.float32 and torch.equal(found, expected)
    assert cache.hits == {"latents": 1, "semantic": 1, "text": 1} and not cache.misses


def test_what_is_missing_is_counted_and_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(path)
    with caplog.at_level(logging.INFO):
        assert cache.find("latents", frames(1)) is None
        assert cache.find("latents", frames(2)) is None
        assert cache.find("text", "another prompt") is None
        assert cache.find("semantic", frames(0)) is not None
    assert cache.misses == {"latents": 2, "text": 1} and cache.hits == {"semantic": 1}
    (line,) = caplog.messages
    assert f"data.cache ({path}) lacks some features" in line and "encoded as they come" in line


def test_holding_is_asked_without_counting(path: Path) -> None:
    from sama_mega.encoders.feature_cache import Keys

    cache, keys = open_cache(path), Keys(IDENTITY)
    assert cache.holds(keys.key("latents", frames(0))) and not cache.holds(keys.key("latents", frames(1)))
    assert not cache.hits and not cache.misses


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_spoilt_shard_is_left_alone(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    shard = path / "shards" / "a.safetensors"
    if damage == "gone":
        shard.unlink()
    else:
        with shard.open("r+b") as file:
            file.truncate(50)
    cache = open_cache(path)
    assert cache.find("latents", frames(0)) is None and cache.find("text", "a prompt") is None
    assert cache.find("semantic", frames(0)) is not None
    assert cache.misses.total() == 2
    assert [str(shard) in line for line in caplog.messages] == [True, False]


def test_a_cache_that_is_not_finished_is_refused(path: Path) -> None:
    (path / "index.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no whole index: run `sama-mega data cache` again"):
        open_cache(path)


def test_other_encoders_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="made by other encoders"):
        open_cache(path, IDENTITY | {"text": {"encoder": "umt5"}})
    with pytest.raises(ConfigError, match=r"data.cache .* is no cache"):
        open_cache(path / "nowhere")
