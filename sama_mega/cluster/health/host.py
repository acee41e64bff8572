"""Rank 0's side of the meeting: it listens, and every other rank is a guest with one TCP connection to it.

The port is the one where training meets a moment later, so nothing may hold it afterwards: guests close first, and
the listening socket may be bound over whatever the kernel still remembers (SO_REUSEADDR).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sama_mega.cluster.health.messages import (
    Decoder,
    MeetingError,
    Message,
    ProtocolError,
    encode,
    plain_address,
)

# The kernel's own limit (net.core.somaxconn) cuts it down where it is lower.
_BACKLOG = 16384
_SPARE_OPEN_FILES = 64
_READ_BYTES = 1 << 16
_FAREWELL_SECONDS = 2.0
_MOST_REFUSALS_KEPT = 20


@dataclass(frozen=True)
class Received:
    """A message and the clock's time (`time.time()`) when it had arrived."""

    message: Message
    at: float


@dataclass
class _Connection:
    """One accepted socket; `rank` is None until it has introduced itself."""

    socket: socket.socket
    peer: str
    decoder: Decoder = field(default_factory=Decoder)
    rank: int | None = None


class Host:
    """Rank 0's side: one thread, one selector, thousands of guests.

    Attributes:
        guests: What each guest that came said of itself in its first message, by rank.
        left: Ranks whose connection closed.
        refusals: Lines about connections that were turned away.
        local_address: The address of this host that a guest of another host used, once there is one.
    """

    def __init__(self, port: int | None, key: str, world_size: int, welcome: Mapping[str, Any]) -> None:
        """Listens from now on; guests queue up until `collect` looks at them.

        Args:
            port: TCP port, on all interfaces; None: nobody else will come.
            key: What only ranks of this life of this job know.
            world_size: Number of ranks.
            welcome: Sent to each guest when it came in, as a `welcome` message.

        Raises:
            MeetingError: The port cannot be had.
        """
        self.guests: dict[int, Message] = {}
        self.left: set[int] = set()
        self.refusals: list[str] = []
        self.local_address: str | None = None
        self._key, self._world_size = key, world_size
        self._welcome = encode({**welcome, "kind": "welcome"})
        self._connections: dict[int, _Connection] = {}
        self._inbox: dict[str, dict[int, Received]] = {}
        self._awaited_kind, self._awaited = "", set[int]()
        self._selector = selectors.DefaultSelector()
        self._listener = None if port is None else _listen(port)
        if self._listener is not None:
            _allow_open_files(world_size + _SPARE_OPEN_FILES)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Lets the guests go first, for a moment, then frees the port."""
        if error is None:
            with contextlib.suppress(OSError):
                self._serve(lambda: len(self.left) == len(self.guests), time.monotonic() + _FAREWELL_SECONDS)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def collect(self, kind: str, ranks: Iterable[int], deadline: float) -> dict[int, Received]:
        """Waits until each of these ranks has sent one message of a kind, or has left.

        Args:
            kind: The kind.
            ranks: Who is asked.
            deadline: In `time.monotonic()`'s seconds; afterwards, those who came in time are returned.
        """
        asked = set(ranks)
        self._awaited_kind = kind
        self._awaited = asked - self._inbox.get(kind, {}).keys() - self.left
        self._serve(lambda: not self._awaited, deadline)
        arrived = self._inbox.pop(kind, {})
        return {rank: arrived[rank] for rank in sorted(asked & arrived.keys())}

    def close_door(self) -> None:
        """Stops listening, so that a rank that goes on to train cannot meet this host at the same port."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def tell(self, rank: int, message: Mapping[str, Any]) -> None:
        """Sends a short message; a guest that is gone is skipped."""
        connection = self._connections.get(rank)
        if connection is not None and rank not in self.left:
            self._send(connection, encode(message))

    def _serve(self, done: Callable[[], bool], deadline: float) -> None:
        while not done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            for key, _ in self._selector.select(remaining):
                if isinstance(key.data, _Connection):
                    self._read(key.data)
                elif isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    # The guest stays in the queue, and select would report it without end.
                    self.close_door()
                    self._refuse(f"connections wait that cannot be accepted: {error.strerror}: raise `ulimit -n`")
                    return
                continue  # the guest gave up while it waited
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(accepted, f"{plain_address(address[0])} port {address[1]}")
            self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        try:
            received = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        now = time.time()
        if not received:
            self._close(connection)
            return
        try:
            for message in connection.decoder.feed(received):
                self._take(connection, message, now)
        except ProtocolError as error:
            self._refuse(f"{connection.peer} is no rank of this job: {error}")
            self._close(connection)

    def _take(self, connection: _Connection, message: Message, now: float) -> None:
        if connection.socket.fileno() < 0:
            return
        if connection.rank is None:
            self._introduce(connection, message)
            return
        self._inbox.setdefault(message["kind"], {})[connection.rank] = Received(message, now)
        if message["kind"] == self._awaited_kind:
            self._awaited.discard(connection.rank)

    def _introduce(self, connection: _Connection, message: Message) -> None:
        """Lets a guest in, or says why not."""
        rank = message.get("rank")
        if message["kind"] != "hello" or not isinstance(rank, int):
            raise ProtocolError("it did not introduce itself")
        if message.get("key") != self._key:
            reason = f"this is {self._key}, not {message.get('key')}"
        elif not 0 < rank < self._world_size:
            reason = f"rank {rank} must be at least 1 and less than the number of ranks ({self._world_size})"
        elif rank in self.guests:
            reason = f"rank {rank} is here already, from {self.guests[rank].get('node')}"
        else:
            connection.rank = rank
            self.guests[rank], self._connections[rank] = message, connection
            self._remember_address(connection.socket)
            self._send(connection, self._welcome)
            return
        self._refuse(f"{connection.peer} ({message.get('node')}) was turned away: {reason}")
        self._send(connection, encode({"kind": "refused", "reason": reason}))
        self._close(connection)

    def _remember_address(self, guest: socket.socket) -> None:
        own, peer = (plain_address(name[0]) for name in (guest.getsockname(), guest.getpeername()))
        if own != peer:
            self.local_address = own

    def _send(self, connection: _Connection, content: bytes) -> None:
        # Messages to a guest are a few hundred bytes and it reads each before the next: they fit the kernel's buffer.
        try:
            sent = connection.socket.send(content)
        except OSError:
            sent = 0
        if sent < len(content):
            self._close(connection)

    def _refuse(self, line: str) -> None:
        if len(self.refusals) < _MOST_REFUSALS_KEPT:
            self.refusals.append(line)

    def _close(self, connection: _Connection) -> None:
        if connection.socket.fileno() < 0:
            return
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.rank is not None:
            self.left.add(connection.rank)
            self._awaited.discard(connection.rank)


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise MeetingError(
            f"rank 0 on {socket.gethostname()} cannot listen at port {port}: {os.strerror(error.errno or 0)}: "
            "set MASTER_PORT to a port that is free there, or submit again for another one"
        ) from None
    listener.setblocking(False)
    return listener


def _allow_open_files(wanted: int) -> None:
    """Raises this process's own limit as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
