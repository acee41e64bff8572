"""Two ranks that agree, or stop together: two threads whose collectives wait for each other."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_data.manifest import load_manifest, write_jsonl
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.config.schema import Recipe
from sama_mega.train import agreement
from sama_mega.train.agreement import agreeing_batches, on_every_rank, require_same_everywhere
from sama_mega.train.stop import RunStopped, StopRequest
from tests.support.tiny_recipe import tiny_recipe

PATIENCE_SECONDS = 5.0
Draw = tuple[int, int, int]


@dataclass(eq=False)
class Group:
    """Ranks that talk to each other; a rank that stays away breaks the barrier instead of hanging the test."""

    ranks: tuple[int, ...]
    values: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(len(self.ranks))

    def size(self) -> int:
        return len(self.ranks)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(PATIENCE_SECONDS)
        # As pickled: what one rank does with its copy, the other does not see.
        everyone = [copy.deepcopy(self.values[other]) for other in self.ranks]
        self.barrier.wait(PATIENCE_SECONDS)
        return everyone


class World:
    """Two ranks, either sharing samples (one model group) or not (two data ranks).

    Attributes:
        interleave, pipeline: Of the layout.
        num_messages: All-reduces so far, counted once for both ranks.
    """

    def __init__(self, share_samples: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.group = Group((0, 1))
        self.data_ranks = [0, 0] if share_samples else [0, 1]
        self.num_messages = 0
        self.here = threading.local()
        monkeypatch.setattr(agreement.dist, "all_reduce", self.all_reduce)
        monkeypatch.setattr(agreement, "gather_objects", lambda value, group: group.exchange(self.here.rank, value))

    def all_reduce(self, tensor: torch.Tensor, op: object, group: Group) -> None:
        assert op == dist.ReduceOp.MAX
        assert tensor.device.type == "cpu"
        self.num_messages += self.here.rank == 0
        everyone = group.exchange(self.here.rank, tensor.clone())
        tensor.copy_(torch.stack(everyone).amax(0))

    def run(self, work: Callable[[int, Any], Any]) -> list[Any]:
        """What both ranks return or raise."""
        results: list[Any] = [None, None]

        def rank_thread(rank: int) -> None:
            self.here.rank = rank
            layout = SimpleNamespace(data=1 + max(self.data_ranks))
            # A device that holds no numbers: the check must do without.
            context = SimpleNamespace(
                world_size=2,
                rank=rank,
                device=torch.device("meta"),
                layout=layout,
                data_rank=self.data_ranks[rank],
                world_group=self.group,
                host_world_group=self.group,
            )
            try:
                results[rank] = work(rank, context)
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=rank_thread, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE_SECONDS)
            assert not thread.is_alive()
        return results


def step_of(*samples: Draw, step: int = 7) -> StepSamples:
    """(slot, row, epoch) of each sample."""
    read: list[Any] = [SimpleNamespace(slot=slot, index=index, epoch=epoch) for slot, index, epoch in samples]
    return StepSamples(step=step, samples=read, num_slots=9, num_image_slots=0)


def failing_after(steps: list[StepSamples], error: Exception | None) -> Iterator[StepSamples]:
    yield from steps
    if error is not None:
        raise error


def read_on_both(world: World, steps: list[list[StepSamples]], errors: dict[int, Exception] | None = None) -> list[Any]:
    """Both ranks' batches as they come out, or what ended them."""
    sources = [failing_after(steps[rank], (errors or {}).get(rank)) for rank in (0, 1)]
    return world.run(lambda rank, context: list(agreeing_batches(sources[rank], context, StopRequest())))


def one_reason(results: list[Any], kind: type[Exception]) -> str:
    """Both ranks raised the same."""
    assert [type(result) for result in results] == [kind, kind], results
    assert str(results[0]) == str(results[1])
    if isinstance(results[0], (UserError, DataError)):
        assert [result.told_by_first_rank for result in results] == [False, True], "a user hears of it once"
    return str(results[0])


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share_samples", [True, False])
def test_equal_samples_pass(share_samples: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step_of((0, 4, 0), (3, 5, 1)), step_of(), step_of((1, 2, 3))]
    world = World(share_samples, monkeypatch)
    assert read_on_both(world, [steps, steps]) == [steps, steps]
    assert world.num_messages == len(steps) + 1, "one a step, and one at the end"


