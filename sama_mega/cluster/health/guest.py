"""Another rank's side of the meeting: one connection to rank 0, one message at a time."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any, Self

from sama_mega.cluster.health.messages import (
    Decoder,
    MeetingError,
    Message,
    ProtocolError,
    encode,
    is_loopback,
    plain_address,
)

_READ_BYTES = 1 << 16
_CONNECT_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


class Guest:
    """A connection to the host."""

    def __init__(self, address: str, port: int, hello: Mapping[str, Any], timeout_seconds: float) -> None:
        """Connects to the host, which may start later than this rank.

        Args:
            address: Rank 0's host.
            port: Its TCP port.
            hello: The first message: `key`, `rank`, `node`.
            timeout_seconds: How long to try.

        Raises:
            MeetingError: Nothing answered in time.
        """
        self._where = f"rank 0 at {address} port {port}"
        self._who = f"rank {hello['rank']} on {hello['node']}"
        self._decoder = Decoder()
        self._messages: list[Message] = []
        self._socket = self._connect(address, port, timeout_seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tell({**hello, "kind": "hello"})

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hangs up."""
        self._socket.close()

    @property
    def local_address(self) -> str:
        """The address of this host that leads to rank 0."""
        return plain_address(self._socket.getsockname()[0])

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends a message.

        Raises:
            MeetingError: The host is gone.
        """
        try:
            self._socket.settimeout(_CONNECT_SECONDS)
            self._socket.sendall(encode(message))
        except OSError as error:
            # A host that turned this rank away closed the connection, and said why before: that is raised here.
            self.receive(_CONNECT_SECONDS)
            raise MeetingError(self._lost(error.strerror or str(error))) from None

    def receive(self, timeout_seconds: float) -> Message:
        """Waits for the next message.

        Raises:
            MeetingError: None came in time, the host is gone, turned this rank away, or is something else.
        """
        deadline = time.monotonic() + timeout_seconds
        while not self._messages:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                received = self._socket.recv(_READ_BYTES)
                self._messages += self._decoder.feed(received)
            except TimeoutError:
                raise MeetingError(self._lost(f"it said nothing for {timeout_seconds:g} s")) from None
            except OSError as error:
                raise MeetingError(self._lost(error.strerror or str(error))) from None
            except ProtocolError as error:
                raise MeetingError(
                    f"{self._who}: what listens where {self._where} should is not this health check ({error}): "
                    "set MASTER_PORT to a free port"
                ) from None
            if not received:
                raise MeetingError(self._lost("it closed the connection"))
        message = self._messages.pop(0)
        if message["kind"] == "refused":
            raise MeetingError(f"{self._who} was turned away by {self._where}: {message['reason']}")
        return message

    def _lost(self, reason: str) -> str:
        return f"{self._who} lost touch with {self._where}: {reason}: look for rank 0's own lines"

    def _connect(self, address: str, port: int, timeout_seconds: float) -> socket.socket:
        deadline, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
        while True:
            try:
                remaining = max(0.001, deadline - time.monotonic())
                connected = socket.create_connection((address, port), min(_CONNECT_SECONDS, remaining))
                if connected.getsockname() != connected.getpeername():
                    return connected
                # Linux can connect a socket to itself while nobody listens.
                connected.close()
                reason = "nothing listens there"
            except OSError as error:
                reason = error.strerror or str(error)
            if time.monotonic() + pause > deadline:
                raise MeetingError(
                    f"{self._who} could not reach {self._where} within {timeout_seconds:g} s: {reason}"
                    f"{_describe_name(address)}: see whether rank 0 started, whether a firewall is between, or name "
                    "rank 0's address with MASTER_ADDR"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _describe_name(address: str) -> str:
    """What a name means here, where it is a name."""
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(address, None)})
    except OSError:
        return ""
    if found == [address]:
        return ""
    loopback = " (loopback: only this node itself is reached there)" if all(map(is_loopback, found)) else ""
    return f"; {address} is {', '.join(found)} here{loopback}"
