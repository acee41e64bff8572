"""Slurm's commands as tests use them: submit, cancel, signal, look, wait."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tests.slurm.host import ClusterError, poll, run_command

# A job in one of these stays there, unless somebody requeues it.
FINAL_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
TAIL_LINES = 15


class SlurmCommands(ABC):
    """The client's side of a cluster; remembers the jobs it submitted, to report on them.

    Attributes:
        logs: Folder with the daemons' logs.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._submitted: list[int] = []

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Variables for every command that shall speak to this cluster."""

    def slurm(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Runs one of Slurm's commands here, outside the nodes, and returns what it printed.

        Raises:
            ClusterError: It failed or hung.
        """
        return run_command(command, environment={**self.environment, **(env or {})}, cwd=cwd).stdout

    def sbatch(self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> int:
        """Submits a job.

        Args:
            *arguments: As after `sbatch`.
            cwd: Folder of submission.
            env: Variables to add to `environment`.

        Returns:
            The job's number.
        """
        job_id = int(self.slurm("sbatch", "--parsable", *arguments, cwd=cwd, env=env))
        self._submitted.append(job_id)
        return job_id

    def cancel(self, job_id: int) -> None:
        """Ends a job as `scancel` does."""
        self.slurm("scancel", str(job_id))

    def signal(self, job_or_step: int | str, name: str, batch: bool = False) -> None:
        """Sends a signal to every step of a job, to one step (`"12.0"`), or with `batch` to the batch shell alone."""
        self.slurm("scancel", f"--signal={name}", *(["--batch"] if batch else []), str(job_or_step))

    def job(self, job_id: int) -> dict[str, str]:
        """All that `scontrol show job` says, by field."""
        fields: dict[str, str] = {}
        for line in self.slurm("scontrol", "show", "job", str(job_id)).splitlines():
            for part in re.split(r"\s(?=[A-Z][\w/:]*=)", line.strip()):
                key, _, value = part.partition("=")
                fields[key] = value
        return fields

    def state(self, job_id: int) -> str:
        """The job's state, such as PENDING, RUNNING, COMPLETING or COMPLETED; finished jobs stay visible."""
        return self.job(job_id)["JobState"]

    def restarts(self, job_id: int) -> int:
        """How often the job was requeued."""
        return int(self.job(job_id)["Restarts"])

    def exit_code(self, job_id: int) -> int:
        """Exit status of the batch script as a shell says it: 128 + number when a signal ended it."""
        status, _, number = self.job(job_id)["ExitCode"].partition(":")
        return 128 + int(number) if int(number) else int(status)

    def log(self, job_id: int) -> Path:
        """The file with the batch script's output."""
        return Path(self.job(job_id)["StdOut"])

    def node_state(self, node: str) -> str:
        """Such as IDLE, MIXED, ALLOCATED, DOWN; a trailing * says that the node does not answer."""
        return self.slurm("sinfo", "--noheader", f"--nodes={node}", "--format=%T").strip().upper()

    def jobs_alive(self) -> list[int]:
        """Jobs that wait, run or complete."""
        return [int(line) for line in self.slurm("squeue", "--noheader", "--format=%A").split()]

    def wait_for(self, job_id: int, states: str | Collection[str], timeout_seconds: float) -> str:
        """Waits until the job is in one of `states`; fails at once when it ended in another.

        Returns:
            The state.

        Raises:
            ClusterError: With the job's record, its output and the daemons' logs.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        seen = ""

        def arrived() -> bool:
            nonlocal seen
            seen = self.state(job_id)
            if seen in FINAL_STATES - wanted:
                raise ClusterError(f"job {job_id} is {seen}, not {' or '.join(sorted(wanted))}\n{self.report()}")
            return seen in wanted

        self.wait_until(arrived, timeout_seconds, f"job {job_id} to be {' or '.join(sorted(wanted))}")
        return seen

    def wait_for_node(self, node: str, states: str | Collection[str], timeout_seconds: float) -> None:
        """Waits until a node is in one of `states` (see `node_state`).

        Raises:
            ClusterError: As `wait_for`.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        self.wait_until(lambda: self.node_state(node) in wanted, timeout_seconds, f"{node} to be {sorted(wanted)}")

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float, what: str) -> None:
        """Waits until `condition` holds.

        Args:
            condition: Asked every 0.05 s.
            timeout_seconds: How long.
            what: For the message: "waited N s for ...".

        Raises:
            ClusterError: With every submitted job's record and output, and the daemons' logs.
        """
        if not poll(condition, timeout_seconds):
            raise ClusterError(f"waited {timeout_seconds:g} s for {what}\n{self.report()}")

    def report(self) -> str:
        """What a person needs to understand a failure: nodes, jobs, ends of the logs."""
        parts = [_try_command(self.slurm, "sinfo", "--Node", "--long")]
        for job_id in self._submitted:
            parts.append(_try_command(self.slurm, "scontrol", "show", "job", str(job_id)))
            try:
                parts.append(_tail(self.log(job_id)))
            except (ClusterError, KeyError):
                continue
        # A console repeats its log, but for what was said before there was one.
        logs = [
            log for log in sorted(self.logs.iterdir()) if not log.with_suffix(".log").exists() or log.suffix == ".log"
        ]
        parts += [_tail(log) for log in logs]
        return "\n".join(part for part in parts if part)


def _try_command(run: Callable[..., str], *command: str) -> str:
    try:
        return run(*command)
    except ClusterError as error:
        return str(error)


def _tail(file: Path) -> str:
    if not file.is_file():
        return f"--- {file}: none"
    lines = file.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join([f"--- {file}", *lines]) if lines else ""
