"""Writes and reads sharded tensors in megatron-core's `torch_dist` checkpoint format.

A rank writes its own pieces and reads the pieces it needs, whatever layout wrote them. Failures reach every
rank: a rank that raised alone would leave the others waiting in a collective.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_checkpoint
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.dist_checkpointing.validation import validate_sharding_integrity
from torch.distributed.checkpoint import SavePlan, SavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from sama_mega.config.errors import CheckpointError
from sama_mega.parallel.collectives import gather_objects, gather_objects_on_first, world_group
from sama_mega.parallel.sharded_state import ShardedState

Result = TypeVar("Result")

# torch's collective failure is no `Exception`: a plain handler would let it pass.
FAILURES = (Exception, CheckpointException)

SHARD_SUFFIX = ".distcp"
"""Ends the names of the files that ranks write their pieces into."""

# At most this many names go into one message.
NAMES_SHOWN = 3

_FIXES = {
    "read": ": move it away to use the one before",
    "write": ": free the disk or change train.run_folder",
}


def save_sharded(state: ShardedState, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Writes a checkpoint's tensors; every rank calls it with its own pieces and flushes them to its disk.

    The tensors are complete once this returns; `metadata.json`, written last, marks them. Flushing the other files and
    renaming the folder from a temporary name is the caller's part.

    Args:
        state: From `shard_parameters`, `shard_flat_run` or the optimizer, merged.
        folder: Created when missing; must be visible to all ranks.
        group: All ranks; the only group that is used, so a thread of its own may save with a group of its own. None:
            the world's, in the main thread.

    Raises:
        CheckpointError: On every rank, when any rank could not write or the pieces contradict each other.
    """
    group = group or world_group()
    is_first = group.rank() == 0
    _everywhere(folder, "write", lambda: folder.mkdir(parents=True, exist_ok=True) if is_first else None, group)
    # Its own check of the pieces would gather over the world's group.
    pieces, _ = save_preprocess(dict(state), validate_access_integrity=False)
    described = gather_objects_on_first([piece.without_data() for piece in pieces.values()], group)
    _everywhere(folder, "write", lambda: validate_sharding_integrity(described) if is_first else None, group)
    _everywhere(folder, "write", lambda: _write_pieces(pieces, folder, group), group)
    _everywhere(folder, "write", lambda: mark_complete(folder) if is_first else None, group)


def load_sharded(template: ShardedState, folder: Path) -> None:
    """Fills tensors from a checkpoint of any layout; every rank calls it with its own pieces.

    Strict by section (the part of a key before its first dot): a section that is asked for must match the
    checkpoint's exactly, one that is not (optimizer state, when only weights are wanted) is left alone.

    Args:
        template: As for saving; its tensors are **filled in place**, converted to their dtype.
        folder: A complete checkpoint.

    Raises:
        CheckpointError: On every rank: not a checkpoint, damaged, or names or shapes do not match.
    """
    stored = _everywhere(folder, "read", lambda: read_shapes(folder), world_group())
    wanted: dict[str, tuple[int, ...]] = {}
    own = {piece.key: tuple(piece.global_shape) for piece in template.values()}
    for shapes in gather_objects(own, world_group()):
        wanted |= shapes
    _require_match(wanted, stored, folder)
    _everywhere(folder, "read", lambda: _read_pieces(template, folder), world_group())


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Whole shapes of a checkpoint's tensors by key; needs no process group.

    Raises:
        CheckpointError: The folder holds no complete checkpoint.
    """
    return {key: tuple(entry.size) for key, entry in _read_entries(folder).items()}


def read_plain(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Whole tensors on the CPU, in one process without process groups: for export and inspection.

    Args:
        folder: A complete checkpoint.
        prefix: Only keys that start with it; it is removed from them.

    Raises:
        CheckpointError: No complete checkpoint, a damaged one, or no such keys.
    """
    entries = {key: entry for key, entry in _read_entries(folder).items() if key.startswith(prefix)}
    if not entries:
        raise CheckpointError(f"{folder} holds no tensors named {prefix}*: it is not a checkpoint of this kind")
    tensors = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in entries.items()}
    try:
        with warnings.catch_warnings():
            # "assuming the intent is to load in a single process": it is.
            warnings.simplefilter("ignore", UserWarning)
            reader = torch_checkpoint.FileSystemReader(folder)
            torch_checkpoint.load(tensors, storage_reader=reader, no_dist=True)
    except FAILURES as error:
        raise CheckpointError(
            f"cannot read the checkpoint {folder}: {failure_reason(error)}{_FIXES['read']}"
        ) from error
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


