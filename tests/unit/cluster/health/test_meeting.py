"""Host and guests on one machine: who comes late, not at all, twice, or from elsewhere; and whose port it is next."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from sama_mega.cluster.health.guest import Guest
from sama_mega.cluster.health.host import Host
from sama_mega.cluster.health.messages import MeetingError, encode

KEY = "job 7 step 0 restart 0"
PATIENCE_SECONDS = 10.0


class Boom(Exception):
    """Ends a host before its time."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def hello(rank: int, key: str = KEY) -> dict[str, Any]:
    return {"key": key, "rank": rank, "node": f"node{rank}"}


def soon(seconds: float = PATIENCE_SECONDS) -> float:
    return time.monotonic() + seconds


def take_part(port: int, rank: int, key: str = KEY) -> dict[str, Any]:
    """A guest's life: report, and wait for the verdict."""
    with Guest("localhost", port, hello(rank, key), PATIENCE_SECONDS) as guest:
        assert guest.receive(PATIENCE_SECONDS) == {"kind": "welcome", "marker": "m"}
        guest.tell({"kind": "report", "rank": rank})
        return guest.receive(PATIENCE_SECONDS)


@contextmanager
def guests(calls: list[Callable[[], Any]]) -> Iterator[list[Future[Any]]]:
    with ThreadPoolExecutor(max(1, len(calls))) as pool:
        yield [pool.submit(call) for call in calls]


def serve(port: int, world_size: int, seconds: float = PATIENCE_SECONDS) -> tuple[Host, dict[int, Any]]:
    """The host's life."""
    with Host(port, KEY, world_size, {"marker": "m"}) as host:
        reports = host.collect("report", range(1, world_size), soon(seconds))
        host.close_door()
        for rank in host.guests:
            host.tell(rank, {"kind": "verdict", "status": 0})
    return host, reports


@pytest.mark.parametrize("world_size", [2, 8])
def test_all_meet(world_size: int) -> None:
    port = free_port()
    with guests([lambda rank=rank: take_part(port, rank) for rank in range(1, world_size)]) as answers:
        host, reports = serve(port, world_size)
    assert list(reports) == list(range(1, world_size)) and host.refusals == []
    assert {rank: received.message["rank"] for rank, received in reports.items()} == {rank: rank for rank in reports}
    assert [answer.result() for answer in answers] == [{"kind": "verdict", "status": 0}] * (world_size - 1)


def test_nobody_else_needs_no_port() -> None:
    assert serve(None, 1)[1] == {}  # type: ignore[arg-type]


def test_guests_wait_for_a_host_that_is_late() -> None:
    port, refused = free_port(), threading.Event()
    real = socket.create_connection

    def connect(*arguments: Any) -> socket.socket:
        try:
            return real(*arguments)
        except OSError:
            refused.set()
            raise

    with pytest.MonkeyPatch.context() as patch, guests([lambda: take_part(port, 1)]) as answers:
        patch.setattr(socket, "create_connection", connect)
        assert refused.wait(PATIENCE_SECONDS)
        serve(port, 2)
    assert answers[0].result()["status"] == 0


def test_a_missing_rank_is_missed_and_the_others_are_heard() -> None:
    port = free_port()
    with guests([lambda: take_part(port, 2)]) as answers:
        host, reports = serve(port, 3, seconds=0.5)
    assert list(reports) == [2] and host.guests.keys() == {2} and host.left == {2}
    assert answers[0].result()["kind"] == "verdict"


def test_a_rank_that_dies_is_not_waited_for() -> None:
    port = free_port()
    connected = threading.Event()

    def die() -> None:
        with Guest("localhost", port, hello(1), PATIENCE_SECONDS):
            connected.set()

    with guests([die]), Host(port, KEY, 2, {}) as host:
        assert connected.wait(PATIENCE_SECONDS)
        start = time.monotonic()
        assert host.collect("report", [1], soon()) == {}
        assert time.monotonic() - start < PATIENCE_SECONDS / 2
        assert host.left == {1} and host.guests[1]["node"] == "node1"


def test_another_life_is_turned_away_with_a_reason() -> None:
    port = free_port()
    with guests([lambda: take_part(port, 1, "job 7 step 0 restart 1"), lambda: take_part(port, 2)]) as answers:
        host, reports = serve(port, 3, seconds=0.5)
    assert list(reports) == [2]
    with pytest.raises(
        MeetingError, match=r"turned away .*: this is job 7 step 0 restart 0, not job 7 step 0 restart 1"
    ):
        answers[0].result()
    assert "(node1) was turned away: this is" in host.refusals[0]


@pytest.mark.parametrize(
    ("rank", "reason"),
    [(5, "less than the number of ranks (3)"), (0, "rank 0 must be at least 1"), (1, "is here already, from node1")],
)
def test_a_rank_that_cannot_be_is_turned_away(rank: int, reason: str) -> None:
    port = free_port()
    with Host(port, KEY, 3, {}) as host, Guest("localhost", port, hello(1), PATIENCE_SECONDS):
        with (
            Guest("localhost", port, hello(rank), PATIENCE_SECONDS) as other,
            guests([lambda: other.receive(10)]) as got,
        ):
            host.collect("report", [2], soon(0.3))
        with pytest.raises(MeetingError) as error:
            got[0].result()
        assert reason in str(error.value)
        assert host.left == set()