@pytest.mark.parametrize(
    "theirs",
    [
        [(0, 4, 0), (3, 6, 1)],
        [(0, 4, 0), (3, 5, 2)],
        [(0, 4, 0), (2, 5, 1)],
        [(0, 4, 0)],
        [(0, 4, 0), (3, 5, 1), (4, 1, 0)],
        [],
    ],
)
def test_ranks_that_share_samples_stop_where_they_differ(theirs: list[Draw], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, common = step_of((0, 4, 0), (3, 5, 1)), step_of((8, 8, 8))
    for steps in ([[common, ours], [common, step_of(*theirs)]], [[step_of(*theirs)], [ours]]):
        reason = one_reason(read_on_both(World(True, monkeypatch), steps), DataError)
        assert "read different samples" in reason and "quarantine.jsonl" in reason


def test_data_ranks_hold_samples_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [[step_of((0, 4, 0))], [step_of((1, 5, 0), (2, 6, 0))]]
    assert read_on_both(World(False, monkeypatch), steps) == steps


@pytest.mark.parametrize("told", [0, 1])
def test_a_request_that_one_rank_hears_stops_both_before_the_same_step(
    told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal reaches the ranks at different moments, or one of them alone."""
    stops, taken = [StopRequest(), StopRequest()], [0, 0]

    def read_until_stopped(rank: int, context: Any) -> None:
        for _ in agreeing_batches(iter([step_of((rank, 0, 0))] * 5), context, stops[rank]):
            taken[rank] += 1
            if rank == told and taken[rank] == 2:
                stops[rank].request(signal.SIGUSR1)

    results = World(False, monkeypatch).run(read_until_stopped)
    assert one_reason(results, RunStopped) == "told to stop by SIGUSR1"
    assert taken == [2, 2]


def test_a_request_before_the_first_step_takes_none() -> None:
    context: Any = SimpleNamespace(world_size=1, rank=0, layout=SimpleNamespace(interleave=1))
    stop = StopRequest()
    stop.request(signal.SIGTERM)
    with pytest.raises(RunStopped, match="SIGTERM"):
        next(agreeing_batches(iter([step_of((0, 0, 0))]), context, stop))


def test_a_failure_explains_more_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = [StopRequest(), StopRequest()]
    stops[1].request(signal.SIGUSR1)
    sources = [failing_after([], DataError("all bad")), iter([step_of((1, 0, 0))])]
    results = World(False, monkeypatch).run(
        lambda rank, context: list(agreeing_batches(sources[rank], context, stops[rank]))
    )
    assert one_reason(results, DataError) == "all bad"


@pytest.mark.parametrize("share_samples", [True, False])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_read_stops_the_other(
    share_samples: bool, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, more = step_of((0, 4, 0)), step_of((0, 5, 0))
    steps = [[good, more], [good, more]]
    steps[failing] = [good]
    errors: dict[int, Exception] = {failing: DataError("all 3 video samples are bad")}
    results = read_on_both(World(share_samples, monkeypatch), steps, errors)
    assert one_reason(results, DataError) == "all 3 video samples are bad"


@pytest.mark.parametrize("failing", [(0,), (1,), (0, 1)])
def test_work_that_fails_on_one_rank_fails_on_all(failing: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def work(rank: int, context: Any) -> int:
        def open_on(rank: int) -> int:
            if rank in failing:
                raise DataError(f"rank {rank} has no manifest")
            return rank

        return on_every_rank(context, lambda: open_on(rank))

    assert one_reason(World(False, monkeypatch).run(work), DataError) == f"rank {failing[0]} has no manifest"


def test_work_that_succeeds_gives_each_rank_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    results = World(False, monkeypatch).run(lambda rank, context: on_every_rank(context, lambda: 10 + rank))
    assert results == [10, 11]


def test_one_rank_alone_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.dist, "all_reduce", lambda *_, **__: pytest.fail("nobody to ask"))
    monkeypatch.setattr(agreement, "gather_objects", lambda *_: pytest.fail("nobody to ask"))
    context: Any = SimpleNamespace(world_size=1, rank=0, layout=SimpleNamespace(interleave=1))
    batches = [step_of((0, 1, 0)), step_of((0, 2, 0))]
    assert list(agreeing_batches(iter(batches), context, StopRequest())) == batches
    with pytest.raises(DataError, match="all bad"):
        list(agreeing_batches(failing_after(batches, DataError("all bad")), context, StopRequest()))


def test_other_errors_are_not_taken_for_bad_data() -> None:
    context: Any = SimpleNamespace(world_size=1, rank=0, layout=SimpleNamespace(interleave=1))
    with pytest.raises(ZeroDivisionError):
        list(agreeing_batches(failing_after([], ZeroDivisionError()), context, StopRequest()))


def test_a_batch_is_read_only_when_it_is_asked_for() -> None:
    """The loader reads ahead; the check must not."""
    read: list[int] = []

    def batches() -> Iterator[StepSamples]:
        for step in range(3):
            read.append(step)
            yield step_of((0, step, 0), step=step)

    context: Any = SimpleNamespace(world_size=1, rank=0, layout=SimpleNamespace(interleave=1))
    assert next(agreeing_batches(batches(), context, StopRequest())).step == 0
    assert read == [0]


# --- recipe and manifest --------------------------------------------------------------------------


def make_inputs(folder: Path, name: str, caption: str = "Waves.", **changes: Any) -> tuple[Recipe, Any]:
    path = folder / f"{name}.jsonl"
    write_jsonl([{"video": "a.mp4", "caption": caption}, {"video": "b.mp4", "caption": "Sand."}], path)
    values = {key.replace("__", "."): value for key, value in changes.items()}
    return tiny_recipe(0, Path("run"), Path("raw.jsonl"), changes=values), load_manifest(path)


def test_equal_recipes_and_manifests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [make_inputs(tmp_path, "one"), make_inputs(tmp_path, "two")]
    world = World(False, monkeypatch)
    assert world.run(lambda rank, context: require_same_everywhere(*inputs[rank], context)) == [None, None]


@pytest.mark.parametrize(
    ("theirs", "word"),
    [({"train__seed": 5}, "recipe"), ({"caption": "Waves!"}, "manifest")],
    ids=["recipe", "manifest"],
)
def test_another_recipe_or_manifest_stops_both(
    theirs: dict[str, Any], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [make_inputs(tmp_path, "one"), make_inputs(tmp_path, "two", **theirs)]
    world = World(False, monkeypatch)
    results = world.run(lambda rank, context: require_same_everywhere(*inputs[rank], context))
    reason = one_reason(results, ConfigError)
    assert reason == f"rank 1 has another {word} than rank 0: every node must see the same files and arguments"