class _Writer(torch_checkpoint.FileSystemWriter):
    """torch's writer, in this thread, saying why it fails."""

    def __init__(self, folder: Path) -> None:
        # One thread: what another raises is printed and lost, and a checkpoint without its pieces passes for complete.
        # Files are synced here, by the rank that writes them: no other host can do it.
        # Nothing is copied ahead: that asks the thread's own CUDA device, which is number 0 in every new thread.
        super().__init__(folder, thread_count=1, sync_files=True, per_thread_copy_ahead=0)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's pieces; a full disk is called that, not by what torch stumbles over because of it."""
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise disks_refusal(error) or error from None


def disks_refusal(error: BaseException) -> OSError | None:
    """What a disk said that made torch fail to save; None where no disk is to blame."""
    refusal: BaseException | None = error
    while refusal is not None and not isinstance(refusal, OSError):
        refusal = refusal.__cause__ or refusal.__context__
    return refusal


def _write_pieces(pieces: dict[str, ShardedTensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Writes this rank's pieces within this process.

    megatron's own strategy forks writers, which can inherit a held lock from a data-loading thread and then
    never return; torch's writer produces the same files in this thread, and its failures reach all ranks.
    """
    by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(pieces, keep_only_main_replica=True)
    torch_checkpoint.save(
        mcore_to_pyt_state_dict(by_key),
        storage_writer=_Writer(folder),
        planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        process_group=group,
    )


def mark_complete(folder: Path) -> None:
    """Adds what megatron needs beside the tensors; the last file of all says that they are complete."""
    # Empty, but megatron reads no folder without it; what is no tensor is in the caller's own files.
    torch.save({}, folder / COMMON_STATE_FNAME)
    # Last of all files: without it megatron and `_read_entries` take the folder for no checkpoint.
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def _read_pieces(template: ShardedState, folder: Path) -> None:
    # Main thread only, which saving need not be: filters belong to the whole process.
    with warnings.catch_warnings():
        # megatron still calls two deprecated torch functions; the user can do nothing about it.
        warnings.simplefilter("ignore", FutureWarning)
        # Integrity is checked at saving; there rank 0 alone would raise.
        dist_checkpointing.load(dict(template), str(folder), validate_access_integrity=False)


def read_metadata(folder: Path) -> Metadata:
    """Where every piece of a checkpoint's tensors lies.

    Raises:
        CheckpointError: The folder holds no complete checkpoint.
    """
    if not (folder / "metadata.json").is_file():
        raise CheckpointError(f"{folder} is not a complete checkpoint: it has no metadata.json")
    try:
        return torch_checkpoint.FileSystemReader(folder).read_metadata()
    except FAILURES as error:
        reason = failure_reason(error)
        raise CheckpointError(f"cannot read the checkpoint {folder}: {reason}{_FIXES['read']}") from error


def _read_entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    entries = read_metadata(folder).state_dict_metadata
    return {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _require_match(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    sections = {_section(key) for key in wanted}
    absent = sorted(wanted.keys() - stored.keys())
    if absent:
        raise CheckpointError(f"{folder} lacks {_show(absent)}: it was made by another recipe")
    unused = sorted(key for key in stored.keys() - wanted.keys() if _section(key) in sections)
    if unused:
        raise CheckpointError(f"{folder} has {_show(unused)} that this recipe does not: it was made by another")
    for key in sorted(wanted):
        if wanted[key] != stored[key]:
            raise CheckpointError(
                f"{key} is {list(stored[key])} in {folder} and {list(wanted[key])} in this recipe: "
                f"use the recipe that made the checkpoint"
            )


def _everywhere(folder: Path, verb: str, work: Callable[[], Result], group: dist.ProcessGroup) -> Result:
    """Runs a rank's own part and raises on all ranks when it failed on one."""
    result: Result | None = None
    problem: str | None = None
    try:
        result = work()
    except CheckpointError as error:
        problem = str(error)
    except FAILURES as error:
        problem = f"cannot {verb} the checkpoint {folder}: {failure_reason(error)}{_FIXES[verb]}"
    problems = [other for other in gather_objects(problem, group) if other is not None]
    if problems:
        raise CheckpointError(problems[0])
    return cast(Result, result)


def failure_reason(error: BaseException) -> str:
    """The innermost cause of torch's nested checkpoint errors, shortened."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _section(key: str) -> str:
    return key.split(".", 1)[0]


def _show(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
