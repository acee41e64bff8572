"""What this host runs: commands with a time-out, and the processes of every namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# The daemons know nothing of the shell that started the tests.
DAEMON_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
COMMAND_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05


class ClusterError(AssertionError):
    """The cluster, or a command on it, did not do what a test needs."""


@dataclass(frozen=True)
class HostProcess:
    """One process, in whatever namespace it lives; equal to an earlier look at the same one.

    Attributes:
        pid: As the host sees it.
        parent_pid: As the host sees it.
        name: The kernel's name for it, at most 15 characters.
        state: One letter: R runs, S sleeps, T is stopped, Z waits to be reaped.
        start_ticks: Since boot; with `pid` it names a process for good.
    """

    pid: int
    parent_pid: int = field(compare=False)
    name: str = field(compare=False)
    state: str = field(compare=False)
    start_ticks: int

    @property
    def command(self) -> str:
        """The command line, words joined by spaces; empty once the process is gone."""
        return _read_proc(self.pid, "cmdline").replace("\0", " ").strip()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the process was started with; empty once it is gone."""
        entries = _read_proc(self.pid, "environ").split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def find_process(pid: int) -> HostProcess | None:
    """The process with this pid, or None."""
    # The name stands in brackets and may hold spaces and brackets itself.
    head, _, tail = _read_proc(pid, "stat").rpartition(")")
    fields = tail.split()
    if not fields:
        return None
    return HostProcess(pid, int(fields[1]), head.partition("(")[2], fields[0], int(fields[19]))


def all_processes() -> Iterator[HostProcess]:
    """Every process of the host, those of the nodes included."""
    for entry in os.listdir("/proc"):
        process = find_process(int(entry)) if entry.isdigit() else None
        if process is not None:
            yield process


def pid_namespace(pid: int) -> str:
    """Name of the pid namespace of a process; empty once it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def poll(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Asks until `condition` holds or the time is over; whether it held."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def run_command(
    command: Sequence[str],
    timeout_seconds: float = COMMAND_TIMEOUT_SECONDS,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, or ends it and whatever it started.

    Args:
        command: Program and arguments.
        timeout_seconds: Afterwards its whole process group is killed.
        environment: All its variables; the daemons' when None.
        cwd: Where it runs; here when None.
        check: Raise when it fails.

    Returns:
        Status, and both outputs as text.

    Raises:
        ClusterError: It took too long, or failed and `check` is set.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=dict(DAEMON_ENVIRONMENT if environment is None else environment),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(command)}: no end after {timeout_seconds:g} s") from None
    finally:
        if process.returncode is None:
            end_group(process)
    if check and process.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: status {process.returncode}: {(errors or output).strip()}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def end_group(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Kills the session that a process leads, and reaps the process."""
    # Not reaped yet, so the number is still this process's.
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=COMMAND_TIMEOUT_SECONDS)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read_proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
