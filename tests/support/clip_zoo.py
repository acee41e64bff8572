"""Clips and images of every kind that DALI decodes, that it must not be given, and that nothing decodes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sama_data.media import Media
from sama_data.rows import Row


def make_row(path: Path, source: Path | None = None, index: int = 0, **changed: object) -> Row:
    kind = "image" if path.suffix in (".png", ".jpg", ".webp") else "video"
    given = {"index": index, "sample_id": path.name, "kind": kind, "target": Media(path), "text": "x"}
    return Row(**(given | {"source": None if source is None else Media(source)} | changed))


def write_frames(
    path: Path,
    parts: list[np.ndarray],
    codec: str = "libvpx-vp9",
    pixels: str = "yuv420p",
    colour_space: int | None = None,
    times_milliseconds: list[int] | None = None,
    **options: str,
) -> Path:
    """Encodes clips one after the other into one stream, each by an encoder of its own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16, options=options)
        stream.height, stream.width = parts[0].shape[1:3]
        stream.pix_fmt = pixels
        number = 0
        for frames in parts:
            encoder = av.CodecContext.create(codec, "w")
            encoder.height, encoder.width = frames.shape[1:3]
            encoder.pix_fmt, encoder.time_base, encoder.framerate = pixels, Fraction(1, 16), Fraction(16, 1)
            encoder.options = options
            if colour_space is not None:
                encoder.colorspace = stream.codec_context.colorspace = colour_space
            for picture in [*frames, None]:
                frame = None
                if picture is not None:
                    frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                    frame = frame.reformat(format=pixels, dst_colorspace=colour_space)
                    frame.pts = frame.pts if times_milliseconds is None else None
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    time = number * 62 if times_milliseconds is None else times_milliseconds[number]
                    packet.pts = packet.dts = time
                    packet.time_base = Fraction(1, 1000)
                    container.mux(packet)
                    number += 1
    return path


def turn(path: Path, turned: Path) -> Path:
    """Copies an mp4 with the tag that turns it by a quarter."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    turned.write_bytes(content)
    return turned


def make_zoo(
    folder: Path,
    make_frames: Callable[..., np.ndarray],
    make_video: Callable[..., Path],
    make_sound: Callable[..., Path],
) -> dict[str, Path]:
    """Files by what they are; 17 frames of 64x96 where nothing else is said."""
    frames = make_frames(17, 64, 96)
    fast = {"cpu-used": "8", "b": "0", "crf": "8", "deadline": "realtime"}
    vp9 = make_video(folder / "vp9.webm", frames, "libvpx-vp9")
    in_mp4 = make_video(folder / "vp9.mp4", frames, "libvpx-vp9", mp4_index_first=True)
    files = {
        "vp9": vp9,
        "vp9 in mp4": in_mp4,
        "vp8": make_video(folder / "vp8.webm", frames, "libvpx", **{"auto-alt-ref": "1", "b": "400k"}),
        "mjpeg": write_frames(folder / "mjpeg.avi", [frames], "mjpeg", "yuvj420p"),
        "h264": make_video(folder / "h264.mp4", frames),
        "odd size": make_video(folder / "odd.webm", make_frames(17, 67, 101), "libvpx-vp9"),
        "one frame": make_video(folder / "one.webm", frames[:1], "libvpx-vp9"),
        "uneven times": write_frames(
            folder / "uneven.webm", [frames], times_milliseconds=np.cumsum([20, 50, 90] * 6).tolist(), **fast
        ),
        "bt709": write_frames(folder / "bt709.webm", [frames], colour_space=1, **fast),
        "h264 4:4:4": write_frames(folder / "444.mkv", [frames], "libx264", "yuv444p"),
        "rotated": turn(in_mp4, folder / "rotated.mp4"),
        "shrinks": write_frames(folder / "shrinks.webm", [make_frames(9, 64, 96), make_frames(8, 32, 48)], **fast),
        "sound": make_sound(folder / "sound.mp4"),
        "missing": folder / "missing.mp4",
    }
    damaged = bytearray(in_mp4.read_bytes())
    middle = damaged.index(b"mdat") + (len(damaged) - damaged.index(b"mdat")) // 2
    damaged[middle : middle + 100] = bytes(100)
    contents = {
        "empty.mp4": b"",
        "junk.mp4": b"a caption, not a video\n" * 40,
        "cut.webm": vp9.read_bytes()[: vp9.stat().st_size * 2 // 3],
        "cut.mp4": in_mp4.read_bytes()[: in_mp4.stat().st_size // 2],
        "damaged.mp4": bytes(damaged),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    picture = Image.fromarray(make_frames(1, 61, 83)[0])
    orientation = Image.Exif()
    orientation[0x0112] = 6
    for name, changed, how in [
        ("image.jpg", picture, {"quality": 92}),
        ("image.png", picture, {}),
        ("image.webp", picture, {}),
        ("grey.png", picture.convert("L"), {}),
        ("clear.png", picture.convert("RGBA").rotate(20), {}),
        ("turned.jpg", picture, {"exif": orientation}),
    ]:
        changed.save(folder / name, **how)
    (folder / "cut.jpg").write_bytes((folder / "image.jpg").read_bytes()[:-200])
    images = ("image.jpg", "image.png", "image.webp", "grey.png", "clear.png", "turned.jpg", "cut.jpg")
    return files | {name: folder / name for name in (*contents, *images)}
