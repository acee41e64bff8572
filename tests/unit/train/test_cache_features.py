"""Filling a cache: every content once, by any number of processes, in any number of lives."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sama_data.clips import load_clip
from sama_data.loader import Quarantine, SampleLoader
from sama_mega.config.schema import Recipe
from sama_mega.encoders import build_encoders
from sama_mega.encoders.feature_cache import CacheFolder, Content, FeatureCache, Keys
from sama_mega.encoders.feature_cache.index import write_index
from sama_mega.train import cache_features
from sama_mega.train.cache_features import CacheReport, FeatureCacher
from sama_mega.train.encode import FrameEncoders, is_unperturbed
from sama_mega.train.inputs import open_dataset
from sama_mega.train.loader_settings import loader_settings
from tests.support.tiny_recipe import tiny_recipe, tiny_world

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 videos and 8 images: 3 shards and 2."""
    monkeypatch.setattr(cache_features, "ROWS_PER_SHARD", {"video": 3, "image": 4})


def make_recipe(manifest: Path, stage: int = 0, changes: Mapping[str, Any] | None = None) -> Recipe:
    return tiny_recipe(stage, Path("unused"), manifest, changes=changes)


def fill(recipe: Recipe, path: Path, ranks: Sequence[int] = (0,), world_size: int = 1) -> list[CacheReport]:
    """Processes after one another."""
    reports = []
    for rank in ranks:
        cacher = FeatureCacher(recipe, open_dataset(recipe), build_encoders(recipe, CPU), CacheFolder(path), CPU)
        seen: list[int] = []
        reports.append(cacher.run(rank, world_size, seen.append))
        assert seen[-1:] == [cacher.num_rows(rank, world_size)] or not seen
        assert seen == sorted(seen) and reports[-1].rows == cacher.num_rows(rank, world_size)
    return reports


def contents(path: Path) -> dict[str, torch.Tensor]:
    """Everything that is stored, by key."""
    stored: dict[str, torch.Tensor] = {}
    for shard in sorted((path / "shards").glob("*.safetensors")):
        stored |= load_file(shard)
    return stored


def assert_same_contents(first: Path, second: Path) -> None:
    ours, truth = contents(first), contents(second)
    assert ours.keys() == truth.keys() and truth
    assert all(torch.equal(ours[key], truth[key]) for key in truth)


def shard_kinds(path: Path) -> list[str]:
    return sorted(name.rpartition("-")[0] for name in os.listdir(path / "shards"))


@pytest.mark.parametrize("stage", [0, 1])
def test_what_training_encodes_alike_in_every_epoch_is_stored(world: Path, tmp_path: Path, stage: int) -> None:
    recipe = make_recipe(world / ("pairs.jsonl" if stage else "raw.jsonl"), stage)
    (report,) = fill(recipe, tmp_path)
    assert (report.rows, report.rows_done_before, report.skipped, report.finished) == (16, 0, [], True)
    encoders = build_encoders(recipe, CPU)
    encode, cache = FrameEncoders(recipe, encoders, CPU), FeatureCache(tmp_path, encoders.identity(), 16)
    assert len(cache) == report.encoded >= len(contents(tmp_path))  # a prefix is in every shard
    for row in open_dataset(recipe):
        clip = load_clip(row, recipe.data.buckets, recipe.data.max_frames)
        for frames in (clip.target, clip.source):
            assert torch.equal(cache.find("latents", frames), encode.clips([frames], [None])[0])  # type: ignore[arg-type]
        anchors = encode.anchors_of(clip.target)
        assert torch.equal(cache.find("semantic", anchors), encode.anchors([anchors])[0])  # type: ignore[arg-type]
    assert not cache.misses


