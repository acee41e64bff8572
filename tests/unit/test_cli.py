"""The command line: its speed, its exit statuses, and `check`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

import sama_mega.commands
from sama_data.errors import DataError
from sama_mega.__main__ import main
from sama_mega.commands.check import examine
from sama_mega.commands.verify import Degrees
from sama_mega.config import load_recipe
from sama_mega.config.errors import CheckpointError

RECIPES = ["demo_stage0", "demo_stage1", "wan1_3b_stage0", "wan1_3b_stage1", "wan14b_stage0", "wan14b_stage1"]


def status_of(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def stand_in(monkeypatch: pytest.MonkeyPatch, command: str, outcome: int | BaseException) -> dict[str, object]:
    """Replaces a command's module; returns what its run gets, and under which name it was called."""
    received: dict[str, object] = {}

    def called(name: str) -> Callable[..., int]:
        def run(*positional: object, **named: object) -> int:
            received.update(named, positional=positional, function=name)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return run

    functions = {name: called(name) for name in ("run", "run_synth", "run_golden", "run_recipe", "list_plants")}
    module = SimpleNamespace(**functions, Degrees=Degrees)
    monkeypatch.setitem(sys.modules, f"sama_mega.commands.{command}", module)
    monkeypatch.setattr(sama_mega.commands, command, module, raising=False)
    return received


def test_help_is_quick_and_imports_nothing_heavy(repo_root: Path) -> None:
    code = (
        "import sys; from sama_mega.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'megatron', 'numpy', 'pyarrow', 'mlflow', 'av', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repo_root, capture_output=True, timeout=30)
    # Measured 0.06 s; the promise is one second, with room for a busy machine.
    assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["train"],
        ["check"],
        ["health"],
        ["verify"],
        ["edit"],
        ["evaluate"],
        ["submit"],
        ["data"],
        ["data", "synth"],
        ["data", "probe"],
        ["data", "filter"],
        ["data", "score"],
        ["data", "stats"],
        ["data", "preview"],
    ],
)
def test_every_command_has_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments, "--help") == 0
    assert "Usage: sama-mega" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["tran"],
        ["train"],
        ["train", "x.yaml", "--no-such-option"],
        ["check", "x.yaml", "--gpus", "none"],
        ["check", "x.yaml", "--gpus", "0"],
        ["check", "x.yaml", "--gpus-per-node", "0"],
        ["verify", "--golden", "folder", "--tp", "0"],
        ["verify", "--golden", "folder", "--kernels", "cuda"],
        ["edit", "checkpoint", "clip.mp4", "make it red"],
        ["evaluate"],
        ["evaluate", "checkpoint", "synthetic", "more"],
        ["submit"],
        ["submit", "x.yaml", "--nodes", "0"],
        ["submit", "x.yaml", "--gpus-per-node", "-1"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("error", [CheckpointError("step-1: damaged"), DataError("clip.mp4:\n no video")])
def test_user_errors_are_one_line_and_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "train", error)
    assert status_of("train", "x.yaml") == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {' '.join(str(error).split())}\n"
    assert captured.out == ""


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "train", ZeroDivisionError("our fault"))
    with pytest.raises(ZeroDivisionError):
        main(["train", "x.yaml"])


