"""Processes in namespaces of their own, which end with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.host import (
    COMMAND_TIMEOUT_SECONDS,
    DAEMON_ENVIRONMENT,
    ClusterError,
    HostProcess,
    all_processes,
    end_group,
    find_process,
    pid_namespace,
    poll,
)


class NamespacedProcess:
    """Process 1 of a new pid namespace, and the `unshare` that waits for it.

    Whatever process 1 starts, in whatever session, ends with it; so it does when only `unshare` is killed.

    Attributes:
        init: Process 1, as the host sees it.
        outer_pid: `unshare`, a child of this process.
    """

    def __init__(self, command: Sequence[str], log: Path, namespaces: Sequence[str] = ()) -> None:
        """Starts it.

        Args:
            command: What becomes process 1.
            log: Gets its output, appended.
            namespaces: Further options for `unshare`.

        Raises:
            ClusterError: It did not start.
        """
        unshare = ["unshare", *namespaces, "--pid", "--fork", "--kill-child=KILL"]
        with log.open("ab") as output:
            self._outer = subprocess.Popen(
                [*unshare, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=DAEMON_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        found = self._wait_for_init()
        if found is None:
            end_group(self._outer)
            raise ClusterError(f"{command[0]} does not start; see {log}")
        self.init = found
        self.outer_pid = self._outer.pid

    @property
    def alive(self) -> bool:
        """Whether process 1 runs."""
        return self._outer.poll() is None

    def processes(self) -> list[HostProcess]:
        """Everything in the namespace, zombies included."""
        namespace = pid_namespace(self.init.pid) if self.alive else ""
        if not namespace:
            return []
        return [process for process in all_processes() if pid_namespace(process.pid) == namespace]

    def end(self) -> None:
        """Kills everything in the namespace, and returns when all of it is gone."""
        # Not `unshare` first: process 1 would go to the host's process 1, which may take its time to reap it.
        if self.alive and find_process(self.init.pid) == self.init:
            os.kill(self.init.pid, signal.SIGKILL)
            poll(lambda: not self.alive, COMMAND_TIMEOUT_SECONDS)
        end_group(self._outer)

    def _wait_for_init(self) -> HostProcess | None:
        found: list[HostProcess] = []

        def started() -> bool:
            found.extend(process for process in all_processes() if process.parent_pid == self._outer.pid)
            return bool(found) or self._outer.poll() is not None

        poll(started, COMMAND_TIMEOUT_SECONDS)
        return found[0] if found else None
