"""Progress of sampling, and of anything else that counts its steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def sampling_progress(num_steps: int, label: str = "sampling", shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Shows progress on stderr while entered: a bar on a terminal, a line every tenth of the way in a log.

    Args:
        num_steps: Steps in all.
        label: Before the numbers.
        shown: False on ranks that stay silent.

    Yields:
        Call it with the number of finished steps.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task(label, total=num_steps)
        told_tenths = 0

        def update(finished: int) -> None:
            nonlocal told_tenths
            progress.update(task, completed=finished)
            tenths = 10 * finished // num_steps
            if shown and not console.is_terminal and tenths > told_tenths:
                told_tenths = tenths
                print(f"{label} {finished}/{num_steps}", file=sys.stderr, flush=True)

        yield update


@contextmanager
def lazy_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """`sampling_progress` for work whose size is known only when it has begun.

    Yields:
        Call it with what is done and with how much there is to do.
    """
    with ExitStack() as shown:
        updates: list[Callable[[int], None]] = []

        def update(done: int, total: int) -> None:
            if not updates:
                updates.append(shown.enter_context(sampling_progress(total, label)))
            updates[0](done)

        yield update
