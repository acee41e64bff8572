"""Saving in the background: what the run waits for, what is saved meanwhile, and where a failure comes up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from sama_mega.checkpoint import write
from sama_mega.config.errors import CheckpointError
from sama_mega.config.schema import Recipe
from sama_mega.parallel import checkpoint_io
from sama_mega.parallel.checkpoint_io import read_plain
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.checkpoint import load_checkpoint
from sama_mega.train.lives import SupersededError
from sama_mega.train.state import build_train_state
from tests.support.run_saver import RunSaver, copies, scramble
from tests.support.tiny_recipe import alone, assert_bitwise_equal, tiny_recipe

PATIENCE_SECONDS = 30.0
COLLECTIVES = [
    *("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list", "barrier"),
    *("all_reduce", "all_gather", "broadcast", "gather", "scatter", "reduce_scatter_tensor", "all_gather_into_tensor"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    changes = {"checkpoint.keep": 2, "model.num_layers": 1}
    return tiny_recipe(0, tmp_path_factory.mktemp("unused"), Path("none.jsonl"), changes=changes)


@pytest.fixture(scope="module")
def context(recipe: Recipe) -> Iterator[ParallelContext]:
    with alone(recipe) as context:
        yield context


@pytest.fixture
def saver(tmp_path: Path, recipe: Recipe, context: ParallelContext) -> Iterator[RunSaver]:
    saver = RunSaver(tmp_path / "run", recipe, context)
    yield saver
    saver.checkpoints.close()


class Gate:
    """A place that a save does not pass before it is opened."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._open = threading.Event()
        self._reached = threading.Event()

    def __call__(self, *arguments: Any) -> Any:
        self._reached.set()
        assert self._open.wait(PATIENCE_SECONDS), "nobody opened the gate"
        return self._function(*arguments)

    def wait_until_reached(self) -> None:
        assert self._reached.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._open.set()


def put_gate(monkeypatch: pytest.MonkeyPatch, name: str) -> Gate:
    """In front of a function that `write` calls."""
    gate = Gate(getattr(write, name))
    monkeypatch.setattr(write, name, gate)
    return gate


def fail_to_write(*_: Any) -> None:
    raise OSError(28, "No space left on device")


# --- what the run waits for -----------------------------------------------------------------------


