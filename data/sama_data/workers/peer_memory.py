"""Copies large buffers straight out of another process's memory.

One copy into ordinary memory: nothing is shared, named or left behind, whoever is killed, and no descriptor is held.
Measured on 58 MB: 9 ms; a memory file (memfd) took 25 ms to write, 9 to map and 12 to let go of, for its single pages.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class _Span(ctypes.Structure):
    _fields_ = [("address", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def address_of(buffer: memoryview) -> int:
    """Returns where a buffer of bytes lies in this process; it must be kept until it was read."""
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def read_memory(process_id: int, addresses: Sequence[int], lengths: Sequence[int]) -> list[NDArray[np.uint8]]:
    """Returns copies of another process's buffers, ``[length]`` uint8 each.

    The kernel lets a process read its own children, unless a container or a hardened system forbids it.

    Raises:
        OSError: It is not allowed, or the process has ended.
    """
    copies = [np.empty(length, np.uint8) for length in lengths]
    for address, copy in zip(addresses, copies, strict=True):
        done = 0
        while done < len(copy):  # one call reads 2 GiB at most
            done += _read(process_id, address + done, copy[done:])
    return copies


def _read(process_id: int, address: int, into: NDArray[np.uint8]) -> int:
    call = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if call is None:
        raise OSError("the C library has no process_vm_readv")
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_int, *[ctypes.POINTER(_Span), ctypes.c_ulong] * 2, ctypes.c_ulong]
    ours, theirs = _Span(into.ctypes.data, len(into)), _Span(address, len(into))
    count = call(process_id, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
    if count <= 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(count)
