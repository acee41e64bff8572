"""Steps that are not finite, in several layouts: what the report names, and whether `--replay` sees the same.

Two ranks are started once and go through all cases; each case plants its fault in the running code.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.distributed import run_distributed
from tests.support.mixed_world import meeting_points
from tests.support.tiny_recipe import call_main, read_rows, tiny_recipe, tiny_world

pytestmark = pytest.mark.distributed

TIMEOUT_SECONDS = 200.0
LAYERS, STEPS = 4, 2
CHANGES = {
    "model.num_layers": LAYERS,
    "model.head_init": "xavier",
    "data.micro_batch_images": 1,
    "checkpoint.every": 100,
    "track.statistics_every": 1,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tensor": {"parallel.tensor": 2, "train.recompute": "full"},
    "tensor_without_sequence": {"parallel.tensor": 2, "parallel.sequence": False},
    "context": {"parallel.context": 2},
    "interleaved": {"parallel.pipeline": 2, "parallel.interleave": 2, "train.recompute": "selective"},
    "data": {"parallel.data": 2},
}
FAULTS: dict[str, dict[str, Any]] = {
    "weights": LAYOUTS["tensor"],
    "interleaved": LAYOUTS["interleaved"],
    "backward": {"parallel.pipeline": 2},
    "latents": LAYOUTS["data"],
}
SPOILT_LAYER, SPOILT_SLOT = 3, 3


class _SpoilsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("inf")


def planted(fault: str) -> contextlib.AbstractContextManager[None]:
    """A fault in the running code, of rank 1 alone where it is not a sample's."""
    from sama_mega.model.attention import SelfAttention
    from sama_mega.train.batch import Batcher
    from sama_mega.train.step import TrainStep
    from sama_mega.verify.plants import replaced

    run, encode, attend = TrainStep.run, Batcher.encode, SelfAttention.forward
    is_bad_rank = os.environ.get("RANK") == "1"
    attended: list[None] = []

    def with_bad_weights(self: Any, *arguments: Any) -> Any:
        if is_bad_rank and self._state.step == 1:
            for stage in self._state.stages:
                if str(SPOILT_LAYER) in stage.module.blocks:
                    stage.module.blocks[str(SPOILT_LAYER)].ffn.linear_in.weight.data[2, 5] = float("nan")
        return run(self, *arguments)

    def with_bad_latents(self: Any, samples: Any) -> Any:
        batch = encode(self, samples)
        latents = batch.latents.clone()
        for row, sample in enumerate(samples):
            if sample.slot == SPOILT_SLOT:
                latents[row, 0, 0, 0, 0] = float("inf")
        return replace(batch, latents=latents)

    def with_bad_gradient(self: Any, *arguments: Any) -> Any:
        # This rank's stage has the layers 2 and 3, in turn.
        attended.append(None)
        output = attend(self, *arguments)
        return _SpoilsGradient.apply(output) if is_bad_rank and len(attended) % 2 == 0 else output

    return {
        "weights": lambda: replaced(TrainStep, "run", with_bad_weights),
        "interleaved": lambda: replaced(TrainStep, "run", with_bad_weights),
        "latents": lambda: replaced(Batcher, "encode", with_bad_latents),
        "backward": lambda: replaced(SelfAttention, "forward", with_bad_gradient),
    }[fault]()


def two_ranks(folder: str, world: str) -> dict[str, Any]:
    """Trains and replays case after case; returns exit statuses and what was printed."""
    from sama_mega.train.run import train

    root, manifest = Path(folder), Path(world) / "raw.jsonl"
    meet = meeting_points(root)
    said: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        meet(name)
        train(tiny_recipe(0, root / name, manifest, STEPS, CHANGES | layout))
    for name, layout in FAULTS.items():
        with planted(name):
            meet(f"fault {name}")
            train(tiny_recipe(0, root / f"bad_{name}", manifest, STEPS, CHANGES | layout))
            meet(f"replay {name}")
            said[name] = replay(root / f"bad_{name}")
    return said


def replay(run_folder: Path, *overrides: str) -> tuple[int, str]:
    from sama_mega.commands.train import run_replay

    (report,) = (run_folder / "replay").glob("step-*/report.json")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = run_replay(str(report.with_name("recipe.yaml")), report, overrides, as_json=True)
    return status, printed.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory)


