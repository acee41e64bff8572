"""What a file holds, told from its first bytes and never from its name."""

from __future__ import annotations

from sama_data.errors import ClipError
from sama_data.media import Media

STILL_IMAGE = "image"

# The first bytes, at an offset, and what they mean: STILL_IMAGE or the name of FFmpeg's demuxer. Naming the
# demuxer saves probing, and keeps text that FFmpeg would take for a playlist (HLS, concat) from opening other
# files.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", STILL_IMAGE),
    (0, b"\xff\xd8\xff", STILL_IMAGE),
    (8, b"WEBP", STILL_IMAGE),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (4, b"wide", "mov"),
    (4, b"free", "mov"),
    (4, b"skip", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"GIF8", "gif"),
    (0, b"FLV\x01", "flv"),
    (0, b"OggS", "ogg"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (188, b"G", "mpegts"),
)
# Sound alone: a word of its own in the quarantine instead of "not an image or a video".
_AUDIO_SIGNATURES: tuple[tuple[int, bytes], ...] = ((0, b"ID3"), (8, b"WAVE"), (0, b"fLaC"), (0, b"#!AMR"))
_HEAD_BYTES = 192


def content_kind(media: Media, content: bytes | None = None) -> str:
    """Returns STILL_IMAGE or the name of the FFmpeg demuxer that reads the file.

    Args:
        media: The file, or the part of one.
        content: Its bytes, where they were read already.

    Raises:
        ClipError: The file is missing, unreadable, not a regular file, empty, or no image or video.
    """
    head = media.read_head(_HEAD_BYTES) if content is None else content[:_HEAD_BYTES]
    for offset, signature, kind in _SIGNATURES:
        # A transport stream repeats its sync byte: one match alone could be any text.
        if head.startswith(signature, offset) and (kind != "mpegts" or head.startswith(b"G")):
            return kind
    if any(head.startswith(signature, offset) for offset, signature in _AUDIO_SIGNATURES):
        raise ClipError(media.name, "has no video stream: it holds sound only")
    raise ClipError(media.name, f"is neither an image nor a video: its content starts with {head[:12]!r}")
