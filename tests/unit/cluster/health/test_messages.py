"""Messages out of a stream of bytes, however it is cut, and what is no message."""

from __future__ import annotations

import pytest

from sama_mega.cluster.health.messages import MAX_MESSAGE_BYTES, Decoder, ProtocolError, encode


def test_messages_survive_any_cut() -> None:
    sent = [{"kind": "a", "text": "ä" * 50}, {"kind": "b"}]
    stream = b"".join(map(encode, sent))
    for size in (1, 3, 7, len(stream)):
        decoder = Decoder()
        parts = [stream[start : start + size] for start in range(0, len(stream), size)]
        assert [message for part in parts for message in decoder.feed(part)] == sent


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\5hello",
        b"\0\0\0\2[]",
        b"\0\0\0\2{}",
        b"\0\0\0\x0c" + b'{"kind": 12}',
        (200_000).to_bytes(4, "big") + b"[" * 200_000,
    ],
)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(garbage)


def test_a_message_that_is_not_whole_is_waited_for() -> None:
    assert Decoder().feed(encode({"kind": "a"})[:-1]) == []