def test_unexpected_errors_exit_1(tmp_path: Path, repo_root: Path) -> None:
    code = (
        "import sys, types, sama_mega.commands as commands; from sama_mega.__main__ import main\n"
        "commands.train = types.SimpleNamespace(run=lambda *a, **k: 1 / 0)\n"
        "sys.modules['sama_mega.commands.train'] = commands.train\n"
        "main(['train', 'x.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "train", KeyboardInterrupt())
    assert status_of("train", "x.yaml") == 130


@pytest.mark.parametrize("status", [0, 1])
def test_a_command_decides_its_status(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    received = stand_in(monkeypatch, "verify", status)
    assert status_of("verify", "--golden", "folder", "--tp", "2", "--json") == status
    assert received["function"] == "run_golden"
    assert received["positional"] == (Path("folder"), Degrees(tensor=2), None, True)


def test_verify_takes_a_recipe_or_a_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    received = stand_in(monkeypatch, "verify", 0)
    degrees = ["--tp", "2", "--cp", "3", "--pp", "4", "--dp", "5"]
    options = [*degrees, "--layers", "6", "--kernels", "triton", "--plant", "stale_kv_shard", "--json"]
    assert status_of("verify", "x.yaml", "a.b=1", "c.d=2", *options) == 0
    assert received["function"] == "run_recipe"
    layout = Degrees(tensor=2, context=3, pipeline=4, data=5)
    assert received["positional"] == (Path("x.yaml"), ["a.b=1", "c.d=2"], layout, 6, "triton", "stale_kv_shard", True)
    assert status_of("verify", "x.yaml") == 0
    assert received["positional"] == (Path("x.yaml"), [], Degrees(), None, None, None, False)
    assert status_of("verify", "--list-plants") == 0
    assert (received["function"], received["positional"]) == ("list_plants", (False,))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a RECIPE or --golden DIR"),
        (["x.yaml", "--golden", "folder"], "--golden takes no RECIPE and no overrides (x.yaml)"),
        (["--golden", "folder", "--plant", "stale_kv_shard"], "--plant and --layers need a RECIPE"),
        (["--golden", "folder", "--layers", "2"], "--plant and --layers need a RECIPE"),
    ],
)
def test_verify_refuses_what_does_not_go_together(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received = stand_in(monkeypatch, "verify", 0)
    assert status_of("verify", *arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, received) == ("", {})
    assert captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("degrees", "options", "given"),
    [
        (Degrees(), [], {}),
        (Degrees(2, 1, None, 4), ["--tp", "2", "--cp", "1", "--dp", "4"], {"tensor": 2, "context": 1, "data": 4}),
        (Degrees(pipeline=3), ["--pp", "3"], {"pipeline": 3}),
    ],
)
def test_degrees_say_what_was_asked_for(degrees: Degrees, options: list[str], given: dict[str, int]) -> None:
    assert (degrees.as_options(), degrees.given()) == (options, given)


