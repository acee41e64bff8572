"""The authors' tensors, through `verify`: the model that `train` builds computes what the released code computes.

One rank in this process; two tensor-parallel ranks through the command line. And `verify` notices what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sama_mega.model
import sama_mega.train.run
import sama_mega.train.state
import sama_mega.verify.golden
from sama_mega.__main__ import main
from sama_mega.commands.verify import KERNELS
from sama_mega.parallel.runtime import start_parallel, stop_parallel
from sama_mega.parameters.names import released_names
from sama_mega.verify.golden import check_model, check_schedule, golden_recipe, read_golden
from sama_mega.verify.report import Report

FOLDERS = ("edit_tiny", "anchor4_tiny", "text_to_video_tiny")
OUTPUT_LIMIT, GRADIENT_LIMIT, SAMPLING_LIMIT = 1e-5, 1e-4, 1e-4
TIMEOUT_SECONDS = 120.0


@pytest.fixture(scope="module")
def golden_root(repo_root: Path) -> Path:
    return repo_root / "tests" / "golden"


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    yield
    stop_parallel()


def verify_here(folder: Path, kernels: str = "auto") -> Report:
    """One rank, in this process."""
    golden = read_golden(folder)
    recipe = golden_recipe(golden, {}, KERNELS[kernels])
    return Report(tuple(check_model(golden, recipe, start_parallel(recipe, environ={}))))


def expected_limits(folder: Path) -> dict[str, float]:
    """What must have been compared, and how tightly; written from the golden README, not from the code."""
    names = ["noisy_latents", "velocity_target", "velocity", "flow_matching_loss", "total_loss"]
    if folder.name != "text_to_video_tiny":
        names += ["noisy_semantic_features", "semantic_velocity_target", "semantic_velocity", "semantic_loss"]
    limits = dict.fromkeys(names, OUTPUT_LIMIT)
    if (folder / "grads.safetensors").is_file():
        limits |= {f"grad {name}": GRADIENT_LIMIT for name in load_file(folder / "weights.safetensors")}
    if (folder / "sampling.safetensors").is_file():
        limits |= {"sampling sigmas": 0.0, "sampling timesteps": 0.0}
        limits |= {"final_latents": SAMPLING_LIMIT, "final_semantic": SAMPLING_LIMIT}
    return limits


def assert_complete(report: dict[str, Any], folder: Path) -> None:
    limits = {check["tensor"]: check["limit"] for check in report["checks"]}
    assert limits == expected_limits(folder)
    assert len(report["checks"]) == len(limits)
    assert report["ok"], report["worst"]
    assert all(check["error"] <= check["limit"] for check in report["checks"])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_one_rank(name: str, kernels: str, golden_root: Path) -> None:
    assert_complete(verify_here(golden_root / name, kernels).to_json(), golden_root / name)


def test_schedule(golden_root: Path) -> None:
    checks = check_schedule(read_golden(golden_root / "schedule"))
    limits = {check.tensor: check.limit for check in checks}
    golden = load_file(golden_root / "schedule" / "flow_matching.safetensors")
    assert limits == {name: 1e-6 if name == "train_weights" else 0.0 for name in golden}
    assert Report(tuple(checks)).ok


@pytest.mark.parametrize("name", FOLDERS)
def test_two_ranks_with_sequence_parallel(name: str, golden_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sama_mega", "verify", "--golden", str(golden_root / name), "--tp", "2", "--json"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert_complete(report, golden_root / name)
    # Sums over two ranks round otherwise than one rank's: errors that are all alike would mean one rank ran.
    ours = {check["tensor"]: check["error"] for check in report["checks"]}
    alone = {check.tensor: check.error for check in verify_here(golden_root / name).checks}
    assert ours["velocity"] != alone["velocity"]


def test_the_copies_are_the_originals(golden_root: Path, shared_root: Path) -> None:
    originals = {path.relative_to(shared_root / "golden"): path for path in (shared_root / "golden").rglob("*.*")}
    assert originals
    for relative, path in originals.items():
        assert (golden_root / relative).read_bytes() == path.read_bytes(), relative


def test_verify_checks_the_model_that_train_builds(golden_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: text-to-video leaves exactly the semantic parts without gradient, as the authors' code does."""
    build_model = sama_mega.model.build_model
    assert sama_mega.verify.golden.build_train_state is sama_mega.train.run.build_train_state
    built = []

    def spy(*arguments: Any, **options: Any) -> Any:
        built.extend(build_model(*arguments, **options))
        return built

    monkeypatch.setattr(sama_mega.train.state, "build_model", spy)
    assert verify_here(golden_root / "text_to_video_tiny").ok
    assert len(built) == 1
    # The one that was built is the one that was run and differentiated.
    gradients = {name: parameter.main_grad for name, parameter in built[0].named_parameters()}
    without = {
        released for name, gradient in gradients.items() if not gradient.any() for released in released_names(name)
    }
    assert without == set(read_golden(golden_root / "text_to_video_tiny").config["no_grad"])


