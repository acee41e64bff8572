"""A real Slurm cluster on one Linux host, for tests.

    with LocalCluster(tmp_path, nodes=2) as cluster:
        job_id = cluster.sbatch("--nodes=2", "slurm/stage0.sh", cwd=repository)
        cluster.wait_for(job_id, "COMPLETED", timeout_seconds=60)

slurmctld and munge run on the host, every node in namespaces of its own (`node.py`): hostname, network, processes and
/dev/shm. All else of the file system is shared, as on a cluster. Several clusters may run at once (`registry.py`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.commands import SlurmCommands
from tests.slurm.configuration import ClusterSettings, host_memory_mib, write_configuration
from tests.slurm.host import COMMAND_TIMEOUT_SECONDS, ClusterError, HostProcess, poll, run_command
from tests.slurm.namespaces import NamespacedProcess
from tests.slurm.node import Node
from tests.slurm.registry import Slot, claim_slot

UP_TIMEOUT_SECONDS = 60.0
# Variables that steer Slurm's commands.
OTHER_SLURMS = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SCANCEL_", "SQUEUE_", "SINFO_")


class LocalCluster(SlurmCommands):
    """slurmctld and some slurmd, with faults at hand; a context manager.

    Attributes:
        folder: Holds `logs/`, which stays when the cluster is gone.
        logs: `slurmctld.log`, one `node1.log` per slurmd, and the daemons' `.console`s: what they printed.
        nodes: Names of the nodes: `node1` ...
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 2,
        cpus_per_node: int = 2,
        memory_mib: int | None = None,
        fake_gpus_per_node: int = 0,
        slurmd_timeout_seconds: int = 20,
        kill_wait_seconds: int = 5,
        requeue_wait_seconds: int = 5,
    ) -> None:
        """Only keeps the settings (see `ClusterSettings`); `up` starts everything.

        Args:
            folder: For the logs.
            nodes: Number of nodes.
            cpus_per_node: What a node declares; may exceed the host's.
            memory_mib: What a node declares; the host's memory when None.
            fake_gpus_per_node: GPUs to grant that do not exist.
            slurmd_timeout_seconds: A node that is silent for so long is DOWN.
            kill_wait_seconds: Between SIGTERM and SIGKILL at a job's end.
            requeue_wait_seconds: A requeued job starts again one or two seconds after this many; at least 5. Starting a
                step must not take longer.
        """
        super().__init__(folder / "logs")
        self.folder = folder
        self.settings = ClusterSettings(
            nodes=nodes,
            cpus_per_node=cpus_per_node,
            memory_mib=memory_mib or host_memory_mib(),
            fake_gpus_per_node=fake_gpus_per_node,
            slurmd_timeout_seconds=slurmd_timeout_seconds,
            kill_wait_seconds=kill_wait_seconds,
            requeue_wait_seconds=requeue_wait_seconds,
        )
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        self._slot: Slot | None = None
        self._daemons: list[NamespacedProcess] = []
        self._nodes: dict[str, Node] = {}

    def __enter__(self) -> LocalCluster:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def environment(self) -> dict[str, str]:
        """This process's variables, without those of another Slurm, and one thread per process."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(OTHER_SLURMS)}
        return {**kept, "SLURM_CONF": str(self._running_slot().folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def up(self) -> None:
        """Starts everything and waits until every node takes jobs.

        Raises:
            ClusterError: Something did not start; nothing is left running.
        """
        if self._slot is not None:
            raise ClusterError(f"the cluster of {self.folder} is up already")
        self.logs.mkdir(parents=True, exist_ok=True)
        self._slot = claim_slot()
        try:
            write_configuration(self._slot, self.logs, self.settings)
            self._start_network()
            self._start_munge()
            self._start_controller()
            self._start_nodes()
            self._wait_for_nodes()
        except ClusterError as error:
            report = self.report()
            self.down()
            raise ClusterError(f"the cluster does not start: {error}\n{report}") from None
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends everything on the nodes, then the daemons; does nothing when the cluster is down."""
        if self._slot is None:
            return
        try:
            for node in self._nodes.values():
                node.power_off()
            for daemon in reversed(self._daemons):
                daemon.end()
        finally:
            self._slot.release()
            self._slot, self._nodes, self._daemons = None, {}, []

    def kill_slurmd(self, node: str) -> None:
        """Kills the daemon alone; the tasks of jobs live on."""
        self._nodes[node].kill_slurmd()

    def start_slurmd(self, node: str) -> None:
        """Starts the daemon again."""
        self._nodes[node].start_slurmd()

    def kill_node(self, node: str) -> None:
        """Pulls the plug: all of the node ends at once, and the others hear nothing from it any more."""
        self._nodes[node].power_off()

    def start_node(self, node: str) -> None:
        """Powers a node on after `kill_node`; its own files and mounts are gone."""
        self._nodes[node].power_on()

    def cut(self, node: str) -> None:
        """Pulls the node's network cable; everything on it lives on."""
        self._nodes[node].set_link(up=False)

    def heal(self, node: str) -> None:
        """Plugs the network cable in again; slurmctld may take a minute to see it, or see `resume`."""
        self._nodes[node].set_link(up=True)

    def resume(self, node: str) -> None:
        """Has slurmctld take a DOWN node back at once, as an operator would."""
        self.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def processes_on(self, node: str) -> list[HostProcess]:
        """What runs on a node, by the host's pids; empty when the node is off."""
        return self._nodes[node].processes()

    def run_on(
        self,
        node: str,
        command: Sequence[str],
        timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on one node, outside of any job, in its root folder.

        Mounts made so are seen by this node's jobs alone, and are gone with its power.

        Raises:
            ClusterError: It took too long, or failed and `check` is set.
        """
        return self._nodes[node].run(command, self.environment, timeout_seconds, check)

    def mount_tmpfs(self, node: str, path: Path, size_mib: int) -> None:
        """Lays an empty file system of its own over `path` (made where missing) on one node."""
        path.mkdir(parents=True, exist_ok=True)
        self.run_on(node, ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)])

    def _start_network(self) -> None:
        slot = self._running_slot()
        run_command(["ip", "link", "add", slot.bridge, "type", "bridge"])
        run_command(["ip", "address", "add", f"{slot.host_address}/24", "dev", slot.bridge])
        run_command(["ip", "link", "set", slot.bridge, "up"])

    def _start_munge(self) -> None:
        folder = self._running_slot().folder / "munge"
        files = [f"--{kind}-file={folder}/{kind}" for kind in ("key", "pid", "seed")]
        socket = folder / "socket"
        self._start("munged", "--foreground", f"--socket={socket}", *files)
        if not poll(socket.exists, COMMAND_TIMEOUT_SECONDS):
            raise ClusterError("no munged")

    def _start_controller(self) -> None:
        self._start("slurmctld", "-D", "-c", "-f", str(self._running_slot().folder / "slurm.conf"))

    def _start(self, daemon: str, *arguments: str) -> None:
        process = NamespacedProcess([daemon, *arguments], self.logs / f"{daemon}.console")
        self._daemons.append(process)
        self._running_slot().record(process)

    def _start_nodes(self) -> None:
        slot = self._running_slot()
        for number, name in enumerate(self.nodes, start=1):
            (slot.folder / "spool" / name).mkdir()
            self._nodes[name] = Node(number, slot, self.logs)
            self._nodes[name].power_on()

    def _wait_for_nodes(self) -> None:
        def settled() -> bool:
            return not self._all_alive() or self._all_idle()

        if not poll(settled, UP_TIMEOUT_SECONDS) or not self._all_alive():
            raise ClusterError("a daemon or a node ended" if not self._all_alive() else "not all nodes are IDLE")

    def _all_alive(self) -> bool:
        return all(daemon.alive for daemon in self._daemons) and all(node.alive for node in self._nodes.values())

    def _all_idle(self) -> bool:
        command = ["sinfo", "--noheader", "--Node", "--format=%T"]
        answer = run_command(command, environment=self.environment, check=False)
        return answer.returncode == 0 and answer.stdout.split() == ["idle"] * len(self.nodes)

    def _running_slot(self) -> Slot:
        if self._slot is None:
            raise ClusterError(f"the cluster of {self.folder} is down")
        return self._slot
