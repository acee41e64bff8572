"""Runs one function as several ranks and brings their results, or their tracebacks, back to the test.

    results = run_distributed(worker, world_size=2, timeout_seconds=60, args=(folder,))

`worker` is a module-level function. Importing torch and megatron-core costs seconds per process, so a test
module starts its ranks once, in a module-scoped fixture whose worker runs every case and returns a dict of
outcomes.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sama_mega.parallel.launch import end_ranks, start_ranks, wait_for_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
# After one rank failed, the others get this long to print their tracebacks.
GRACE_SECONDS = 2.0
IMPORT_PATHS = (REPOSITORY, REPOSITORY / "kernels", REPOSITORY / "data")


class DistributedError(AssertionError):
    """A rank raised, died or did not come back in time; the message holds every rank's output."""


def run_distributed(
    function: Callable[..., Any], world_size: int, timeout_seconds: float, args: tuple[Any, ...] = ()
) -> list[Any]:
    """Calls `function(*args)` in `world_size` fresh processes with torchrun's variables set.

    Args:
        function: Module-level function of a file; `start_parallel` inside it finds the ranks.
        world_size: Number of processes.
        timeout_seconds: Afterwards every process is killed and the call fails.
        args: Picklable; the same on every rank.

    Returns:
        What the function returned, by rank.

    Raises:
        DistributedError: With the traceback or the output of every rank that did not return.
    """
    with tempfile.TemporaryDirectory(prefix="sama_mega_test_") as name:
        folder = Path(name)
        call = (inspect.getsourcefile(function), function.__module__, function.__qualname__, args)
        (folder / "call.pickle").write_bytes(pickle.dumps(call))
        logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
        ranks = start_ranks(world_size, [sys.executable, __file__, name], folder, logs)
        problem = ""
        try:
            if wait_for_ranks(ranks, GRACE_SECONDS, timeout_seconds) is not None:
                problem = "a rank failed"
        except TimeoutError as error:
            problem = str(error)
        finally:
            end_ranks(ranks)
        if problem:
            raise DistributedError(_report(problem, [rank.returncode for rank in ranks], logs))
        return [pickle.loads((folder / f"result{rank}.pickle").read_bytes()) for rank in range(world_size)]


def _report(problem: str, statuses: list[int], logs: list[Path]) -> str:
    parts = [f"{problem} (exit statuses {statuses}; -9 = killed by this call)"]
    for rank, log in enumerate(logs):
        parts.append(f"--- rank {rank} ---\n{log.read_text(errors='replace')[-6000:]}")
    return "\n".join(parts)


def _load_module(path: str, name: str) -> ModuleType:
    """Imports the test file under the name the parent knows, so that its classes unpickle there."""
    if name == "__main__":
        name = "distributed_main"
    try:
        return importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _run_rank(folder: Path) -> None:
    path, module_name, qualified_name, args = pickle.loads((folder / "call.pickle").read_bytes())
    function: Any = _load_module(path, module_name)
    for part in qualified_name.split("."):
        function = getattr(function, part)
    result = function(*args)
    (folder / f"result{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    # Run by file name: this folder leads sys.path, and must not stand in for any installed package.
    sys.path[0:1] = [str(path) for path in IMPORT_PATHS]
    try:
        _run_rank(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        # Other ranks may be stuck in a collective: leave without waiting for process groups to close.
        sys.stderr.flush()
        os._exit(1)
