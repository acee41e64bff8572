"""Messages between ranks: a length of four bytes, then one JSON object of that length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_MESSAGE_BYTES = 1 << 20
LENGTH_BYTES = 4

Message = dict[str, Any]


class MeetingError(Exception):
    """The ranks cannot meet; the message is one line that says where, why and what to do."""


class ProtocolError(Exception):
    """Bytes that no rank of this health check wrote."""


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message."""
    text = json.dumps(message).encode()
    assert len(text) <= MAX_MESSAGE_BYTES, len(text)
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        """Starts before the first byte."""
        self._bytes = bytearray()

    def feed(self, received: bytes) -> list[Message]:
        """Takes bytes in and returns the messages that they complete.

        Raises:
            ProtocolError: The stream holds something else; nothing after it can be understood.
        """
        self._bytes += received
        messages = []
        while (message := self._take()) is not None:
            messages.append(message)
        return messages

    def _take(self) -> Message | None:
        if len(self._bytes) < LENGTH_BYTES:
            return None
        end = LENGTH_BYTES + int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
        if end > LENGTH_BYTES + MAX_MESSAGE_BYTES:
            raise ProtocolError(f"it begins with {bytes(self._bytes[:16])!r}")
        if len(self._bytes) < end:
            return None
        text = bytes(self._bytes[LENGTH_BYTES:end])
        del self._bytes[:end]
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise ProtocolError(f"it wrote {text[:16]!r}") from None
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise ProtocolError(f"it wrote {text[:16]!r}")
        return message


def plain_address(address: str) -> str:
    """An IPv4 address without the clothes that it wears on a socket for both kinds."""
    return address.removeprefix("::ffff:")


def is_loopback(address: str) -> bool:
    """Whether an address leads to the own host only."""
    return address == "::1" or plain_address(address).startswith("127.")
