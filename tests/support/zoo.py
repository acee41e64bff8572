"""Clips as users meet them: damaged, odd, misnamed; made on the spot, tiny, the same at every call.

`docs/data.md` has a table of what becomes of each of them, which `tests/unit/data/probe/test_zoo.py` holds it to.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]

FRAMES, FPS = 9, 16
_ONE = 0x10000  # of a display matrix
TICK_SECONDS = Fraction(1, 16_000)


@dataclass(frozen=True)
class Beast:
    """One kind of file.

    Attributes:
        name: The file's name, with its extension.
        meaning: What it is, in the words of the docs' table.
        make: Given the path, writes it.
    """

    name: str
    meaning: str
    make: Callable[[Path], object]


def waves(num_frames: int = FRAMES, height: int = 32, width: int = 32) -> Frames:
    """Colours that move, uint8 RGB ``[T, H, W, 3]``."""
    time, line, column = np.ogrid[:num_frames, :height, :width]
    channels = [np.sin(0.2 * line + 0.3 * column * (channel + 1) + 0.4 * time) for channel in range(3)]
    return np.round(127.5 + 100 * np.stack(channels, axis=-1)).astype(np.uint8)


def encode(
    path: Path,
    frames: Frames,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    ticks: Sequence[int] | None = None,
    container: Mapping[str, str] | None = None,
    **options: str,
) -> Path:
    """Writes a clip whose first frame alone is a key frame, and which is decoded in the order it is stored.

    Args:
        path: The file.
        frames: uint8 RGB ``[T, H, W, 3]``.
        codec: FFmpeg's name of the encoder.
        pixel_format: What it encodes.
        ticks: When each frame is shown, in TICK_SECONDS; None for evenly at 16 a second.
        container: The muxer's options; None puts an mp4's index in front.
        options: The encoder's.
    """
    index_first = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    muxer = {"fflags": "+bitexact"} | dict(index_first if container is None else container)
    ours = {"crf": "20", "bf": "0", "g": "99"} if codec == "libx264" else {}
    with av.open(str(path), "w", options=muxer) as output:
        stream: Any = output.add_stream(codec, rate=FPS, options=ours | options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if ticks is not None:
            stream.codec_context.time_base = TICK_SECONDS
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if ticks is not None:
                frame.pts, frame.time_base = ticks[number], TICK_SECONDS
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def stored_frames(path: Path) -> list[range]:
    """Where each frame's bytes are in a file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [range(int(packet.pos or 0), int(packet.pos or 0) + packet.size) for packet in packets]


