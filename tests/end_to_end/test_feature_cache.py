"""`data cache` and training from it, through the command line: the same losses bit for bit, or a refusal."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from sama_mega.parallel.launch import end_ranks, start_ranks, wait_for_ranks
from tests.support.pretrained_folders import change_weights, pretrained_encoders, pretrained_weights
from tests.support.tiny_recipe import (
    assert_bitwise_equal,
    call_main,
    read_rows,
    recipe_path,
    repeatable,
    tiny_overrides,
    tiny_world,
)

STEPS = 4
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """A stage and its encoders, trained without a cache."""

    stage: int
    changes: dict[str, Any]
    world: Path
    root: Path

    @property
    def manifest(self) -> Path:
        return self.world / ("pairs.jsonl" if self.stage else "raw.jsonl")

    def overrides(self, run: str, **changes: Any) -> list[str]:
        values = self.changes | {key.replace("__", "."): value for key, value in changes.items()}
        steps = values.pop("train.steps", STEPS)
        return [str(recipe_path(self.stage)), *tiny_overrides(self.root / run, self.manifest, steps, values)]

    def train(self, run: str, **changes: Any) -> dict[str, Any]:
        return printed_json("train", *self.overrides(run, **changes))

    def cache(self, name: str, **changes: Any) -> dict[str, Any]:
        return printed_json("data", "cache", *self.overrides("unused", **changes), "--out", self.root / name)

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [repeatable(row) for row in read_rows(self.root / run)]


def printed_json(*arguments: object) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()) as printed:
        assert call_main(*arguments, "--json") == 0
    return dict(json.loads(printed.getvalue().splitlines()[-1]))


@pytest.fixture(scope="module", params=["stage 0", "stage 1", "stage 0 float32", "stage 1 bfloat16"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    _, stage, *precision = request.param.split()
    changes: dict[str, Any] = {}
    if precision:
        changes = pretrained_encoders(pretrained_weights(tmp_path_factory)) | {"train.precision": precision[0]}
    case = Case(int(stage), changes, tiny_world(tmp_path_factory), tmp_path_factory.mktemp("cached"))
    case.train("plain")
    case.cache("cache")
    return case


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Stage 0 with the embedded encoders, and its cache."""
    case = Case(0, {}, tiny_world(tmp_path_factory), tmp_path_factory.mktemp("embedded"))
    case.train("plain")
    case.cache("cache")
    return case


def test_losses_are_the_same_bit_for_bit(case: Case) -> None:
    summary = case.train("cached", data__cache=str(case.root / "cache"))
    assert len(case.rows("plain")) == STEPS and case.rows("cached") == case.rows("plain")
    # Two images and two videos a step; of a raw video the source is encoded where it is perturbed.
    least = 4 * 3 + (4 if case.stage else 2)
    assert summary["num_cache_hits"] >= STEPS * least and summary["num_cache_misses"] == 0
    log = (case.root / "cached/log.txt").read_text()
    assert f"{summary['num_cache_hits']} of {summary['num_cache_hits']} features came from" in log


def test_what_the_cache_holds_is_what_is_trained_on(embedded: Case) -> None:
    """Else the test above would prove nothing."""
    embedded.cache("tampered")
    for shard in (embedded.root / "tampered/shards").glob("video-*"):
        change_weights(shard, brighten_latents)
    embedded.train("from_tampered", data__cache=str(embedded.root / "tampered"))
    ours, plain = embedded.rows("from_tampered"), embedded.rows("plain")
    assert ours[0]["sample_digest"] == plain[0]["sample_digest"]
    assert abs(ours[0]["flow_matching_loss"] - plain[0]["flow_matching_loss"]) > 1e-3