@pytest.fixture(scope="module")
def together(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("numerics")
    return root, run_distributed(two_ranks, 2, TIMEOUT_SECONDS, (str(root), str(world)))


def report_of(run_folder: Path) -> dict[str, Any]:
    (path,) = (run_folder / "replay").glob("step-*/report.json")
    return json.loads(path.read_text())


# --- what the report names ------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "axis"), [("weights", "tensor"), ("interleaved", "pipeline")])
def test_bad_weights_are_named_with_layer_and_rank(together: tuple[Path, Any], fault: str, axis: str) -> None:
    root, _ = together
    report = report_of(root / f"bad_{fault}")
    (first,) = report["first"]
    assert (first["module"], first["tensor"], first["phase"]) == ("blocks.3.ffn.linear_in", "weight", "weights")
    assert first["ranks"] == [1] and first["places"][0][axis] == 1 and first["num_not_finite"] == 1
    assert report["step"] == 2 and report["loss"] == "nan" and report["repeats"]
    # What the weight then spoils, on the same rank first, in every micro-batch.
    spoilt = report["micro_batches"]
    assert {(one["name"], one["phase"]) for one in spoilt} == {("output of blocks.3.ffn.linear_in", "forward")}
    assert all(one["ranks"] == [1] for one in spoilt)
    named = [sample for one in spoilt for sample in one["sample_ids"]]
    assert sorted(named) == sorted(sample["sample_id"] for sample in report["samples"]) and len(named) == 4
    assert "blocks.3.ffn.linear_in" in (root / f"bad_{fault}/log.txt").read_text()


def test_a_bad_gradient_is_named_with_its_stage(together: tuple[Path, Any]) -> None:
    root, _ = together
    (first,) = report_of(root / "bad_backward")["first"]
    assert (first["name"], first["phase"]) == ("gradient of the output of blocks.3.self_attn.o", "backward")
    assert first["ranks"] == [1] and first["places"][0]["pipeline"] == 1 and first["micro_batch"] == 0


def test_a_bad_sample_is_named(together: tuple[Path, Any]) -> None:
    root, _ = together
    report = report_of(root / "bad_latents")
    (first,) = report["first"]
    (sample,) = [one for one in report["samples"] if one["slot"] == SPOILT_SLOT]
    assert (first["module"], first["tensor"]) == ("model", "input noisy_latents")
    assert first["sample_ids"] == [sample["sample_id"]] == report["samples_with_bad_loss"]
    assert first["places"][0]["data"] == sample["data_rank"] and first["micro_batch"] == sample["micro_batch"]


def test_one_bad_step_a_life_is_kept(together: tuple[Path, Any]) -> None:
    """The sample of that slot is bad in every step, and the default is to keep one."""
    root, _ = together
    rows = read_rows(root / "bad_latents")
    assert [row["loss"] for row in rows] == [None] * STEPS
    assert [path.name for path in (root / "bad_latents/replay").iterdir()] == ["step-00000001"]


# --- replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_replay_repeats_bit_for_bit(together: tuple[Path, list[dict[str, Any]]], fault: str) -> None:
    root, said = together
    assert [status for status, _ in (rank[fault] for rank in said)] == [1, 1]
    lines, silent = said[0][fault][1].splitlines(), said[1][fault][1]
    values, report = json.loads(lines[-1]), report_of(root / f"bad_{fault}")
    assert values["same_bits"] and "it repeats, bit for bit" in lines
    assert values["first"] == report["first"] and values["slot_losses"] == report["slot_losses"]
    assert silent == ""


def test_another_layout_replays_it(together: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = together
    for name, key in (("weights", "tensor"), ("latents", "data")):
        folder = root / f"bad_{name}/replay"
        before = sorted(path for path in (root / f"bad_{name}").rglob("*"))
        (report,) = folder.glob("*/report.json")
        status = call_main(
            *("train", report.with_name("recipe.yaml"), f"parallel.{key}=1", "--replay", report.parent, "--json")
        )
        values = json.loads(capsys.readouterr().out.splitlines()[-1])
        # The fault of the latents is not in this process: the same step is finite.
        assert (status, values["repeats"]) == ((1, True) if name == "weights" else (0, False))
        if name == "weights":
            assert values["first"][0]["name"] == "weight of blocks.3.ffn.linear_in"
        assert sorted(path for path in (root / f"bad_{name}").rglob("*")) == before


def test_the_micro_batch_that_is_bad_is_named_and_no_other(
    together: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """On one rank the bad sample is in a later micro-batch, behind good ones, and before another's backward pass."""
    root, _ = together
    (report,) = (root / "bad_latents/replay").glob("*/report.json")
    with planted("latents"):
        assert call_main("train", report.with_name("recipe.yaml"), "parallel.data=1", "--replay", report, "--json") == 1
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    (sample,) = [one for one in values["samples"] if one["slot"] == SPOILT_SLOT]
    assert sample["micro_batch"] > 0 and len(values["micro_batches"]) == 1
    assert values["first"] == values["micro_batches"]
    assert (values["first"][0]["name"], values["first"][0]["micro_batch"], values["first"][0]["sample_ids"]) == (
        "input noisy_latents of model",
        sample["micro_batch"],
        [sample["sample_id"]],
    )


def test_an_override_cures_it(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of the loss that float32 cannot hold: no fault is planted, alone, from a checkpoint of just that step."""
    from sama_mega.train.run import train

    changes = CHANGES | {"track.statistics_every": 0}
    train(tiny_recipe(0, tmp_path, world / "raw.jsonl", 1, changes))
    train(tiny_recipe(0, tmp_path, world / "raw.jsonl", 2, changes | {"data.image_weight": 1e39}))
    report = report_of(tmp_path)
    assert report["weights"] == "../../checkpoints/step-00000001" and report["step"] == 2
    assert report["first"][0]["name"].startswith("gradient of the output") and report["first"][0]["module"] == "model"
    command = ("train", tmp_path / "replay/step-00000002/recipe.yaml", "--replay", tmp_path / "replay/step-00000002")
    assert call_main(*command) == 1
    assert "it repeats, bit for bit" in capsys.readouterr().out
    assert call_main(*command, "data.image_weight=1.0") == 0
    assert "other than in the run: data.image_weight: 1e+39 -> 1.0" in capsys.readouterr().out


# --- statistics, and the cost of none -------------------------------------------------------------


def statistics_of(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "statistics.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Alone:
    """A run of one process, and what each pass of each block gave, in order."""

    folder: Path
    outputs: list[Tensor]


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    from sama_mega.model.block import SamaBlock
    from sama_mega.train.run import train
    from sama_mega.verify.plants import replaced

    folder, outputs, forward = tmp_path_factory.mktemp("alone"), [], SamaBlock.forward

    def noted(self: Any, *arguments: Any) -> Tensor:
        outputs.append(forward(self, *arguments))
        return outputs[-1]

    with replaced(SamaBlock, "forward", noted):
        train(tiny_recipe(0, folder, world / "raw.jsonl", STEPS, CHANGES | {"checkpoint.every": 1}))
    return Alone(folder, [output.detach() for output in outputs])


def test_the_statistics_of_one_process_are_true(alone: Alone) -> None:
    from sama_mega.parallel.checkpoint_io import read_plain
    from sama_mega.train.numerics.layer_statistics import layer_of

    row = statistics_of(alone.folder)[1]["layers"]
    passes = len(alone.outputs) // (LAYERS * STEPS)
    assert len(alone.outputs) == passes * LAYERS * STEPS
    for layer in range(LAYERS):
        given = torch.cat([one.flatten() for one in alone.outputs[passes * LAYERS + layer :: LAYERS]]).double()
        numbers = row[f"blocks.{layer}"]
        assert numbers["activation_rms"] == pytest.approx(given.square().mean().sqrt().item(), rel=1e-5)
        assert numbers["activation_max"] == given.abs().max().item() and numbers["activation_not_finite"] == 0
    norms = [numbers["gradient_norm"] for numbers in row.values()]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(read_rows(alone.folder)[1]["gradient_norm"], rel=1e-5)
    before, after = (read_plain(alone.folder / f"checkpoints/step-0000000{step}", "model.") for step in (1, 2))
    for layer, numbers in row.items():
        pairs = [(before[name].flatten(), after[name].flatten()) for name in after if layer_of(name) == layer]
        old, new = (torch.cat(tensors).double() for tensors in zip(*pairs, strict=True))
        assert numbers["update_ratio"] == pytest.approx(((new - old).norm() / new.norm()).item(), rel=1e-3), layer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_statistics(together: tuple[Path, Any], alone: Alone, layout: str) -> None:
    root, _ = together
    ours, truth = statistics_of(root / layout), statistics_of(alone.folder)
    assert [row["step"] for row in ours] == [1, 2]
    for row, true in zip(ours, truth, strict=True):
        assert row["layers"].keys() == true["layers"].keys() and len(true["layers"]) == 7 + LAYERS
        for layer, numbers in true["layers"].items():
            for key, value in numbers.items():
                same = value if value is None else pytest.approx(value, rel=1e-4, abs=1e-9)
                assert row["layers"][layer][key] == same, (layer, key)
    assert not (root / layout / "replay").exists()


def test_a_step_that_is_not_due_has_no_hooks(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sama_mega.train.run import train
    from sama_mega.train.step import TrainStep

    differentiate, counts = TrainStep.differentiate, []

    def counted(self: Any, drawn: Any) -> Any:
        modules = list(self._state.stages[0].modules())
        counts.append(sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules))
        return differentiate(self, drawn)

    monkeypatch.setattr(TrainStep, "differentiate", counted)
    train(tiny_recipe(0, tmp_path, world / "raw.jsonl", 3, CHANGES | {"track.statistics_every": 2}))
    assert counts[0] == counts[2] == 0 < counts[1]
    assert [row["step"] for row in statistics_of(tmp_path)] == [2]


@pytest.mark.parametrize("trouble", ["no folder", "checkpoints that cannot be listed"])
def test_a_run_goes_on_where_nothing_can_be_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    from sama_mega.train.numerics import save
    from sama_mega.train.run import train

    def refuse(folder: Path) -> None:
        raise OSError(116, "Stale file handle")

    if trouble == "no folder":
        (tmp_path / "replay").write_text("a file where the folder should be")
    else:
        monkeypatch.setattr(save, "complete_checkpoints", refuse)
    train(tiny_recipe(0, tmp_path, world / "raw.jsonl", STEPS, CHANGES | {"data.image_weight": 1e39}))
    assert len(read_rows(tmp_path)) == STEPS
    log = (tmp_path / "log.txt").read_text()
    assert (
        log.count("cannot be kept for --replay") == 1
        and "first tensor that is not finite: gradient of the output" in log
    )