def test_arguments_reach_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    received = stand_in(monkeypatch, "train", 0)
    assert status_of("train", "x.yaml", "a.b=-1", "c.d=[1, 2]") == 0
    assert received["positional"] == ("x.yaml", ["a.b=-1", "c.d=[1, 2]"])
    received = stand_in(monkeypatch, "edit", 0)
    assert status_of("edit", "run", "clip.mp4", "make it red", "--out", "o.mp4", "--weights", "model") == 0
    assert (received["steps"], received["guidance"], received["seed"]) == (None, None, 1)
    assert (received["weights"], received["max_frames"], received["out"]) == ("model", 81, Path("o.mp4"))
    assert (received["tensor"], received["context"], received["tiling"]) == (None, 1, "auto")
    options = ("--tp", "1", "--cp", "2", "--vae-tiling", "on", "--source-guidance", "1.5")
    assert status_of("edit", "run", "clip.mp4", "make it red", "--out", "o.mp4", *options) == 0
    assert (received["tensor"], received["context"], received["tiling"]) == (1, 2, "on")
    assert received["source_guidance"] == 1.5
    received = stand_in(monkeypatch, "evaluate", 0)
    assert status_of("evaluate", "run") == 0
    assert (received["checkpoint"], received["suite"]) == (Path("run"), "synthetic")
    assert status_of("evaluate", "run", "other") == 2
    for judging in (("--endpoint", "http://judge/v1"), ("--turns", "3"), ("--dry-run",), ("--judge-model", "one")):
        assert status_of("evaluate", "run", "synthetic", *judging) == 2
    received = stand_in(monkeypatch, "data", 0)
    assert status_of("data", "synth", "--out", "w", "--videos", "3", "--kind", "recolour", "--kind", "add") == 0
    assert (received["num_videos"], received["kinds"]) == (3, ["recolour", "add"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_checks(name: str, repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = 1 if name.startswith("demo") else 64
    assert status_of("check", str(repo_root / f"recipes/{name}.yaml"), "--gpus", str(gpus), "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["ok"] is True
    assert report["layout"]["world_size"] == gpus
    assert len(report["buckets"]) == len(load_recipe(repo_root / f"recipes/{name}.yaml").data.buckets)


def test_check_counts_tokens_as_published(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("check", str(repo_root / "recipes/wan14b_stage0.yaml"), "--json") == 0
    buckets = json.loads(capsys.readouterr().out.splitlines()[-1])["buckets"]
    wide = next(bucket for bucket in buckets if (bucket["width"], bucket["height"]) == (832, 480))
    assert (wide["video_tokens"], wide["video_sequence"], wide["image_sequence"]) == (32_760, 65_585, 3_185)


def test_check_warns_of_weights_that_are_not_there(
    tmp_path: Path, repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"encoders.video_path={tmp_path}"
    assert status_of("check", str(repo_root / "recipes/wan14b_stage0.yaml"), folder, "encoders.text_path=null") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning    encoders.")]
    assert warnings == [
        "warning    encoders.text_path is null: encoders.text (umt5) needs the folder of its weights;"
        " train will stop here",
        "warning    encoders.semantic_path (weights/siglip-so400m-patch14-384): no such folder; train will stop here",
    ]
    assert status_of("check", str(repo_root / "recipes/demo_stage0.yaml")) == 0
    assert "encoders." not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.dimm=3"], ["model.dimm", "nearest is model.dim"]),
        (["parallel.tensor=3"], ["parallel.tensor (3)", "model.num_heads (4)"]),
        (["parallel.tensor=2", "--gpus", "3"], ["3"]),
        (["parallel.data=4", "--gpus", "2"], ["parallel.data (4)"]),
    ],
)
def test_check_refuses(
    arguments: list[str], words: list[str], repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("check", str(repo_root / "recipes/demo_stage0.yaml"), *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err


def test_check_looks_into_manifests(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(repo_root / "recipes/demo_stage0.yaml")
    assert status_of("check", recipe, "data.manifest=none.jsonl") == 0
    assert "none.jsonl: no such manifest" in capsys.readouterr().out
    assert status_of("check", recipe, "train.sample_clips=few.jsonl") == 0
    assert "train.sample_clips (few.jsonl): no such manifest; train will stop here" in capsys.readouterr().out
    (tmp_path / "few.jsonl").write_text("no row\n")
    assert status_of("check", recipe, "train.sample_clips=few.jsonl") == 2
    assert "few.jsonl" in capsys.readouterr().err
    (tmp_path / "raw.jsonl").write_text('{"video": "a.mp4", "caption": "a"}\n{"video": "b.mp4", "caption": "b"}\n')
    assert status_of("check", recipe, "data.manifest=raw.jsonl", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["samples"] == {"image": 0, "video": 2}
    assert any("no image samples" in warning for warning in report["warnings"])
    (tmp_path / "raw.jsonl").write_text("")
    assert status_of("check", recipe, "data.manifest=raw.jsonl") == 2
    assert "raw.jsonl" in capsys.readouterr().err


ROWS = {
    "raw": '{"video": "a.mp4", "caption": "a"}',
    "pair": '{"source": "a.mp4", "target": "b.mp4", "instruction": "c"}',
}


@pytest.mark.parametrize(
    ("row", "overrides", "words"),
    [
        ("raw", [], "1 rows have no source, and stage 1 trains on edits only"),
        (
            "pair",
            ["data.images_per_step=8", "data.videos_per_step=1", "parallel.overlap_grad_reduce=true"],
            "a step has 1 samples for 2 data ranks: with parallel.overlap_grad_reduce or overlap_param_gather every "
            "rank needs one: raise data.images_per_step or data.videos_per_step",
        ),
        ("pair", ["data.images_per_step=8", "data.videos_per_step=0"], "no samples for data.images_per_step (8)"),
        ("pair", ["data.images_per_step=8", "data.videos_per_step=2", "parallel.overlap_grad_reduce=true"], None),
    ],
)
def test_check_says_where_training_stops_for_want_of_samples(
    row: str, overrides: list[str], words: str | None, tmp_path: Path, repo_root: Path
) -> None:
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text(f"{ROWS[row]}\n")
    recipe = load_recipe(repo_root / "recipes/demo_stage1.yaml", [f"data.manifest={manifest}", *overrides])
    findings = examine(recipe, num_ranks=2, gpus_per_node=8).findings
    stops = [finding.text for finding in findings if finding.stops_training and finding.key.startswith("data.")]
    assert stops == ([] if words is None else [f"{words}; train will stop here"])


def test_check_warns_of_what_is_probably_not_meant(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(repo_root / "recipes/demo_stage1.yaml")
    assert status_of("check", recipe, "checkpoint.init_from=null", "train.steps=50", "--gpus", "32") == 0
    printed = capsys.readouterr().out
    for words in ("starts from random weights", "never ends", "leave 16 of 32 data ranks idle"):
        assert words in printed


TENSOR_SPANS = "parallel.tensor ({}) must divide the GPUs of a node (--gpus-per-node {}) or the sums of every matrix"
HEADS_SPAN = "parallel.tensor x ulysses ({}) should divide the GPUs of a node (--gpus-per-node {})"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        # 40 heads and a feed-forward of 13,824: a tensor degree divides both.
        ("parallel.tensor=8 --gpus 64", None),
        (
            "parallel.tensor=8 --gpus 64 --gpus-per-node 4",
            [TENSOR_SPANS.format(8, 4), "cross the network: use 1, 2, 4"],
        ),
        ("parallel.tensor=4 --gpus 24 --gpus-per-node 6", [TENSOR_SPANS.format(4, 6), "cross the network: use 1, 2"]),
        ("parallel.tensor=4 --gpus 4 --gpus-per-node 6", None),
        ("parallel.tensor=4 parallel.context=2 --gpus 16", None),
        (
            "parallel.tensor=4 parallel.context=10 --gpus 80",
            [HEADS_SPAN.format("4 x 10 = 40", 8), "it works, but", "parallel.ulysses=2 keeps heads inside"],
        ),
        ("parallel.tensor=4 parallel.context=10 parallel.ulysses=2 --gpus 80", None),
        (
            "parallel.tensor=8 parallel.context=5 --gpus 40",
            [HEADS_SPAN.format("8 x 5 = 40", 8), "parallel.ulysses=1 keeps heads inside"],
        ),
        ("parallel.tensor=8 parallel.context=5 --gpus 40 --gpus-per-node 4", [TENSOR_SPANS.format(8, 4)]),
        ("parallel.tensor=2 parallel.context=2 --gpus 12 --gpus-per-node 6", [HEADS_SPAN.format("2 x 2 = 4", 6)]),
    ],
)
def test_check_warns_of_groups_that_span_nodes(
    arguments: str, words: list[str] | None, repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(repo_root / "recipes/wan14b_stage1.yaml")
    assert status_of("check", recipe, *arguments.split(), "--json") == 0
    *lines, report = capsys.readouterr().out.splitlines()
    about_nodes = [warning for warning in json.loads(report)["warnings"] if "of a node" in warning]
    assert len(about_nodes) == (words is not None)
    for warning in about_nodes:
        assert f"warning    {warning}" in lines
        assert all(word in warning for word in words or [])


def test_check_shows_how_context_and_stages_are_split(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    degrees = ("parallel.tensor=2", "parallel.context=4", "parallel.pipeline=3", "parallel.ulysses=2")
    assert status_of("check", str(repo_root / "recipes/wan14b_stage1.yaml"), *degrees) == 0
    printed = capsys.readouterr().out
    assert "context 4 (exchanging heads over 2, gathering keys and values over 2)" in printed
    assert "pipeline 3 (layers 14+13+13)" in printed


def test_check_needs_no_torch(repo_root: Path) -> None:
    code = (
        "import sys; from sama_mega.commands import check; check.run(sys.argv[1], []); sys.exit('torch' in sys.modules)"
    )
    path = str(repo_root / "recipes/demo_stage0.yaml")
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=repo_root, capture_output=True, timeout=60)
