"""Software, machine, and calls that may never come back."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from sama_mega.cluster.health import probes
from sama_mega.cluster.health.probes import (
    PACKAGES,
    digest_all,
    digest_code,
    find_interface,
    node_name,
    probe_machine,
    probe_software,
    resolve_to_loopback,
)
from sama_mega.cluster.health.time_limit import within


def test_the_digest_sees_every_change_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "one_package"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/a.py", "notes.txt"):
        (package / name).write_text("1")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = digest_code(("one_package", "no_such_package"))
    assert list(before) == ["one_package/__init__.py", "one_package/inner/a.py"]
    (package / "notes.txt").write_text("2")
    assert digest_code(("one_package",)) == before
    (package / "inner/a.py").write_text("2")
    after = digest_code(("one_package",))
    assert after != before and digest_all(after) != digest_all(before)
    assert len(digest_all(after)) == 12


def test_the_framework_itself_is_digested() -> None:
    code = probe_software().code
    assert {place.split("/")[0] for place in code} == set(PACKAGES)
    assert "sama_mega/cluster/health/probes.py" in code


def test_versions_come_from_the_first_place_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "numpy-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    assert probe_software().versions["numpy"] != "9.9.9"
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probe_software().versions["numpy"] == "9.9.9"


def test_the_name_is_slurms() -> None:
    assert node_name({"SLURMD_NODENAME": "node7"}) == "node7"
    assert node_name({}) == socket.gethostname()


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = probe_machine({"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": ""}, None, 1024)
    assert facts.cpus == len(os.sched_getaffinity(0)) and facts.open_files == 1024
    assert facts.chosen_interfaces == ("GLOO_SOCKET_IFNAME",)
    assert (facts.loopback, facts.interface) == (None, None)
    monkeypatch.setattr(probes, "_SHARED_MEMORY", "/no/such/folder")
    assert probe_machine({}, None, 1024).shared_memory_free_gib is None


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_to_loopback("localhost") in ("127.0.0.1", "::1")
    assert resolve_to_loopback("no-such-host.invalid") == "no address"
    entries = [(0, 0, 0, "", ("127.0.1.1", 0)), (0, 0, 0, "", ("10.1.2.3", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    assert resolve_to_loopback("node1") is None
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries[:1])
    assert resolve_to_loopback("node1") == "127.0.1.1"
    assert probe_machine({}, "10.255.255.254", 9).loopback == "127.0.1.1"
    assert probe_machine({}, "127.0.0.1", 9).loopback is None  # rank 0 is on this host


def test_interfaces_by_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.77") is None


def test_within() -> None:
    assert within(10, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(10, lambda: 1 // 0)
    release, start = threading.Event(), time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        within(0.1, lambda: release.wait(20))
    assert time.monotonic() - start < 5
    release.set()
