"""One Python object at a time over a Unix socket, large arrays beside it.

A message is a header, for every buffer its length and its address, the pickle, and the buffers. Where they are large
and the receiver can read the sender's memory, addresses stand for them, and the sender keeps them until a byte
comes back.
"""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from sama_data.workers.peer_memory import address_of, read_memory

# Less than this goes through the socket as fast.
_LEAST_READ_BYTES = 1 << 18
_HEADER = struct.Struct("<QQ?")  # bytes of the pickle, number of buffers, whether they are to be read from memory
_PLACE = np.dtype([("length", "<u8"), ("address", "<u8")])
_TAKEN = b"."


class Message:
    """An object that can be sent; what is wrong with the object is raised here.

    Args:
        value: Anything that pickles; the arrays in it must not change before it is sent.
    """

    def __init__(self, value: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._body = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        self._buffers = [buffer.raw() for buffer in buffers]

    def send(self, connection: socket.socket, reads_memory: bool = False) -> None:
        """Sends it.

        Args:
            connection: The socket.
            reads_memory: Whether the receiver can read this process's memory; it then answers with a byte.

        Raises:
            OSError: The other side has ended.
        """
        places = np.array([(view.nbytes, address_of(view)) for view in self._buffers], _PLACE)
        by_address = reads_memory and places["length"].sum() >= _LEAST_READ_BYTES
        header = _HEADER.pack(len(self._body), len(places), by_address)
        connection.sendall(header + places.tobytes() + self._body)
        if by_address:
            connection.recv(len(_TAKEN))
            return
        for view in self._buffers:
            connection.sendall(view)


def receive(connection: socket.socket, sender: int | None = None, wait: Callable[[], object] = lambda: None) -> Any:
    """Returns the next object; its arrays are writable.

    Args:
        connection: The socket.
        sender: The sender's process, whose memory can be read.
        wait: Called before every read; may raise to give up, and then nothing more can be received.

    Raises:
        EOFError: The other side has ended.
        OSError: Likewise.
    """
    body_bytes, num_buffers, by_address = _HEADER.unpack(_receive_bytes(connection, _HEADER.size, wait))
    places = np.frombuffer(_receive_bytes(connection, _PLACE.itemsize * num_buffers, wait), _PLACE)
    body = _receive_bytes(connection, body_bytes, wait)
    lengths = places["length"].tolist()
    if not by_address:
        return pickle.loads(body, buffers=[_receive_bytes(connection, length, wait) for length in lengths])
    assert sender is not None, "only a receiver that named the sender is sent addresses"
    copies = read_memory(sender, places["address"].tolist(), lengths)
    connection.sendall(_TAKEN)
    return pickle.loads(body, buffers=copies)


def _receive_bytes(connection: socket.socket, num_bytes: int, wait: Callable[[], object]) -> bytearray:
    received = bytearray(num_bytes)
    rest = memoryview(received)
    while rest:
        wait()
        count = connection.recv_into(rest)
        if not count:
            raise EOFError("the other side has ended")
        rest = rest[count:]
    return received
