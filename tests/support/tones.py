"""Clips with a generated sound track."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 44100
TONE_HERTZ = 440.0


def add_tone(video: Path, out: Path, codec: str = "aac", rate: int = RATE, start_seconds: float = 0.0) -> Path:
    """Copies a clip, frames untouched, and gives it a stereo tone of its length from a moment on.

    Args:
        video: The clip.
        out: The new clip; its ending names the container.
        codec: The sound's.
        rate: Samples a second.
        start_seconds: Where the tone begins.
    """
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        pictures = source.streams.video[0]
        copied = target.add_stream_from_template(pictures)
        sound = target.add_stream(codec, rate=rate, layout="stereo")
        for packet in source.demux(pictures):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
        duration = float(pictures.duration * pictures.time_base)
        moments = np.arange(round(duration * rate)) / rate
        tone = (0.5 * np.sin(2 * np.pi * TONE_HERTZ * moments)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, round(start_seconds * rate)
        size = sound.codec_context.frame_size or 1024
        resampler = av.AudioResampler(sound.format.name, "stereo", rate, size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            target.mux(sound.encode(part))
        target.mux(sound.encode(None))
    return out


def read_sound(path: Path) -> tuple[str, int, float, NDArray[np.float32]]:
    """Codec, rate, the first sample's moment in seconds, and ``[channels, samples]``."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        frames = list(container.decode(stream))
        resampler = av.AudioResampler("fltp", stream.layout, stream.rate)
        samples = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
        return (
            stream.codec_context.codec.canonical_name,
            stream.rate,
            float(frames[0].time),
            np.concatenate(samples, axis=1),
        )


def loudest_hertz(samples: NDArray[np.float32], rate: int) -> float:
    """The frequency of a tone."""
    spectrum = np.abs(np.fft.rfft(samples[0] * np.hanning(samples.shape[1])))
    return float(np.argmax(spectrum) * rate / samples.shape[1])
