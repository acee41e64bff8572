"""What a node and its software are like."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from sama_mega.cluster.health.facts import MachineFacts, SoftwareFacts
from sama_mega.cluster.health.messages import is_loopback
from sama_mega.cluster.health.time_limit import within
from sama_mega.observe.environment import installed_versions

PACKAGES = ("sama_mega", "sama_kernels", "sama_data")
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_DIGEST_DIGITS = 12
_NAME_SECONDS = 5.0
_GET_INTERFACE_ADDRESS = 0x8915
_SHARED_MEMORY = "/dev/shm"
_GIB = 1 << 30


def node_name(environ: Mapping[str, str]) -> str:
    """The node's name as Slurm knows it, which is what `sbatch --exclude` takes; elsewhere the host's."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def probe_software() -> SoftwareFacts:
    """Versions of the packages and digests of the framework's own files."""
    return SoftwareFacts(versions=installed_versions(), code=digest_code(PACKAGES))


def digest_code(packages: tuple[str, ...]) -> dict[str, str]:
    """Digest of every Python file by its place in its package, for packages that can be found; imports none."""
    digests = {}
    for package in packages:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or []) if spec is not None else []:
            for folder, _, names in os.walk(root):
                for name in names:
                    if name.endswith(".py"):
                        path = Path(folder) / name
                        place = f"{package}/{path.relative_to(root)}"
                        digests[place] = hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGEST_DIGITS]
    return dict(sorted(digests.items()))


def digest_all(code: Mapping[str, str]) -> str:
    """One digest of all of them."""
    text = "\n".join(f"{place} {digest}" for place, digest in sorted(code.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_DIGITS]


def probe_machine(environ: Mapping[str, str], local_address: str | None, open_files: int) -> MachineFacts:
    """The rest of a node.

    Args:
        environ: Says which network interfaces the user chose.
        local_address: This node's address on the way to the other ranks, or None.
        open_files: The limit that this process started with.
    """
    try:
        shared_memory = shutil.disk_usage(_SHARED_MEMORY).free / _GIB
    except OSError:
        shared_memory = None
    if local_address is not None and is_loopback(local_address):
        local_address = None  # rank 0 is on this host
    return MachineFacts(
        cpus=len(os.sched_getaffinity(0)),
        shared_memory_free_gib=shared_memory,
        loopback=None if local_address is None else resolve_to_loopback(socket.gethostname()),
        interface=None if local_address is None else find_interface(local_address),
        chosen_interfaces=tuple(name for name in INTERFACE_VARIABLES if environ.get(name)),
        open_files=open_files,
    )


def resolve_to_loopback(name: str) -> str | None:
    """What a host's own name means where no other host can reach that: a loopback address, or `no address`."""
    try:
        entries = within(_NAME_SECONDS, lambda: socket.getaddrinfo(name, None, type=socket.SOCK_STREAM))
    except OSError:
        return "no address"
    addresses = [str(entry[4][0]) for entry in entries]
    return addresses[0] if all(map(is_loopback, addresses)) else None


def find_interface(address: str) -> str | None:
    """The network interface that has an IPv4 address, or None."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
