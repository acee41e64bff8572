"""What a file holds, told before it is decoded, and whether DALI gives the very frames that PyAV would.

DALI pads a clip that is too short, ignores rotation and colour tags, and one bad sample fails its whole batch. So
nothing reaches it that is not known to be plain; everything else is `Unsuitable` and goes to PyAV, which decodes it or
says in its own words what is wrong.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
from av.video.frame import VideoFrame
from PIL import Image

from sama_data.decode_image import MAX_PIXELS, turns_upright
from sama_data.decode_video import UNTAGGED_COLOUR_SPACES
from sama_data.media import Media
from sama_data.video_reader import VideoReader, end_of_range, open_video, quarter_turns

# AVColorSpace values of the BT.601 matrix, the only one that DALI knows: PAL's and NTSC's.
_BT601 = frozenset({5, 6})
# These keep their size in every key frame, and DALI takes the first one's for all.
_SIZED_BY_KEY_FRAMES = frozenset({"vp8", "vp9", "av1"})
_MOST_KEY_FRAMES = 16
# FFmpeg gives a frame out only when it has seen as many packets as may come before it.
_REORDERING_PACKETS = 32


class Unsuitable(Exception):
    """DALI would fail on a file or give other frames than PyAV.

    Attributes:
        reason: Why, in a few words that are the same for all such files.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a DALI decoder decodes exactly.

    Attributes:
        codecs: FFmpeg's names.
        pixel_formats: Likewise.
        containers: FFmpeg's names of demuxers.
        max_decoded_bytes: Of one clip at its own size; DALI holds all its frames before it scales them.
    """

    codecs: frozenset[str]
    pixel_formats: frozenset[str]
    containers: frozenset[str]
    max_decoded_bytes: int


ON_CPU = Abilities(
    codecs=frozenset({"vp8", "vp9", "mjpeg"}),
    pixel_formats=frozenset({"yuv420p", "yuvj420p", "yuvj422p"}),
    containers=frozenset({"mov", "matroska", "avi"}),
    max_decoded_bytes=1 << 30,
)
ON_GPU = Abilities(
    codecs=frozenset({"h264", "hevc", "vp8", "vp9", "av1"}),
    pixel_formats=frozenset({"yuv420p", "yuvj420p"}),
    containers=frozenset({"mov", "matroska"}),
    max_decoded_bytes=4 << 30,
)


@dataclass(frozen=True, slots=True)
class Look:
    """A plain file.

    Attributes:
        width: Pixels.
        height: Lines.
        num_frames: The wanted ones that it holds.
        fps: Frames a second, None for an image or where the file does not say.
    """

    width: int
    height: int
    num_frames: int
    fps: float | None


def look_at_image(content: bytes) -> Look:
    """Reads the header of a still image.

    Raises:
        Unsuitable: It is not a plain RGB or grey picture, or too large.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("RGB", "L") or image.has_transparency_data:
                raise Unsuitable(f"images of mode {image.mode}")
            if turns_upright(image):
                raise Unsuitable("images with an orientation tag")
            if getattr(image, "is_animated", False):
                raise Unsuitable("animated images")
            if image.width * image.height > MAX_PIXELS:
                raise Unsuitable("too many pixels")
            return Look(image.width, image.height, 1, None)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unsuitable("damaged images") from error


def look_at_video(
    media: Media,
    demuxer: str,
    content: bytes,
    start: int,
    end: int | None,
    max_frames: int | None,
    abilities: Abilities,
) -> Look:
    """Reads a clip's index and decodes its first frame, or where they hold its size its key frames.

    Args:
        media: Where it came from, for messages.
        demuxer: The name of FFmpeg's demuxer.
        content: The file's bytes.
        start: As in `sama_data.decode.decode_frames`, like the next two.
        end: The frame after the last one wanted.
        max_frames: At most this many frames are wanted.
        abilities: Of the decoder that is to be used.

    Raises:
        Unsuitable: As described above.
        ClipError: It cannot be opened or has no video.
    """
    if demuxer not in abilities.containers:
        raise Unsuitable(f"container {demuxer}")
    limit = end_of_range(start, end, max_frames)
    with open_video(media, demuxer, content=content) as video:
        if video.codec not in abilities.codecs:
            raise Unsuitable(f"codec {video.codec}")
        if video.is_interlaced:
            raise Unsuitable("interlaced clips")
        index = _read_index(video, limit)
        if limit is None or index.num_frames < limit:
            if video.what_is_lacking(index.num_frames, index.end_seconds) is not None:
                raise Unsuitable("cut clips")
            if start >= index.num_frames or (end is not None and end > index.num_frames):
                raise Unsuitable("clips without the wanted frames")
        _refuse_unlike(index.first, abilities)
        fps = video.fps
    num_frames = (index.num_frames if limit is None else min(limit, index.num_frames)) - start
    first = index.first
    if num_frames * first.width * first.height * 3 > abilities.max_decoded_bytes:
        raise Unsuitable("clips that are large when decoded")
    return Look(first.width, first.height, num_frames, fps)


@dataclass(frozen=True, slots=True)
class _Index:
    num_frames: int
    end_seconds: float | None
    first: VideoFrame


def _read_index(video: VideoReader, limit: int | None) -> _Index:
    """Counts packets, up to those that the frame `limit` can depend on, and decodes what tells the clip's nature."""
    wanted = None if limit is None else limit + _REORDERING_PACKETS
    first: VideoFrame | None = None
    num_frames = num_key_frames = 0
    end_seconds: float | None = None
    key_frames_only = video.codec in _SIZED_BY_KEY_FRAMES
    try:
        for packet in video.packets():
            if first is None or (packet.is_keyframe and packet.size and key_frames_only):
                for frame in packet.decode():
                    first = _like_the_first(first, frame)
            if not packet.size:
                continue
            if packet.is_corrupt or packet.is_discard or packet.has_sidedata("new_extradata"):
                raise Unsuitable("clips with damage, an edit list or a change of format")
            num_frames += 1
            num_key_frames += packet.is_keyframe
            if packet.pts is not None and packet.time_base is not None:
                ends = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                end_seconds = ends if end_seconds is None else max(end_seconds, ends)
            if num_frames == wanted or (key_frames_only and num_key_frames > _MOST_KEY_FRAMES):
                break
    except av.FFmpegError as error:
        raise Unsuitable("damaged clips") from error
    if key_frames_only and num_key_frames > _MOST_KEY_FRAMES:
        raise Unsuitable("clips with many key frames")
    if first is None:
        raise Unsuitable("damaged clips")
    return _Index(num_frames, end_seconds, first)


def _like_the_first(first: VideoFrame | None, frame: VideoFrame) -> VideoFrame:
    if first is None:
        return frame
    if (first.width, first.height, first.format.name) != (frame.width, frame.height, frame.format.name):
        raise Unsuitable("clips that change their size")
    return first


def _refuse_unlike(frame: VideoFrame, abilities: Abilities) -> None:
    if frame.format.name not in abilities.pixel_formats:
        raise Unsuitable(f"pixel format {frame.format.name}")
    if int(frame.colorspace) not in _BT601 | UNTAGGED_COLOUR_SPACES:
        raise Unsuitable(f"colour matrix {int(frame.colorspace)} (DALI has BT.601 alone)")
    if frame.is_corrupt:
        raise Unsuitable("damaged clips")
    if quarter_turns(frame):
        raise Unsuitable("clips with a rotation tag")
    if frame.width * frame.height > MAX_PIXELS:
        raise Unsuitable("too many pixels")