def test_training_finds_all_but_perturbed_sources_in_every_epoch(world: Path, tmp_path: Path) -> None:
    """As the loader draws them: other perturbations, and so other prompts, in every epoch."""
    recipe = make_recipe(world / "raw.jsonl", changes={"data.max_frames": 5})
    fill(recipe, tmp_path)
    keys = Keys(build_encoders(recipe, CPU).identity())
    stored, tasks = set(contents(tmp_path)), set()
    encode = FrameEncoders(recipe, build_encoders(recipe, CPU), CPU)

    def is_stored(kind: Any, content: Content) -> bool:
        return keys.key(kind, content).hex() in stored

    loader = SampleLoader(open_dataset(recipe), loader_settings(recipe), 0, 1, Quarantine(tmp_path / "q.jsonl"))
    for step in range(12):
        for sample in loader.step(step).samples:
            tasks.add(sample.task)
            assert is_stored("latents", sample.target_frames)
            assert is_stored("semantic", encode.anchors_of(sample.target_frames))
            assert is_stored("text", sample.prompt) and is_stored("text", sample.prompt_prefix)
            if is_unperturbed(sample):
                assert is_stored("latents", sample.source_frames)
    assert tasks == {"none", "edit", "cube", "speed", "tube"}
    # Nothing else is there: no perturbed source, no prompt that cannot be.
    captions, instructions = (
        {row.text for row in open_dataset(recipe) if row.kind == kind} for kind in ("video", "image")
    )
    num_prefixes = 1 + 4  # of images; of the four motion tasks
    assert len(stored) == 8 + 2 * 8 + 16 + 4 * len(captions) + len(instructions) + num_prefixes


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_processes_share_the_blocks(world: Path, tmp_path: Path, world_size: int) -> None:
    recipe = make_recipe(world / "raw.jsonl")
    fill(recipe, tmp_path / "alone")
    reports = fill(recipe, tmp_path / "shared", range(world_size), world_size)
    assert sum(report.rows for report in reports) == 16
    assert [report.finished for report in reports].index(True) == min(world_size, 5) - 1
    assert shard_kinds(tmp_path / "shared") == [f"image-00000{n}" for n in range(2)] + [
        f"video-00000{n}" for n in range(3)
    ]
    assert_same_contents(tmp_path / "shared", tmp_path / "alone")
    assert len(FeatureCache(tmp_path / "shared", build_encoders(recipe, CPU).identity(), 16)) == sum(
        len(load_file(shard)) for shard in (tmp_path / "shared" / "shards").iterdir()
    )


def test_another_manifests_blocks_are_not_this_ones(world: Path, tmp_path: Path) -> None:
    fill(make_recipe(world / "raw.jsonl"), tmp_path)
    other = make_recipe(world / "pairs.jsonl")
    assert [report.finished for report in fill(other, tmp_path, range(2), 2)] == [False, True]


