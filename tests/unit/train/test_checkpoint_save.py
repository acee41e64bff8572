"""Saving and loading a run's state: complete or absent, the newest kept, older lives and other models refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem

from sama_mega.checkpoint import write
from sama_mega.checkpoint.folder import complete_checkpoints, resolve_checkpoint
from sama_mega.checkpoint.saved_state import read_saved_state
from sama_mega.config import load_recipe
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel import checkpoint_io
from sama_mega.parallel.checkpoint_io import read_plain
from sama_mega.parallel.layout import resolve_layout
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.checkpoint import load_checkpoint, load_initial_weights
from sama_mega.train.lives import SupersededError
from sama_mega.train.state import build_train_state
from tests.support.run_saver import RunSaver, copies, scramble
from tests.support.tiny_recipe import alone, assert_bitwise_equal, tiny_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    changes = {"checkpoint.keep": 2, "model.num_layers": 1}
    return tiny_recipe(0, tmp_path_factory.mktemp("unused"), Path("none.jsonl"), changes=changes)


@pytest.fixture(scope="module")
def context(recipe: Recipe) -> Iterator[ParallelContext]:
    with alone(recipe) as context:
        yield context


@pytest.fixture
def saver(tmp_path: Path, recipe: Recipe, context: ParallelContext) -> RunSaver:
    return RunSaver(tmp_path / "run", recipe, context)


# --- there and back -------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(saver: RunSaver, recipe: Recipe, context: ParallelContext) -> None:
    path = saver.save(7)
    saved = copies(saver.state)
    other = build_train_state(recipe, context, initialize=True)
    scramble(other, 99)
    returned = load_checkpoint(path, other)
    assert_bitwise_equal(copies(other), saved)
    assert (other.step, other.samples_seen) == (7, 28)
    assert (other.optimizer.steps_taken, other.average.num_updates) == (107, 207)
    assert (returned.step, returned.data_position, returned.seed, returned.life) == (7, 7, recipe.train.seed, 1)


def test_a_checkpoint_is_named_after_its_step_and_holds_what_is_promised(saver: RunSaver, recipe: Recipe) -> None:
    path = saver.save(100)
    assert path == saver.folder.checkpoints / "step-00000100"
    assert {"recipe.yaml", "state.json", "metadata.json"} <= {file.name for file in path.iterdir()}
    assert load_recipe(path / "recipe.yaml") == recipe
    state = json.loads((path / "state.json").read_text())
    assert state["step"] == 100 and state["samples_seen"] == 400
    assert state["layout"] == {"tensor": 1, "context": 1, "pipeline": 1, "data": 1}
    sections = {name.split(".")[0] for name in read_plain(path)}
    assert sections == {"model", "ema", "optimizer"}


def test_a_run_starts_from_either_set_of_weights(saver: RunSaver, recipe: Recipe, context: ParallelContext) -> None:
    path = saver.save(3)
    for weights in ("ema", "model"):
        state = build_train_state(recipe, context, initialize=True)
        scramble(state, 5)
        load_initial_weights(path, weights, state)
        loaded = {name: value.detach() for name, value in state.stages[0].module.named_parameters()}
        assert_bitwise_equal(loaded, read_plain(path, f"{weights}."))
        for average, owned in zip(state.average.values, state.optimizer.owned, strict=True):
            assert torch.equal(average, owned.master) and average.data_ptr() != owned.master.data_ptr()
        assert (state.step, state.samples_seen, state.average.num_updates) == (0, 0, 0)
    ema, model = read_plain(path, "ema."), read_plain(path, "model.")
    assert all(not torch.equal(ema[name], model[name]) for name in ema)


# --- which are kept -------------------------------------------------------------------------------


def test_only_the_newest_are_kept(saver: RunSaver) -> None:
    for step in (2, 9, 10, 11):
        saver.save(step)
    assert saver.names() == ["step-00000010", "step-00000011"]
    assert resolve_checkpoint(saver.folder.root) == saver.folder.checkpoints / "step-00000011"


def test_saving_a_step_again_replaces_it(saver: RunSaver) -> None:
    first = read_plain(saver.save(4))
    scramble(saver.state, 50)
    second = saver.checkpoints.save(saver.state)
    saver.checkpoints.wait()
    assert saver.names() == ["step-00000004"]
    assert not torch.equal(read_plain(second)["model.head.head.bias"], first["model.head.head.bias"])


@pytest.mark.parametrize("missing", ["state.json", "everything"])
def test_what_is_not_complete_is_not_found(saver: RunSaver, missing: str) -> None:
    saver.save(4)
    newer = saver.folder.checkpoints / "step-00000005"
    if missing == "everything":
        newer.mkdir()
    else:
        shutil.copytree(saver.folder.checkpoints / "step-00000004", newer)
        (newer / missing).unlink()
    assert [path.name for path in complete_checkpoints(saver.folder.checkpoints)] == ["step-00000004"]


# --- interruptions --------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a save where a kill would: nothing may clean up behind it."""


