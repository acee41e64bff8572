"""Makes sure that ranks agree: on what they run, on the samples they share, and on stopping at the same step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from sama_data.dataset import Dataset
from sama_data.errors import DataError
from sama_data.loader import StepSamples
from sama_mega.config import recipe_to_yaml
from sama_mega.config.errors import ConfigError, UserError
from sama_mega.config.schema import Recipe
from sama_mega.parallel.collectives import broadcast_object, gather_objects
from sama_mega.parallel.runtime import ParallelContext
from sama_mega.train.stop import RunStopped, StopRequest

_DIFFERENT_SAMPLES = (
    "ranks of one model-parallel group read different samples: a file was readable on one of them only; see"
    " quarantine.jsonl and check the storage of every node"
)
# Below every digest and its negative: the place of a model group that this rank is not in.
_NOT_MINE = torch.iinfo(torch.int64).min

Problem = DataError | UserError
Result = TypeVar("Result")


def require_same_everywhere(recipe: Recipe, dataset: Dataset, context: ParallelContext) -> None:
    """Compares the recipe and the manifest's rows of all ranks, once.

    Raises:
        ConfigError: On every rank, when one of them differs from rank 0's.
    """
    if context.world_size == 1:
        return
    mine = {"recipe": _digest(recipe_to_yaml(recipe).encode()), "manifest": dataset.digest()}
    for rank, theirs in enumerate(gather_objects(mine, context.world_group)):
        if rank == 0:
            expected = theirs
        different = [name for name in expected if theirs[name] != expected[name]]
        if different:
            message = (
                f"rank {rank} has another {different[0]} than rank 0: every node must see the same files and arguments"
            )
            raise _agreed(ConfigError(message), context)


def agreeing_batches(
    batches: Iterator[StepSamples], context: ParallelContext, stop: StopRequest
) -> Generator[StepSamples]:
    """Passes batches on, after making sure that no rank failed to read its own and that shared ones are the same.

    Ranks of one model-parallel group decode the same files on their own. A read error on one of them alone would give
    it a stand-in, and the group would train on a mixture without noticing, or hang on unequal shapes. And a rank that
    stops because its clips are bad, or its save failed, must not leave the others waiting.

    Args:
        batches: This rank's; what they raise of the two kinds below ends all ranks.
        context: The running layout.
        stop: This rank's; a request that one rank knows of ends all ranks, before the same step.

    Raises:
        DataError: On every rank, when one raised it or samples differ.
        UserError: On every rank, when one raised it.
        RunStopped: On every rank, when one was asked to stop.
    """
    while True:
        drawn: StepSamples | None = None
        problem: Problem | None = None
        try:
            drawn = next(batches, None)
        except (DataError, UserError) as error:
            problem = error
        stop_signal = stop.pending
        if context.world_size > 1:
            problem, stop_signal = _agree(drawn, problem, stop_signal, context)
        if problem is not None:
            raise _agreed(problem, context)
        if stop_signal:
            raise RunStopped(stop_signal)
        if drawn is None:
            return
        yield drawn


def from_first_rank(context: ParallelContext, work: Callable[[], Result]) -> Result:
    """Runs work on rank 0; every rank gets its result, or its error if the user is at fault."""
    outcome: tuple[Result | None, Exception | None] = (None, None)
    if context.is_first_rank:
        try:
            outcome = (work(), None)
        except (UserError, DataError) as error:
            outcome = (None, error)
    result, problem = broadcast_object(outcome, context.world_group)
    if problem is not None:
        raise _agreed(problem, context)
    return result  # type: ignore[no-any-return]


def on_every_rank(context: ParallelContext, work: Callable[[], Result]) -> Result:
    """Runs work on every rank; an error of the user's on one of them is raised on all, that of the lowest rank."""
    result: Result | None = None
    problem: Problem | None = None
    try:
        result = work()
    except (UserError, DataError) as error:
        problem = error
    problems = [problem] if context.world_size == 1 else gather_objects(problem, context.host_world_group)
    first = next((found for found in problems if found is not None), None)
    if first is not None:
        raise _agreed(first, context)
    return result  # type: ignore[return-value]


def _agreed(problem: Problem, context: ParallelContext) -> Problem:
    """The problem, as one that every rank raises and one tells."""
    problem.told_by_first_rank = context.rank > 0
    return problem


def _agree(
    drawn: StepSamples | None, problem: Problem | None, stop_signal: int, context: ParallelContext
) -> tuple[Problem | None, int]:
    """One problem and one signal for every rank, None and 0 when there is none; the host talks, not the device."""
    digest = _sample_digest(drawn)
    # A row for every model group, of its largest digest and its largest negative one: they add up to zero when all of
    # its digests are the same. The last row says whether any rank failed, and whether any was asked to stop.
    message = torch.full((context.layout.data + 1, 2), _NOT_MINE)
    message[context.data_rank] = torch.tensor([digest, -digest])
    message[-1] = torch.tensor([int(problem is not None), stop_signal])
    dist.all_reduce(message, op=dist.ReduceOp.MAX, group=context.host_world_group)
    *extremes, (failed, stop_signal) = message.numpy().tolist()
    if failed:
        # A rank that failed to read explains the disagreement of its group: its reason comes first.
        problems = gather_objects(problem, context.host_world_group)
        return next(found for found in problems if found is not None), stop_signal
    return (DataError(_DIFFERENT_SAMPLES) if any(sum(pair) for pair in extremes) else None), stop_signal


def _sample_digest(drawn: StepSamples | None) -> int:
    seen = "" if drawn is None else ",".join(f"{one.slot}:{one.index}:{one.epoch}" for one in drawn.samples)
    return int.from_bytes(hashlib.blake2b(seen.encode(), digest_size=7).digest(), "little")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
