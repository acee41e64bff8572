"""A clip's sound, taken over into its edit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import av
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from sama_data.media import Media
from sama_data.sniff import STILL_IMAGE, content_kind
from sama_mega.config.errors import UserError

SoundKept = Literal["copied", "encoded"]
"""How a sound got into the edit: as it was, or as AAC."""

# What players read inside an mp4; anything else is encoded anew.
_COPIED_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})
_AAC_RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
_AAC_DEFAULT_RATE = 48000
_AAC_SAMPLES = 1024
_AAC_LAYOUTS = {1: "mono", 6: "5.1"}
_AAC_BITS_PER_SECOND_AND_CHANNEL = 96_000
# A clip must not make FFmpeg read anything but itself.
_OPEN_OPTIONS: dict[str, Any] = {"options": {"protocol_whitelist": "file"}, "metadata_errors": "replace"}


class SoundError(UserError):
    """The sound cannot be read, or not be put into an mp4."""


class Sound:
    """The first sound track of an open clip, its times counted from the clip's first frame."""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        """Looks at the track.

        Args:
            container: Open; nothing was read of it.
            stream: The track.
        """
        self._container = container
        self._stream = stream
        video = container.streams.video[0]
        base = video.time_base
        self._start_seconds = 0 if video.start_time is None or base is None else video.start_time * base
        codec = stream.codec_context
        # AAC without its header comes in frames that carry it each (ADTS), which an mp4 does not.
        self.kept: SoundKept = "copied"
        name = codec.codec.canonical_name
        if name not in _COPIED_CODECS or (name == "aac" and not codec.extradata):
            self.kept = "encoded"
        self._packets: Iterator[tuple[float, Packet]] = iter(())
        self._waiting: tuple[float, Packet] | None = None

    def join(self, output: OutputContainer) -> None:
        """Gives the output a track; called before anything is written to it.

        Raises:
            SoundError: The track does not fit there.
        """
        with _as_sound_error():
            self._packets = self._copied(output) if self.kept == "copied" else self._encoded(output)
            self._waiting = next(self._packets, None)

    def write_until(self, output: OutputContainer, seconds: float) -> None:
        """Writes what begins before a moment of the clip and was not written yet.

        Raises:
            SoundError: The rest is damaged.
        """
        with _as_sound_error():
            while self._waiting is not None and self._waiting[0] < seconds:
                output.mux(self._waiting[1])
                self._waiting = next(self._packets, None)

    def _copied(self, output: OutputContainer) -> Iterator[tuple[float, Packet]]:
        track = output.add_stream_from_template(self._stream)
        return self._copied_packets(track)

    def _copied_packets(self, track: AudioStream) -> Iterator[tuple[float, Packet]]:
        base = self._stream.time_base
        assert base is not None, "an open track counts its time"
        shift = round(self._start_seconds / base)
        for packet in self._container.demux(self._stream):
            if packet.pts is None or packet.dts is None:  # the empty packet at the end
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            begins = float(packet.pts * base)
            packet.stream = track
            yield begins, packet

    def _encoded(self, output: OutputContainer) -> Iterator[tuple[float, Packet]]:
        codec = self._stream.codec_context
        rate = codec.sample_rate if codec.sample_rate in _AAC_RATES else _AAC_DEFAULT_RATE
        track = output.add_stream("aac", rate=rate)
        # Named by their number: some files do not say which channel is which.
        layout = _AAC_LAYOUTS.get(codec.layout.nb_channels, "stereo")
        track.layout = layout
        track.bit_rate = _AAC_BITS_PER_SECOND_AND_CHANNEL * track.layout.nb_channels
        return self._encoded_packets(track, AudioResampler("fltp", layout, rate, _AAC_SAMPLES))

    def _encoded_packets(self, track: AudioStream, resampler: AudioResampler) -> Iterator[tuple[float, Packet]]:
        for decoded in (*self._container.decode(self._stream), None):
            for frame in resampler.resample(decoded):
                if frame.pts is not None and frame.time_base is not None:
                    frame.pts -= round(self._start_seconds / frame.time_base)
                yield from _timed(track.encode(frame))
        yield from _timed(track.encode(None))


@contextmanager
def open_sound(path: Path) -> Iterator[Sound | None]:
    """Opens the sound of a clip; None where it has none, or is a picture.

    Raises:
        SoundError: The clip cannot be read any more.
    """
    demuxer = content_kind(Media(path), None)
    if demuxer == STILL_IMAGE:
        yield None
        return
    with _as_sound_error():
        container = av.open(str(path), format=demuxer, **_OPEN_OPTIONS)
    with container:
        tracks = container.streams.audio
        yield Sound(container, tracks[0]) if tracks else None


def _timed(packets: list[Packet]) -> Iterator[tuple[float, Packet]]:
    for packet in packets:
        base = packet.time_base
        yield 0.0 if packet.pts is None or base is None else float(packet.pts * base), packet


@contextmanager
def _as_sound_error() -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SoundError(str(error)) from error
