"""Whether a local cluster can run on this host, and Slurm's packages where they are missing."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.slurm.host import DAEMON_ENVIRONMENT, ClusterError, run_command
from tests.slurm.node import NAMESPACES

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "ip", "unshare", "nsenter", "mount")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "iproute2", "util-linux")
INSTALL_TIMEOUT_SECONDS = 240.0
# Debian's maintainer scripts ask this file before they start a daemon.
START_POLICY = Path("/usr/sbin/policy-rc.d")


@functools.cache
def why_not_here() -> str | None:
    """Installs what is missing, and says in one line why Slurm tests cannot run on this host; None when they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "a local Slurm cluster needs root"
    if missing_tools():
        if shutil.which("apt-get", path=DAEMON_ENVIRONMENT["PATH"]) is None:
            return f"a local Slurm cluster needs {', '.join(missing_tools())}, and there is no apt-get to install them"
        try:
            install()
        except ClusterError as error:
            return f"apt-get could not install Slurm: {_last_line(error)}"
        if missing_tools():
            return f"apt-get installed Slurm without {', '.join(missing_tools())}"
    try:
        run_command(["unshare", *NAMESPACES, "--pid", "--fork", "--kill-child", "mount", "-t", "tmpfs", "none", "/mnt"])
    except ClusterError as error:
        return f"this host allows no namespaces: {_last_line(error)}"
    return None


def missing_tools() -> list[str]:
    """Programs that a cluster needs and that the host lacks."""
    return [tool for tool in TOOLS if shutil.which(tool, path=DAEMON_ENVIRONMENT["PATH"]) is None]


def install() -> None:
    """Installs Slurm's packages and starts none of their daemons.

    Raises:
        ClusterError: apt-get failed or hung.
    """
    environment = {**DAEMON_ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=120"]
    with _no_daemon_starts():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            run_command(["apt-get", *options, *command], INSTALL_TIMEOUT_SECONDS, {**environment, **proxies})


@contextmanager
def _no_daemon_starts() -> Iterator[None]:
    if START_POLICY.exists():
        yield
        return
    START_POLICY.write_text("#!/bin/sh\nexit 101\n")
    START_POLICY.chmod(0o755)
    try:
        yield
    finally:
        START_POLICY.unlink()


def _last_line(error: ClusterError) -> str:
    return str(error).splitlines()[-1]