# --- it notices what is wrong --------------------------------------------------------------------------


Change = Callable[[dict[str, Tensor]], None]


def changed_copy(golden: Path, tmp_path: Path, file: str, change: Change) -> Path:
    folder = tmp_path / golden.name
    shutil.copytree(golden, folder)
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    return folder


def run_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `sama-mega verify --golden folder --json`, in this process."""
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--golden", str(folder), "--json"])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def failed_tensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Tensors that the JSON of a run with exit status 1 says are wrong; the table must name them too."""
    status, printed, _ = run_command(folder, capsys)
    assert status == 1
    report = json.loads(printed.splitlines()[-1])
    assert report["ok"] is False
    wrong = {check["tensor"] for check in report["checks"] if check["error"] is None or check["error"] > check["limit"]}
    assert report["worst"]["tensor"] in wrong
    assert "WRONG" in printed
    return wrong


def scale_one(name: str, factor: float) -> Change:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensors[name] * factor

    return change


@pytest.mark.parametrize(
    ("file", "tensor", "wrong"),
    [
        ("grads.safetensors", "blocks.1.cross_attn.k.bias", {"grad blocks.1.cross_attn.k.bias"}),
        ("io.safetensors", "semantic_velocity", {"semantic_velocity"}),
        ("io.safetensors", "total_loss", {"total_loss"}),
        ("sampling.safetensors", "final_semantic", {"final_semantic"}),
    ],
)
def test_a_wrong_golden_tensor_is_the_one_named(
    file: str, tensor: str, wrong: set[str], golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed_copy(golden_root / "edit_tiny", tmp_path, file, scale_one(tensor, 1.001))
    assert failed_tensors(folder, capsys) == wrong


@pytest.mark.parametrize(
    "weight",
    ["blocks.0.self_attn.norm_k.weight", "segment_embedding.weight", "blocks.0.modulation", "time_projection.1.weight"],
)
def test_a_wrong_weight_breaks_outputs(
    weight: str, golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed_copy(golden_root / "anchor4_tiny", tmp_path, "weights.safetensors", scale_one(weight, 1.03))
    assert {"velocity", "semantic_velocity", "total_loss"} <= failed_tensors(folder, capsys)


def test_not_a_number_is_wrong(golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed_copy(
        golden_root / "text_to_video_tiny", tmp_path, "weights.safetensors", scale_one("head.head.bias", float("nan"))
    )
    assert "velocity" in failed_tensors(folder, capsys)


def test_a_wrong_schedule_is_named(golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = changed_copy(
        golden_root / "schedule", tmp_path, "flow_matching.safetensors", scale_one("sample_sigmas_50", 1 + 2.0**-20)
    )
    assert failed_tensors(folder, capsys) == {"sample_sigmas_50"}


def test_swapped_source_and_target_types_are_found(
    golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(tensors: dict[str, Tensor]) -> None:
        tensors["segment_embedding.weight"] = tensors["segment_embedding.weight"].flip(0).contiguous()

    folder = changed_copy(golden_root / "anchor4_tiny", tmp_path, "weights.safetensors", swap)
    assert "velocity" in failed_tensors(folder, capsys)


def assert_user_error(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    status, printed, error = run_command(folder, capsys)
    assert status == 2
    assert printed == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_a_missing_folder_or_file_is_the_users_error(
    golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_user_error(tmp_path / "nowhere", capsys, "nowhere")
    shutil.copytree(golden_root / "anchor4_tiny", tmp_path / "partial")
    (tmp_path / "partial" / "weights.safetensors").unlink()
    assert_user_error(tmp_path / "partial", capsys, "partial", "weights.safetensors is missing")


def test_weights_that_do_not_fit_are_the_users_error(
    golden_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["head.tail"] = tensors.pop("head.modulation")

    folder = changed_copy(golden_root / "anchor4_tiny", tmp_path / "renamed", "weights.safetensors", rename)
    assert_user_error(folder, capsys, "missing ['head.modulation']", "unused ['head.tail']")

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["head.modulation"] = torch.zeros(1, 2, 60)

    folder = changed_copy(golden_root / "anchor4_tiny", tmp_path / "cut", "weights.safetensors", cut)
    assert_user_error(folder, capsys, "head.modulation", "(1, 2, 60)")