def write_sound(path: Path) -> Path:
    """An mp4 that holds half a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _patched(path: Path, change: Callable[[bytearray], object], width: int = 32) -> Path:
    """A clip whose bytes are changed after it was written."""
    encode(path, waves(width=width))
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(bytes(content))
    return path


def _cut_behind_frame(path: Path, number: int) -> None:
    encode(path, waves())
    path.write_bytes(path.read_bytes()[: stored_frames(path)[number].stop])


def _cut_inside_frame(path: Path, number: int) -> None:
    encode(path, waves())
    frame = stored_frames(path)[number]
    path.write_bytes(path.read_bytes()[: (frame.start + frame.stop) // 2])


def _zero_frames(path: Path, numbers: range) -> None:
    encode(path, waves())
    frames, content = stored_frames(path), bytearray(path.read_bytes())
    for number in numbers:
        content[frames[number].start : frames[number].stop] = bytes(len(frames[number]))
    path.write_bytes(bytes(content))


def _write_index_cut(path: Path) -> None:
    encode(path, waves(), container={})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov")])


def _rotate(content: bytearray) -> None:
    place = content.index(b"tkhd") + 4 + 4 + 20 + 16  # version, times and ids, layer and volume
    matrix = struct.pack(">9i", 0, _ONE, 0, -_ONE, 0, 0, 0, 0, 0x40000000)
    content[place : place + 36] = matrix


def _declare_huge(content: bytearray) -> None:
    place = content.index(b"avc1", content.index(b"stsd")) + 4 + 24
    content[place : place + 4] = struct.pack(">HH", 65535, 65535)


def _hide_tail(content: bytearray) -> None:
    """An edit list that shows the first five frames only."""
    place = content.index(b"elst") + 4 + 4 + 4  # version, number of entries
    timescale_place = content.index(b"mvhd") + 4 + 4 + 8
    timescale = int.from_bytes(content[timescale_place : timescale_place + 4], "big")
    content[place : place + 4] = struct.pack(">I", 5 * timescale // FPS)


def _write_huge_picture(path: Path) -> None:
    """A motion JPEG whose picture header says 60000 x 60000."""
    encode(path, waves(), "mjpeg", "yuvj420p")
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"\xff\xc0", place + 1)) >= 0:
        content[place + 5 : place + 9] = struct.pack(">HH", 60000, 60000)
    path.write_bytes(bytes(content))


def _write_large_empty_picture(path: Path) -> None:
    """A small file that unpacks to 12000 x 12000 pixels."""
    Image.new("1", (12000, 12000)).save(path, "PNG")


def _write_gif(path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in waves()]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=60)


def _write_huge_gif(path: Path) -> None:
    _write_gif(path)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", 60000, 60000)
    path.write_bytes(bytes(content))


def _write_jpeg(path: Path) -> None:
    Image.fromarray(waves(1)[0]).save(path, "JPEG")


def _write_cut_jpeg(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(waves(1, 64, 64)[0]).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])


def _write_joined(path: Path) -> None:
    parts = [encode(path.with_suffix(f".{width}.ts"), waves(5, 32, width)) for width in (32, 64)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()


def _write_song_with_cover(path: Path) -> None:
    """Sound beside which lies a picture: FFmpeg calls it a video stream of one frame."""
    cover = io.BytesIO()
    Image.fromarray(waves(1)[0]).save(cover, "JPEG")
    picture = cover.getvalue()
    head = b"\0image/jpeg\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">I", len(head)) + b"\0\0" + head
    size = len(frame)
    safe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x03\0\0" + safe + frame + bytes(2000))


def _write_without_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=FPS)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        output.start_encoding()


_UNEVEN = [0, 1000, 2000, 5000, 6000, 7000, 11000, 12000, 13000]
_PLAYLIST = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfile:one-frame.mp4\n"
_FRAGMENTS = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}

ZOO: tuple[Beast, ...] = (
    Beast("missing.mp4", "a file that is not there", lambda path: None),
    Beast("zero-byte.mp4", "an empty file", lambda path: path.write_bytes(b"")),
    Beast("junk.mp4", "random bytes", lambda path: path.write_bytes(np.random.default_rng(6).bytes(4096))),
    Beast("text.mp4", "an error page saved as a clip", lambda path: path.write_text("<html>404 Not Found</html>" * 9)),
    Beast("playlist.mp4", "a playlist that names another file", lambda path: path.write_text(_PLAYLIST)),
    Beast("folder.mp4", "a folder", lambda path: path.mkdir()),
    Beast(
        "header-only.mp4",
        "a download that ended at once",
        lambda path: _patched(path, lambda c: c.__delitem__(slice(40, None))),
    ),
    Beast("index-cut-off.mp4", "cut off, the index at its end lost", _write_index_cut),
    Beast("truncated.mp4", "cut off between two frames, its index in front", lambda path: _cut_behind_frame(path, 5)),
    Beast("truncated-in-frame.mp4", "cut off inside a frame", lambda path: _cut_inside_frame(path, 5)),
    Beast("damaged.mp4", "zeros in the middle (a bad disk block)", lambda path: _zero_frames(path, range(4, 5))),
    Beast("zero-tail.mp4", "zeros at the end (an unfinished copy)", lambda path: _zero_frames(path, range(5, 9))),
    Beast("no-frames.mp4", "a container without a frame", _write_without_frames),
    Beast("audio-only.mp4", "sound without a picture", write_sound),
    Beast("song-with-cover.mp4", "an MP3 with a cover picture", _write_song_with_cover),
    Beast("changes-size.ts", "clips of two sizes joined byte by byte", _write_joined),
    Beast("huge-picture.avi", "60000 x 60000 in its picture headers", _write_huge_picture),
    Beast("huge-canvas.gif", "60000 x 60000 in its header", _write_huge_gif),
    Beast("bomb.png", "a small image of 144 million pixels", _write_large_empty_picture),
    Beast("cut-off.jpg", "half of a JPEG", _write_cut_jpeg),
    Beast(
        "huge-header.mp4", "65535 x 65535 in the container's header alone", lambda path: _patched(path, _declare_huge)
    ),
    Beast("edit-list.mp4", "an edit list that shows the first 5 frames", lambda path: _patched(path, _hide_tail)),
    Beast("variable-rate.mp4", "frames at uneven times", lambda path: encode(path, waves(), ticks=_UNEVEN)),
    Beast("ten-bit.mp4", "10 bits a colour", lambda path: encode(path, waves(), pixel_format="yuv420p10le")),
    Beast("odd-size.webm", "97 x 53", lambda path: encode(path, waves(9, 53, 97), "libvpx-vp9", **{"cpu-used": "8"})),
    Beast("one-frame.mp4", "a single frame", lambda path: encode(path, waves(1))),
    Beast("rotated.mp4", "48 x 32, turned by a quarter as phones do", lambda path: _patched(path, _rotate, width=48)),
    Beast(
        "fragmented.mp4",
        "fragmented, as streaming sites write",
        lambda path: encode(path, waves(), container=_FRAGMENTS),
    ),
    Beast("animated.gif", "an animated GIF", _write_gif),
    Beast("picture.mp4", "a JPEG under a clip's name", _write_jpeg),
)


@dataclass(frozen=True)
class Pair:
    """Two clips that may be no pair.

    Attributes:
        name: What the row is called.
        meaning: What it is, in the words of the docs' table.
        source: The clip before the edit: frames, height and width; the next likewise.
        target: The clip after it.
    """

    name: str
    meaning: str
    source: tuple[int, int, int]
    target: tuple[int, int, int]


PAIRS: tuple[Pair, ...] = (
    Pair("longer-source", "a pair whose source is longer than its target", (9, 32, 32), (5, 32, 32)),
    Pair("other-aspect", "a pair of two shapes", (5, 32, 32), (5, 32, 48)),
    Pair("other-size", "a pair of one shape, half as large", (5, 64, 96), (5, 32, 48)),
    Pair("rounded-size", "a pair of 16:9 and 26:15, as 1280 x 720 made 832 x 480", (5, 180, 320), (5, 120, 208)),
)
_CLIP_SUFFIXES = (".mp4", ".webm", ".ts", ".avi", ".gif")


def write_zoo(folder: Path) -> list[dict[str, str]]:
    """Writes every clip of ZOO and PAIRS; returns their rows, each named as in the docs' table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for beast in ZOO:
        beast.make(folder / beast.name)
        kind = "video" if beast.name.endswith(_CLIP_SUFFIXES) else "image"
        rows.append({kind: beast.name, "caption": "waves", "sample_id": beast.name})
    for pair in PAIRS:
        names = {side: f"{pair.name}-{side}.mp4" for side in ("source", "target")}
        encode(folder / names["source"], waves(*pair.source))
        encode(folder / names["target"], waves(*pair.target))
        rows.append(names | {"instruction": "Make it blue.", "sample_id": pair.name})
    return rows