@pytest.mark.parametrize("moment", ["_complete", "flush_to_disk", "_prepare"])
def test_a_kill_during_a_save_costs_that_save_alone(
    saver: RunSaver, moment: str, recipe: Recipe, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saver.save(4)
    kept = copies(saver.state)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(write, moment, killed)
        with pytest.raises(RuntimeError, match="was not saved: Killed"):
            saver.save(5)
    leftovers = [name for name in saver.names() if name != good.name]
    assert len(leftovers) == (0 if moment == "_prepare" else 1)
    assert all(name.startswith(".saving-") for name in leftovers)
    assert resolve_checkpoint(saver.folder.root) == good
    other = build_train_state(recipe, context, initialize=True)
    load_checkpoint(good, other)
    assert_bitwise_equal(copies(other), kept)
    saver.start_life()
    saver.save(5)
    assert saver.names() == ["step-00000004", "step-00000005"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (checkpoint_io, "_write_pieces"),
        (checkpoint_io, "mark_complete"),
        (write, "flush_to_disk"),
        (write, "recipe_to_yaml"),
        (os, "replace"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    saver: RunSaver, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saver.save(4)
    kept = read_plain(good)
    with monkeypatch.context() as patched:
        patched.setattr(module, name, full_disk)
        with pytest.raises(CheckpointError, match="No space left on device") as caught:
            saver.save(5)
    assert "\n" not in str(caught.value)
    assert saver.names() == [good.name]
    assert_bitwise_equal(read_plain(good), kept)
    saver.save(5)
    assert saver.names() == ["step-00000004", "step-00000005"]


def test_a_write_that_fails_in_any_thread_fails_the_save(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer loses what its helper threads raise: the checkpoint must not pass for complete."""
    good = saver.save(4)
    write_item = filesystem._write_item

    def write_in_the_savers_thread(*arguments: Any) -> Any:
        if not threading.current_thread().name.startswith("save step-"):
            full_disk()
        return write_item(*arguments)

    monkeypatch.setattr(filesystem, "_write_item", write_in_the_savers_thread)
    try:
        newest = saver.save(5)
    except CheckpointError:
        newest = good
    assert saver.names()[-1] == newest.name
    assert read_plain(newest, "model.") and read_plain(newest, "optimizer.")


def test_a_full_disk_is_called_that_behind_torchs_own_error(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.save makes of an OSError, on a real full disk as often as not."""

    def write_item(*_: Any) -> None:
        try:
            full_disk()
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")  # noqa: B904

    monkeypatch.setattr(filesystem, "_write_item", write_item)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.save(5)


# --- refusals -------------------------------------------------------------------------------------


def test_an_older_life_may_not_save(saver: RunSaver) -> None:
    saver.save(4)
    saver.folder.start_life({})
    with pytest.raises(SupersededError, match="life 2 of this run has begun, so life 1 ends here and may write"):
        saver.save(5)
    assert saver.names() == ["step-00000004"]


def test_a_life_that_begins_during_a_save_refuses_it(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    saver.save(4)

    def begin_another(*arguments: Any) -> None:
        checkpoint_io.save_sharded(*arguments)
        saver.folder.start_life({})

    monkeypatch.setattr(write, "save_sharded", begin_another)
    with pytest.raises(CheckpointError, match="life 2 of this run has begun"):
        saver.save(5)
    assert saver.names() == ["step-00000004"]


def changed(recipe: Recipe, **model: Any) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=model)})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"ffn_dim": 64}, ["ffn.linear_in.bias", "[48]", "[64]"]),
        ({"num_layers": 2}, ["blocks.1.", "made by another recipe"]),
        ({"semantic_dim": 16}, ["semantic_head.proj.bias", "[12]", "[16]"]),
        ({"roles": "shifted_rope"}, ["segment_embedding.weight", "made by another"]),
    ],
)
def test_another_model_is_refused_by_the_name_of_its_tensor(
    saver: RunSaver, recipe: Recipe, context: ParallelContext, model: dict[str, Any], words: list[str]
) -> None:
    path = saver.save(4)
    for load in (
        lambda state: load_checkpoint(path, state),
        lambda state: load_initial_weights(path, "ema", state),
    ):
        with pytest.raises(CheckpointError) as caught:
            other = changed(recipe, **model)
            load(build_train_state(other, replace(context, layout=resolve_layout(other, 1)), initialize=True))
        message = str(caught.value)
        assert "\n" not in message and str(path) in message
        assert all(word in message for word in words), message


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "1"}'])
def test_a_damaged_state_file_is_named(saver: RunSaver, content: str) -> None:
    path = saver.save(4)
    (path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read_saved_state(path)


@pytest.mark.parametrize("damage", ["cut", "missing", "no metadata"])
def test_damaged_tensors_are_one_line(saver: RunSaver, recipe: Recipe, context: ParallelContext, damage: str) -> None:
    path = saver.save(4)
    shard = max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "missing":
        shard.unlink()
    else:
        (path / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="cannot read the checkpoint") as caught:
        load_checkpoint(path, build_train_state(recipe, context, initialize=True))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
