"""Process 1 of a node: makes the fresh namespaces a machine of its own, runs slurmd, reaps orphans.

    python node_init.py NAME ADDRESS GATEWAY STATE_FOLDER LOGS_FOLDER

The node stays "powered on" when slurmd dies; SIGHUP starts slurmd again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

INTERFACE_TIMEOUT_SECONDS = 20.0


def main(name: str, address: str, gateway: str, state: str, logs: str) -> None:
    """Boots the node and stays until it is killed."""
    # Blocked signals wait until they are asked for; process 1 would lose them without.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGHUP})
    socket.sethostname(name)
    _mount_files(Path(state))
    _set_up_network(address, gateway)
    # The host's uptime would hide from slurmctld that this machine is new, and its jobs gone.
    _start_slurmd(name, state, logs, "-b")
    while True:
        if signal.sigwait({signal.SIGCHLD, signal.SIGHUP}) == signal.SIGHUP:
            _start_slurmd(name, state, logs)
        _reap()


def _mount_files(state: Path) -> None:
    # /sys/class/net of this node, not of the host.
    _run("mount", "-t", "sysfs", "-o", "ro", "sysfs", "/sys")
    # Shared memory is not shared between machines.
    _run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    # Names come from the hosts file alone: nobody answers DNS in here, and waiting for it costs torch seconds.
    for file in ("hosts", "nsswitch.conf", "resolv.conf"):
        if os.path.exists(f"/etc/{file}"):
            _run("mount", "--bind", str(state / file), os.path.realpath(f"/etc/{file}"))


def _set_up_network(address: str, gateway: str) -> None:
    _run("ip", "link", "set", "lo", "up")
    deadline = time.monotonic() + INTERFACE_TIMEOUT_SECONDS
    while not os.path.exists("/sys/class/net/eth0"):
        if time.monotonic() > deadline:
            sys.exit(f"no eth0 after {INTERFACE_TIMEOUT_SECONDS:g} s")
        time.sleep(0.005)
    _run("ip", "address", "add", f"{address}/24", "dev", "eth0")
    _run("ip", "link", "set", "eth0", "up")
    _run("ip", "route", "add", "default", "via", gateway)


def _start_slurmd(name: str, state: str, logs: str, *options: str) -> None:
    console = os.open(f"{logs}/{name}.console", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.posix_spawnp(
        "slurmd",
        ["slurmd", "-D", "-f", f"{state}/slurm.conf", "-N", name, *options],
        {**os.environ, "SLURM_CONF": f"{state}/slurm.conf", "HOSTNAME": name},
        file_actions=[(os.POSIX_SPAWN_DUP2, console, 1), (os.POSIX_SPAWN_DUP2, console, 2)],
        setsigmask=[],
    )
    os.close(console)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=INTERFACE_TIMEOUT_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
