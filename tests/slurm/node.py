"""One node of a cluster: a set of namespaces of this host (network, hostname, mounts, processes, shared memory)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.slurm.host import COMMAND_TIMEOUT_SECONDS, ClusterError, HostProcess, poll, run_command
from tests.slurm.namespaces import NamespacedProcess
from tests.slurm.registry import Slot

INIT = Path(__file__).with_name("node_init.py")
# The file system is the host's, as a cluster's parallel file system is; what each node has alone is in node_init.py.
NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--mount-proc")


class Node:
    """A machine that can be powered, cut off and looked into.

    Attributes:
        name: Its hostname.
        number: Counted from 1.
    """

    def __init__(self, number: int, slot: Slot, logs: Path) -> None:
        self.name = f"node{number}"
        self.number = number
        self._slot = slot
        self._logs = logs
        self._machine: NamespacedProcess | None = None

    def power_on(self) -> None:
        """Starts the node with fresh namespaces; slurmd follows by itself."""
        if self._machine is not None:
            raise ClusterError(f"{self.name} is on already")
        slot, name = self._slot, self.name
        init = [sys.executable, "-I", "-S", str(INIT), name, slot.node_address(self.number), slot.host_address]
        command = [*init, str(slot.folder), str(self._logs)]
        self._machine = NamespacedProcess(command, self._logs / f"{name}.console", NAMESPACES)
        slot.record(self._machine)
        link = slot.link(self.number)
        peer = ["peer", "name", "eth0", "netns", str(self._machine.init.pid)]
        run_command(["ip", "link", "add", link, "type", "veth", *peer])
        run_command(["ip", "link", "set", link, "master", slot.bridge, "up"])

    def power_off(self) -> None:
        """Ends everything on the node at once; the others hear nothing, as if its plug were pulled."""
        if self._machine is None:
            return
        # First the wire: a closing socket would say goodbye.
        run_command(["ip", "link", "delete", self._slot.link(self.number)], check=False)
        self._machine.end()
        self._machine = None

    def set_link(self, up: bool) -> None:
        """Plugs the node's network in, or pulls it."""
        run_command(["ip", "link", "set", self._slot.link(self.number), "up" if up else "down"])

    def kill_slurmd(self) -> None:
        """Kills slurmd alone; the tasks of jobs live on.

        Raises:
            ClusterError: It does not run.
        """
        slurmd = self._slurmd()
        if slurmd is None:
            raise ClusterError(f"{self.name} has no slurmd to kill")
        os.kill(slurmd.pid, signal.SIGKILL)
        if not poll(lambda: self._slurmd() is None, COMMAND_TIMEOUT_SECONDS):
            raise ClusterError(f"slurmd of {self.name} does not end")

    def start_slurmd(self) -> None:
        """Starts slurmd unless it runs.

        Raises:
            ClusterError: The node is off, or slurmd does not come.
        """
        if self._slurmd() is not None:
            return
        os.kill(self._running_init().pid, signal.SIGHUP)
        if not poll(lambda: self._slurmd() is not None, COMMAND_TIMEOUT_SECONDS):
            raise ClusterError(f"slurmd of {self.name} does not start; see {self._logs / f'{self.name}.console'}")

    @property
    def alive(self) -> bool:
        """Whether the node has power and did not fail to boot."""
        return self._machine is not None and self._machine.alive

    def processes(self) -> list[HostProcess]:
        """Everything that runs on the node, by the host's pids; empty when it is off."""
        return [] if self._machine is None else self._machine.processes()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], timeout_seconds: float, check: bool
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside the node's namespaces, in /; see `host.run_command`."""
        enter = ["nsenter", f"--target={self._running_init().pid}", "--net", "--uts", "--ipc", "--mount", "--pid"]
        return run_command([*enter, "--", *command], timeout_seconds, environment, check=check)

    def _running_init(self) -> HostProcess:
        if self._machine is None or not self.alive:
            raise ClusterError(f"{self.name} is off")
        return self._machine.init

    def _slurmd(self) -> HostProcess | None:
        # slurmd forks for a moment when it starts a step; the daemon is process 1's child.
        init = self._running_init()
        found = [p for p in self.processes() if p.name == "slurmd" and p.parent_pid == init.pid and p.state != "Z"]
        return found[0] if found else None
