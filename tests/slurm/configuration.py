"""The files that a cluster's daemons read."""

from __future__ import annotations

import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.registry import Slot


@dataclass(frozen=True)
class ClusterSettings:
    """What a cluster declares and how long it waits.

    Attributes:
        nodes: Number of nodes.
        cpus_per_node: Declared; may exceed the host's.
        memory_mib: Declared per node; not enforced.
        fake_gpus_per_node: Generic resources `gpu` without a device behind them.
        slurmd_timeout_seconds: A node that is silent for so long is DOWN; small values take three times as long.
        kill_wait_seconds: Between SIGTERM and SIGKILL at a job's end.
        requeue_wait_seconds: A requeued job starts again one or two seconds after this many; at least 5.
    """

    nodes: int
    cpus_per_node: int
    memory_mib: int
    fake_gpus_per_node: int
    slurmd_timeout_seconds: int
    kill_wait_seconds: int
    requeue_wait_seconds: int

    def __post_init__(self) -> None:
        """Refuses what Slurm would quietly replace by its default of 120 s."""
        if self.requeue_wait_seconds < 5:
            raise ValueError(f"requeue_wait_seconds ({self.requeue_wait_seconds}) must be at least 5")


def host_memory_mib() -> int:
    """Memory of this host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def write_configuration(slot: Slot, logs: Path, settings: ClusterSettings) -> None:
    """Writes every file into the slot's folder."""
    folder = slot.folder
    for name in ("munge", "controller", "spool", "gpus"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    (folder / "slurm.conf").write_text(_slurm_conf(slot, logs, settings))
    (folder / "gres.conf").write_text(_gres_conf(folder / "gpus", settings.fake_gpus_per_node))
    # Nothing here uses cgroups, yet Slurm insists on knowing their version, and finds none where they are not mounted.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
    _write_name_service(slot, settings.nodes)


def _slurm_conf(slot: Slot, logs: Path, settings: ClusterSettings) -> str:
    folder, host = slot.folder, socket.gethostname().partition(".")[0]
    gres = f" Gres=gpu:{settings.fake_gpus_per_node}" if settings.fake_gpus_per_node else ""
    declared = f"CPUs={settings.cpus_per_node} RealMemory={settings.memory_mib}{gres} State=UNKNOWN"
    nodes = [
        f"NodeName=node{number} NodeAddr={slot.node_address(number)} {declared}"
        for number in range(1, settings.nodes + 1)
    ]
    lines = [
        f"ClusterName={slot.bridge}",
        f"SlurmctldHost={host}({slot.host_address})",
        f"SlurmctldPort={slot.controller_port}",
        f"SlurmdPort={slot.node_port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        # A requeued job waits until the old life's credentials have expired.
        f"AuthInfo=socket={folder}/munge/socket,cred_expire={settings.requeue_wait_seconds}",
        f"StateSaveLocation={folder}/controller",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={logs}/slurmctld.log",
        f"SlurmdLogFile={logs}/%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "GresTypes=gpu",
        # Take the declared sizes for real.
        "SlurmdParameters=config_overrides",
        # Jobs start at the next whole second.
        "SchedulerParameters=bf_interval=1",
        "ReturnToService=2",
        f"SlurmdTimeout={settings.slurmd_timeout_seconds}",
        # Slurm asks a silent node for as long as this before it calls it silent.
        f"MessageTimeout={min(10, settings.slurmd_timeout_seconds)}",
        f"KillWait={settings.kill_wait_seconds}",
        # A busy host may need long to start a job.
        "BatchStartTimeout=60",
        # Finished jobs stay visible for the whole test run.
        "MinJobAge=7200",
        *nodes,
        "PartitionName=main Nodes=ALL Default=YES OverSubscribe=NO MaxTime=INFINITE State=UP",
    ]
    return "\n".join(lines) + "\n"


def _gres_conf(folder: Path, gpus: int) -> str:
    for index in range(gpus):
        # Slurm wants a device; this is /dev/null's number.
        os.mknod(folder / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return "".join(f"Name=gpu File={folder}/gpu{index}\n" for index in range(gpus))


def _write_name_service(slot: Slot, nodes: int) -> None:
    names = [("127.0.0.1", "localhost")]
    names += [(slot.node_address(number), f"node{number}") for number in range(1, nodes + 1)]
    (slot.folder / "hosts").write_text("".join(f"{address} {name}\n" for address, name in names))
    switch = Path("/etc/nsswitch.conf")
    lines = switch.read_text().splitlines() if switch.exists() else []
    kept = [line for line in lines if not line.startswith("hosts:")]
    (slot.folder / "nsswitch.conf").write_text("\n".join([*kept, "hosts: files"]) + "\n")
    (slot.folder / "resolv.conf").write_text("")
