"""The clusters of this host: each holds one numbered slot, and a slot whose holder died is cleaned by the next one.

A slot is a lock that the kernel gives back when its holder ends, however it ends. Its number makes the cluster's
names, addresses and ports; its folder is short, because Unix sockets live there and their paths may have 107
characters only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.slurm.host import COMMAND_TIMEOUT_SECONDS, ClusterError, find_process, poll, run_command
from tests.slurm.namespaces import NamespacedProcess

SLOTS_FOLDER = Path("/run/sama-mega-slurm")
MAX_CLUSTERS = 64
FIRST_PORT = 26800


class Slot:
    """One cluster's number, folder, names and addresses on this host.

    Attributes:
        number: Free numbers are given out from 0.
        folder: State of the daemons; removed by `release`.
        bridge: Network interface of the host that joins the nodes.
        host_address: Address of the host on the bridge.
        controller_port: Where slurmctld listens.
        node_port: Where every slurmd listens, each at its own address.
    """

    def __init__(self, number: int, lock: IO[str]) -> None:
        self.number = number
        self.folder = SLOTS_FOLDER / str(number)
        self.bridge = f"samaslurm{number}"
        self.host_address = f"10.78.{number}.1"
        self.controller_port = FIRST_PORT + 2 * number
        self.node_port = self.controller_port + 1
        self._lock = lock

    def link(self, node_number: int) -> str:
        """Network interface of the host that leads to a node; the kernel allows 15 characters."""
        return f"{self.bridge}-{node_number}"

    def node_address(self, node_number: int) -> str:
        """Address of a node, counted from 1."""
        return f"10.78.{self.number}.{10 + node_number}"

    def record(self, process: NamespacedProcess) -> None:
        """Writes a process down, for the one that cleans up if this test run is killed."""
        with self._records.open("a") as file:
            file.write(json.dumps([process.init.pid, process.init.start_ticks]) + "\n")

    def release(self) -> None:
        """Cleans up and gives the number back."""
        self.clean()
        self._lock.close()

    def clean(self) -> None:
        """Ends the recorded processes with all that they started, and removes the network interfaces and the folder."""
        alive = [process for process in self._recorded() if _runs(*process)]
        for pid, _ in alive:
            os.kill(pid, signal.SIGKILL)
        if not poll(lambda: not any(_runs(*process) for process in alive), COMMAND_TIMEOUT_SECONDS):
            raise ClusterError(f"processes {alive} of {self.folder} do not end")
        for interface in self._interfaces():
            # A link whose node just ended goes by itself, perhaps between the look and the command.
            run_command(["ip", "link", "delete", interface], check=False)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def belongs_to_another(self) -> bool:
        """Whether a container that shares this host's network, but not its /run, has a cluster of this number."""
        return not self.folder.exists() and self._interfaces() != []

    def _interfaces(self) -> list[str]:
        names = os.listdir("/sys/class/net")
        return [name for name in names if name == self.bridge or name.startswith(f"{self.bridge}-")]

    @property
    def _records(self) -> Path:
        return self.folder / "processes.jsonl"

    def _recorded(self) -> Iterator[tuple[int, int]]:
        if self._records.exists():
            for line in self._records.read_text().splitlines():
                pid, start_ticks = json.loads(line)
                yield pid, start_ticks


def claim_slot() -> Slot:
    """Takes the first free slot, and cleans every free slot that a killed test run left behind.

    Returns:
        The slot, with an empty folder.

    Raises:
        ClusterError: All are taken.
    """
    SLOTS_FOLDER.mkdir(mode=0o755, exist_ok=True)
    claimed: Slot | None = None
    for number in range(MAX_CLUSTERS):
        if claimed is not None and not (SLOTS_FOLDER / str(number)).exists():
            continue
        slot = _try_slot(number)
        if slot is None:
            continue
        slot.clean()
        if claimed is None:
            claimed = slot
        else:
            slot.release()
    if claimed is None:
        raise ClusterError(f"{MAX_CLUSTERS} clusters run on this host; see {SLOTS_FOLDER}")
    claimed.folder.mkdir(mode=0o755)
    return claimed


def _try_slot(number: int) -> Slot | None:
    lock = (SLOTS_FOLDER / f"{number}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    slot = Slot(number, lock)
    if slot.belongs_to_another():
        lock.close()
        return None
    return slot


def _runs(pid: int, start_ticks: int) -> bool:
    process = find_process(pid)
    return process is not None and process.start_ticks == start_ticks and process.state != "Z"
