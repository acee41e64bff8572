"""`verify` as a user starts it: its exit statuses, its JSON, and what it says when it cannot begin."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.tiny_recipe import REPOSITORY, recipe_path, run_command

TIMEOUT_SECONDS = 120.0
SIZES = (
    *("model.dim=64", "model.num_layers=2", "model.ffn_dim=96", "model.text_dim=16", "model.text_length=8"),
    *("model.time_features=16", "model.semantic_hidden_dim=20"),
)
NUM_PARAMETERS = 26 + 2 * 21
NUM_LOSSES = 2 * 6
GOLDEN = REPOSITORY / "tests/golden/edit_tiny"


def verify(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_command("verify", *arguments, timeout_seconds=TIMEOUT_SECONDS)


def verify_recipe(*arguments: object) -> subprocess.CompletedProcess[str]:
    return verify(recipe_path(0), *SIZES, *arguments)


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The last line of stdout."""
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def the_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Of a command that refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_right_layout_exits_0_and_says_so() -> None:
    done = verify_recipe("--tp", 2, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(done)
    assert report.keys() == {"ok", "worst", "checks"}
    assert report["ok"] is True
    checks = report["checks"]
    assert all(check.keys() == {"tensor", "error", "limit"} for check in checks)
    assert report["worst"] == checks[0]
    badness = [check["error"] / check["limit"] for check in checks]
    assert badness == sorted(badness, reverse=True) and badness[0] <= 1
    # Two ranks round otherwise than one: errors of nothing but zeros would mean that it was compared with itself.
    assert badness[0] > 0
    names = [check["tensor"] for check in checks]
    assert len(names) == len(set(names)) == NUM_LOSSES + 2 * NUM_PARAMETERS
    assert {name.split()[0] for name in names if name.startswith(("grad ", "update "))} == {"grad", "update"}
    words = " ".join(done.stdout.split())
    assert "2 ranks: tensor 2 + sequence, " in words and f"{len(names)} compared, 0 wrong" in words


def test_a_planted_bug_exits_1_and_breaks_what_is_written() -> None:
    done = verify_recipe("--tp", 2, "--plant", "rank_local_qk_norm", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    report = report_of(done)
    assert report.keys() == {"ok", "worst", "checks", "not_as_written"}
    assert (report["ok"], report["not_as_written"]) == (False, [])
    assert report["worst"]["error"] > report["worst"]["limit"]
    words = " ".join(done.stdout.split())
    assert "planted: rank_local_qk_norm; 2 ranks" in words and "exactly the tensors it should break" in words
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tp", 2, "--plant", "mean_of_means_loss"), "--plant (mean_of_means_loss) needs parallel.data above 1"),
        (("--plant", "stale_kv_shard", "lora.rank=2"), "--plant (stale_kv_shard) needs lora.rank=0, and it is 2"),
        (("--plant", "no_such_bug"), "--plant (no_such_bug) must be one of rank_local_qk_norm, "),
        (("--tp", 3), "parallel.tensor (3) must divide model.num_heads (4): use 2 or 4"),
        (("--pp", 3), "parallel.pipeline x interleave (3 x 1 = 3) must be at most model.num_layers (2)"),
        (("--golden", GOLDEN), "--golden takes no RECIPE and no overrides"),
        (("model.dimm=3", "--tp", 2), "nearest is model.dim"),
    ],
)
def test_what_cannot_be_verified_is_one_line_and_2(arguments: tuple[object, ...], words: str) -> None:
    assert words in the_one_line(verify_recipe(*arguments))


def test_an_impossible_layout_is_refused_before_any_rank_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sama_mega.commands import verify as command
    from sama_mega.config.errors import ConfigError

    started: list[int] = []
    monkeypatch.setattr(command, "launch_ranks", lambda num_ranks, argv: started.append(num_ranks) or 0)
    with pytest.raises(ConfigError, match=r"parallel\.tensor \(3\)"):
        command.run_recipe(recipe_path(0), SIZES, command.Degrees(tensor=3))
    assert not started
    assert command.run_recipe(recipe_path(0), SIZES, command.Degrees(tensor=2, pipeline=2)) == 0
    assert started == [4]


def test_ranks_get_the_command_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from sama_mega.commands import verify as command

    received: list[str] = []
    monkeypatch.setattr(command, "launch_ranks", lambda num_ranks, argv: received.extend(argv) or 0)
    degrees = command.Degrees(tensor=2, context=2, pipeline=1, data=1)
    command.run_recipe(recipe_path(0), SIZES, degrees, 1, "reference", "stale_kv_shard", as_json=True)
    ours = ["--tp", "2", "--cp", "2", "--pp", "1", "--dp", "1"]
    options = [*ours, "--layers", "1", "--kernels", "reference", "--plant", "stale_kv_shard", "--json"]
    assert received == ["verify", str(recipe_path(0)), *SIZES, *options]
    received.clear()
    command.run_golden(GOLDEN, degrees, "reference", as_json=True)
    assert received == ["verify", "--golden", str(GOLDEN), *ours, "--kernels", "reference", "--json"]


def test_the_list_of_plants_is_json() -> None:
    done = verify("--list-plants", "--json")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    plants = json.loads(last)["plants"]
    assert len(lines) == len(plants) == 10
    for line, plant in zip(lines, plants, strict=True):
        assert plant.keys() == {"name", "summary", "needs", "breaks", "spares"}
        assert line == f"{plant['name']}: {plant['summary']}; needs {plant['needs']}"
        assert plant["breaks"] and isinstance(plant["spares"], list)


@pytest.mark.parametrize(
    ("degrees", "layout"),
    [
        ("--tp 2 --cp 2", "tensor 2 + sequence, context 2 (exchanging heads over 1, gathering keys and values over 2)"),
        ("--pp 2 --tp 2", "tensor 2 + sequence, context 1, pipeline 2 (layers 1+1), data 1"),
        ("--dp 2 --cp 2", "context 2 (exchanging heads over 2, gathering keys and values over 1), pipeline 1, data 2"),
    ],
)
def test_four_ranks_compute_the_authors_tensors(degrees: str, layout: str) -> None:
    done = verify("--golden", GOLDEN, *degrees.split(), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = report_of(done)
    assert report["ok"] is True
    assert "4 ranks: " in done.stdout and layout in " ".join(done.stdout.split())
    names = {check["tensor"] for check in report["checks"]}
    assert {"velocity", "semantic_velocity", "total_loss", "final_latents", "grad head.head.weight"} <= names