def test_another_number_of_processes_goes_on_where_killed_ones_ended(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(world / "raw.jsonl")
    fill(recipe, tmp_path / "alone")
    encode_row, rows = FeatureCacher._encode_row, []

    def until_killed(self: FeatureCacher, *arguments: Any) -> None:
        rows.append(arguments[0].index)
        if len(rows) == 5:
            raise KeyboardInterrupt
        encode_row(self, *arguments)

    monkeypatch.setattr(FeatureCacher, "_encode_row", until_killed)
    with pytest.raises(KeyboardInterrupt):
        fill(recipe, tmp_path / "killed", [0], 2)
    assert len(os.listdir(tmp_path / "killed/shards")) == 1 and not (tmp_path / "killed/index.safetensors").exists()
    rows.clear()
    monkeypatch.setattr(
        FeatureCacher, "_encode_row", lambda self, *given: (rows.append(given[0].index), encode_row(self, *given))
    )
    reports = fill(recipe, tmp_path / "killed", range(3), 3)
    assert sum(report.rows_done_before for report in reports) == 3 and len(rows) == len(set(rows)) == 13
    assert_same_contents(tmp_path / "killed", tmp_path / "alone")
    (again,) = fill(recipe, tmp_path / "killed")
    assert (again.encoded, again.rows_done_before, again.finished) == (0, 16, True)


def test_contents_that_are_there_are_not_encoded_again_wherever_they_lie(world: Path, tmp_path: Path) -> None:
    """The manifest moved, lost a row and got a new prompt: other blocks, of which one content is new."""
    fill(make_recipe(world / "raw.jsonl"), tmp_path / "cache")
    moved = Path(shutil.copytree(world, tmp_path / "moved")) / "raw.jsonl"
    lines = [json.loads(line) for line in moved.read_text().splitlines()][1:]
    next(line for line in lines if "video" in line)["caption"] = "Something else moves."
    moved.write_text("\n".join(map(json.dumps, lines)))
    (report,) = fill(make_recipe(moved), tmp_path / "cache")
    assert (report.rows, report.rows_done_before, report.encoded) == (15, 0, 4)  # a prompt for each motion task
    identity = build_encoders(make_recipe(moved), CPU).identity()
    assert FeatureCache(tmp_path / "cache", identity, 16).holds(Keys(identity).key("text", "Something else moves."))


def test_other_lengths_and_buckets_are_other_contents(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(world / "raw.jsonl")
    (first,) = fill(recipe, tmp_path)
    (shorter,) = fill(make_recipe(world / "raw.jsonl", changes={"data.max_frames": 1}), tmp_path)
    # The first frame of a clip is the anchor of the longer one, too.
    assert 0 < shorter.encoded < first.encoded and shorter.rows_done_before == 0
    (wider,) = fill(make_recipe(world / "raw.jsonl", changes={"data.buckets": [[48, 32]]}), tmp_path)
    assert wider.encoded == 8 + 16 + 16


def test_clips_that_cannot_be_decoded_are_left_out_and_named(world: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [{"video": str(tmp_path / "broken.mp4"), "caption": "x"}]
    rows += [{"video": str(world / "videos/video-000000-source.mp4"), "caption": "y"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (report,) = fill(make_recipe(tmp_path / "m.jsonl"), tmp_path / "cache")
    assert report.rows == 2 and report.finished and report.encoded == 1 + 1 + 2 * 4
    (line,) = report.skipped
    assert "broken.mp4" in line


def test_rows_that_could_not_be_read_are_tried_again(world: Path, tmp_path: Path) -> None:
    """Storage may have failed for a moment: not for good must training encode them itself."""
    manifest = tmp_path / "m.jsonl"
    clips = [tmp_path / f"{number}.mp4" for number in range(3)]
    manifest.write_text("".join(json.dumps({"video": str(clip), "caption": "x"}) + "\n" for clip in clips))

    def bring(number: int) -> None:
        shutil.copyfile(world / f"videos/video-{number:06d}-source.mp4", clips[number])

    recipe = make_recipe(manifest)
    bring(0)
    (first,) = fill(recipe, tmp_path / "cache")
    (second,) = fill(recipe, tmp_path / "cache")
    bring(1)
    (third,) = fill(recipe, tmp_path / "cache")
    bring(2)
    (fourth,) = fill(recipe, tmp_path / "cache")
    (fifth,) = fill(recipe, tmp_path / "cache")
    reports = (first, second, third, fourth, fifth)
    assert [len(report.skipped) for report in reports] == [2, 2, 1, 0, 0]
    assert [report.encoded for report in reports] == [2 + 8, 0, 2, 2, 0]
    assert [report.rows_done_before for report in reports] == [0, 0, 0, 0, 3]
    assert all(report.finished for report in reports)
    fill(recipe, tmp_path / "at_once")
    assert_same_contents(tmp_path / "cache", tmp_path / "at_once")
    assert_all_found(recipe, tmp_path / "cache")


def test_a_block_that_is_made_anew_is_indexed_anew(world: Path, tmp_path: Path) -> None:
    recipe = make_recipe(world / "raw.jsonl")
    fill(recipe, tmp_path)
    shard = next((tmp_path / "shards").glob("video-000001-*"))
    kept = load_file(shard)
    save_file(dict(list(kept.items())[:1]), shard, {"format": "pt"})
    (tmp_path / "index.safetensors").unlink()
    write_index(CacheFolder(tmp_path))
    shard.unlink()
    fill(recipe, tmp_path)
    assert_all_found(recipe, tmp_path)


def assert_all_found(recipe: Recipe, path: Path) -> None:
    encoders = build_encoders(recipe, CPU)
    cache = FeatureCache(path, encoders.identity(), encoders.text.max_tokens)
    assert contents(path) and all(cache.holds(bytes.fromhex(key)) for key in contents(path))