def test_garbage_harms_nobody() -> None:
    port = free_port()
    with socket.socket() as web, socket.socket() as early, socket.socket() as silent:
        with guests([lambda: take_part(port, 1)]), Host(port, KEY, 2, {"marker": "m"}) as host:
            for stranger in (web, early, silent):
                stranger.connect(("127.0.0.1", port))
            web.sendall(b"GET / HTTP/1.1\r\n\r\n")
            early.sendall(encode({"kind": "report"}))
            assert list(host.collect("report", [1], soon())) == [1]
            host.collect("report", [1], soon(0.2))
            host.tell(1, {"kind": "verdict"})
        assert sorted(line.partition(" is no rank of this job: ")[2] for line in host.refusals) == [
            "it begins with b'GET / HTTP/1.1\\r\\n'",
            "it did not introduce itself",
        ]


def test_nobody_answers() -> None:
    with pytest.raises(MeetingError) as error:
        Guest("localhost", free_port(), hello(3), 0.2)
    assert "rank 3 on node3 could not reach rank 0 at localhost port" in str(error.value)
    assert "within 0.2 s: Connection refused; localhost is" in str(error.value)
    assert "(loopback: only this node itself is reached there)" in str(error.value)
    assert "MASTER_ADDR" in str(error.value)


def test_a_name_that_means_nothing() -> None:
    with pytest.raises(MeetingError, match=r"could not reach rank 0 at no-such-host.invalid port 1 within 0.1 s: "):
        Guest("no-such-host.invalid", 1, hello(3), 0.1)


def test_a_host_that_dies_is_named() -> None:
    port = free_port()
    with ExitStack() as stack:
        with suppress(Boom), Host(port, KEY, 2, {}) as host:
            guest = stack.enter_context(Guest("localhost", port, hello(1), PATIENCE_SECONDS))
            host.collect("report", [1], soon(0.2))
            raise Boom
        assert guest.receive(1)["kind"] == "welcome"
        with pytest.raises(MeetingError, match=r"rank 1 on node1 lost touch with rank 0 at localhost port .* closed"):
            guest.receive(1)


def test_a_host_that_is_silent_is_given_up() -> None:
    port = free_port()
    with (
        Host(port, KEY, 2, {}),
        Guest("localhost", port, hello(1), PATIENCE_SECONDS) as guest,
        pytest.raises(MeetingError, match=r"it said nothing for 0.1 s: look for rank 0's own lines"),
    ):
        guest.receive(0.1)


def test_something_else_at_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with Guest("127.0.0.1", port, hello(1), PATIENCE_SECONDS) as guest:
            server.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            with pytest.raises(MeetingError, match=r"is not this health check .*SSH-2.0.*: set MASTER_PORT"):
                guest.receive(5)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(
            MeetingError, match=f"cannot listen at port {port}: Address already in use: set MASTER_PORT"
        ):
            Host(port, KEY, 2, {})


def test_a_thousand_ranks_need_one_thread() -> None:
    port, num_guests = free_port(), 1000
    with Host(port, KEY, num_guests + 1, {}) as host:
        sockets = []
        for rank in range(1, num_guests + 1):
            sockets.append(socket.create_connection(("127.0.0.1", port), 5))
            sockets[-1].sendall(encode({**hello(rank), "kind": "hello"}) + encode({"kind": "report"}))
            if rank % 100 == 0:
                host.collect("report", [], soon(0.001))
        start = time.monotonic()
        reports = host.collect("report", range(1, num_guests + 1), soon())
        assert len(reports) == num_guests and threading.active_count() < 20
        for rank in reports:
            host.tell(rank, {"kind": "verdict"})
        for each in sockets:
            each.close()
    # Measured 0.1 s for all of it.
    assert time.monotonic() - start < 5


def test_training_can_have_the_port_at_once() -> None:
    """torch's store listens at the same port a moment after the meeting, whoever hung up first."""
    dist = pytest.importorskip("torch.distributed")
    port = free_port()
    for round_number in range(4):
        with guests([lambda: take_part(port, 1)]):
            if round_number % 2:
                serve(port, 2)
            else:  # the host hangs up first: its side of the connection lingers in TIME_WAIT
                with suppress(Boom), Host(port, KEY, 2, {"marker": "m"}) as host:
                    host.collect("report", [1], soon())
                    host.tell(1, {"kind": "verdict"})
                    raise Boom
        store = dist.TCPStore("localhost", port, 1, is_master=True, timeout=timedelta(seconds=5), multi_tenant=True)
        store.set("round", str(round_number))
        client = dist.TCPStore("localhost", port, 1, is_master=False, timeout=timedelta(seconds=5))
        assert client.get("round") == str(round_number).encode()
        del store, client