def test_a_save_returns_before_its_files_are_complete(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = put_gate(monkeypatch, "put_in_place")
    path = saver.begin(4)
    gate.wait_until_reached()
    assert saver.names() == [".saving-step-00000004-life1"]
    gate.open()
    saver.checkpoints.wait()
    assert saver.names() == [path.name] and read_plain(path)


def test_what_is_saved_is_the_state_of_the_call(
    saver: RunSaver, recipe: Recipe, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = put_gate(monkeypatch, "save_sharded")
    path = saver.begin(4)
    saved = copies(saver.state)
    scramble(saver.state, 99)
    saver.state.step, saver.state.samples_seen = 5, 20
    gate.open()
    saver.checkpoints.wait()
    other = build_train_state(recipe, context, initialize=True)
    load_checkpoint(path, other)
    assert_bitwise_equal(copies(other), saved)
    assert (other.step, other.samples_seen) == (4, 16)
    assert (other.optimizer.steps_taken, other.average.num_updates) == (104, 204)


def test_a_save_waits_for_the_one_before(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = put_gate(monkeypatch, "put_in_place")
    first = saver.begin(4)
    wait = saver.checkpoints.wait

    def open_and_wait() -> None:
        gate.open()
        wait()

    monkeypatch.setattr(saver.checkpoints, "wait", open_and_wait)
    saver.begin(5)
    assert first.is_dir()
    wait()
    assert saver.names() == ["step-00000004", "step-00000005"]


def test_a_save_that_is_not_asynchronous_is_complete_when_it_returns(
    tmp_path: Path, recipe: Recipe, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = recipe.checkpoint.model_copy(update={"asynchronous": False})
    saver = RunSaver(tmp_path / "run", recipe.model_copy(update={"checkpoint": section}), context)
    assert read_plain(saver.begin(4))
    monkeypatch.setattr(checkpoint_io, "_write_pieces", fail_to_write)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.begin(5)
    assert saver.names() == ["step-00000004"]


def test_no_other_group_hears_of_a_save(
    saver: RunSaver, context: ParallelContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread sends over the others meanwhile, and messages of two threads on one group mix."""
    used: list[tuple[str, Any]] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                used.append((name, options.get("group")))
            return function(*arguments, **options)

        return call

    for name in COLLECTIVES:
        monkeypatch.setattr(dist, name, recorded(name, getattr(dist, name)))
    saver.save(4)
    assert {name for name, _ in used} >= {"all_gather_object", "gather_object", "broadcast_object_list"}
    own = saver.checkpoints._group
    assert own is not context.world_group and dist.get_backend(own) == "gloo"
    assert [name for name, group in used if group is not own] == []


# --- failures -------------------------------------------------------------------------------------


def test_a_failure_comes_up_at_the_next_save_once(
    saver: RunSaver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver.save(4)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_io, "_write_pieces", fail_to_write)
        saver.begin(5)
        saver.checkpoints.close()
    # It is in the log at once: the next save may be hours away.
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "step-00000005 was not saved" in said and "No space left on device" in said
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        saver.begin(6)
    assert "\n" not in str(caught.value)
    assert saver.names() == ["step-00000004"]
    saver.save(7)
    assert saver.names() == ["step-00000004", "step-00000007"]


def test_a_failure_comes_up_when_it_is_waited_for(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_io, "_write_pieces", fail_to_write)
    saver.begin(5)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.checkpoints.wait()
    saver.checkpoints.wait()


@pytest.mark.parametrize("place", ["recipe_to_yaml", "settle"])
def test_a_failure_that_nobody_foresaw_is_one_too(saver: RunSaver, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 0 alone: the others would wait for it."""

    def fail(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(write, place, fail)
    with pytest.raises(CheckpointError, match="cannot be written: ValueError\\('a bug'\\)"):
        saver.save(5)
    assert saver.names() == []


def test_closing_waits_and_says_nothing_of_a_failure(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = put_gate(monkeypatch, "put_in_place")
    path = saver.begin(4)
    threading.Timer(0, gate.open).start()
    saver.checkpoints.close()
    assert path.is_dir()
    monkeypatch.setattr(checkpoint_io, "_write_pieces", fail_to_write)
    saver.begin(5)
    saver.checkpoints.close()


# --- the fence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["settle", "put_in_place"])
def test_a_life_that_begins_meanwhile_refuses_a_background_save(
    saver: RunSaver, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the fence's two questions, and after the last one: then the checkpoint is whole and there."""
    saver.save(4)
    gate = put_gate(monkeypatch, place)
    saver.begin(5)
    gate.wait_until_reached()
    saver.folder.start_life({})
    gate.open()
    if place == "settle":
        with pytest.raises(SupersededError, match="life 2 of this run has begun, so life 1 ends here and may write"):
            saver.checkpoints.wait()
        assert saver.names() == ["step-00000004"]
    else:
        saver.checkpoints.wait()
        assert saver.names() == ["step-00000004", "step-00000005"]


def test_a_life_that_began_before_refuses_a_background_save_before_it_writes(
    saver: RunSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(write, "save_sharded", lambda *arguments: written.append(arguments))
    saver.folder.start_life({})
    saver.begin(5)
    with pytest.raises(SupersededError, match="life 2 of this run has begun, so life 1 ends here and may write"):
        saver.begin(6)
    assert saver.names() == [] and not written


def test_a_newer_life_is_named_before_what_it_broke(saver: RunSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It deletes what an older life was writing, which then fails over a missing folder."""

    def lose_the_folder(*_: Any) -> None:
        saver.folder.start_life({})
        raise RuntimeError("Parent directory does not exist")

    monkeypatch.setattr(checkpoint_io, "_write_pieces", lose_the_folder)
    with pytest.raises(CheckpointError, match="life 2 of this run has begun"):
        saver.save(5)