def brighten_latents(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        if tensor.dim() == 4:
            tensor[0] += 1


def test_a_cache_of_a_part_gives_the_same_losses_and_says_once_what_it_lacks(embedded: Case) -> None:
    rows = embedded.manifest.read_text().splitlines()
    part = embedded.world / "part.jsonl"
    part.write_text("\n".join([*rows[:3], *rows[-3:]]))
    embedded.cache("part", data__manifest=str(part))
    summary = embedded.train("from_part", data__cache=str(embedded.root / "part"))
    assert embedded.rows("from_part") == embedded.rows("plain")
    hits, misses = summary["num_cache_hits"], summary["num_cache_misses"]
    assert hits > 0 and misses > 0
    log = (embedded.root / "from_part/log.txt").read_text()
    assert log.count("lacks some features") == 1 and f"{hits} of {hits + misses} features came from" in log


def test_a_run_may_get_its_cache_between_two_lives(embedded: Case) -> None:
    embedded.train("resumed", train__steps=2, checkpoint__every=2, optimizer__decay_share=0.0)
    embedded.train("resumed", checkpoint__every=2, data__cache=str(embedded.root / "cache"))
    assert embedded.rows("resumed") == embedded.rows("plain")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__text_length": 9}, "encoders.text is of tokens 16 there and 9 here"),
        ({"anchor__local_grid": 3}, "encoders.semantic is of grid 2 there and 3 here"),
        ({"train__float32_matmul_precision": "medium"}, "matrices highest there and float32, matrices medium here"),
    ],
)
def test_a_cache_of_other_encoders_is_refused(
    embedded: Case, changes: Mapping[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    cache = embedded.root / "cache"
    try:
        assert call_main("train", *embedded.overrides("refused", data__cache=str(cache), **changes)) == 2
        *_, line = capfd.readouterr().err.splitlines()
        assert line.startswith(f"error: data.cache ({cache}) was made by other encoders: ") and words in line
        assert call_main("data", "cache", *embedded.overrides("refused", **changes), "--out", cache) == 2
        assert words in capfd.readouterr().err
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not (embedded.root / "refused").exists()


def test_a_cache_that_is_not_there_is_refused(embedded: Case, capfd: pytest.CaptureFixture[str]) -> None:
    missing = embedded.overrides("refused", data__cache=str(embedded.root / "nowhere"))
    assert call_main("train", *missing) == 2
    assert "nowhere) is no cache: make it with `sama-mega data cache`" in capfd.readouterr().err
    assert call_main("check", *missing) == 0
    assert "nowhere): no such cache; train will stop here" in capfd.readouterr().out


def test_nothing_that_can_be_decoded_is_wrong_input(
    embedded: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "m.jsonl").write_text(json.dumps({"video": "broken.mp4", "caption": "x"}))
    overrides = embedded.overrides("refused", data__manifest=str(tmp_path / "m.jsonl"))
    assert call_main("data", "cache", *overrides, "--out", tmp_path / "cache") == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith("error: none of 1 rows can be decoded") and "broken.mp4" in line


@pytest.mark.distributed
def test_two_processes_fill_one_cache_at_once(embedded: Case, tmp_path: Path) -> None:
    """Images are one block and videos another; the last process of them writes the index."""
    command = [sys.executable, "-m", "sama_mega", "data", "cache", *embedded.overrides("unused"), "--out"]
    logs = [tmp_path / "0", tmp_path / "1"]
    ranks = start_ranks(2, [*command, str(embedded.root / "both"), "--json"], tmp_path, logs)
    try:
        assert wait_for_ranks(ranks, 1.0, TIMEOUT_SECONDS) is None, [log.read_text() for log in logs]
    finally:
        end_ranks(ranks)
    report = json.loads(logs[0].read_text().splitlines()[-1])
    assert (report["rows"], report["skipped"]) == (8, 0)
    assert "rows" not in logs[1].read_text()  # one of them tells
    assert os.listdir(embedded.root / "both/partial") == []
    assert_bitwise_equal(stored(embedded.root / "both"), stored(embedded.root / "cache"))
    again = embedded.cache("both")
    assert (again["rows_done_before"], again["encoded"], again["finished"]) == (16, 0, True)


def stored(cache: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {key: tensor for shard in (cache / "shards").iterdir() for key, tensor in load_file(shard).items()}
