"""DALI on a GPU: NVDEC against PyAV, bad files in a batch, and samples whose frames never leave the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sama_data.clip_reader import ClipReader
from sama_data.clips import load_clip
from sama_data.decode import decode_frames
from sama_data.errors import ClipError
from sama_data.graph.frames import DeviceClip, DeviceFrames, on_host
from sama_data.graph.piece import Piece
from sama_data.graph.pipeline import Graph
from sama_data.graph.reader import DaliReader
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest, write_jsonl
from sama_data.media import Media
from sama_mega.bench.decoding import LIMITS
from sama_mega.encoders import build_encoders
from sama_mega.parallel.transfer import InUse
from sama_mega.train.encode import SampleEncoder, as_clip
from tests.support.clip_zoo import make_row, write_frames
from tests.support.clips import moving_picture, write_video
from tests.support.tiny_recipe import tiny_recipe

pytestmark = pytest.mark.gpu
pytest.importorskip("nvidia.dali")

SIZE = (640, 352)
FAST_VPX = {"cpu-used": "8", "b": "0", "crf": "8", "deadline": "realtime"}
SETTINGS = LoaderSettings(0, 1, buckets=(SIZE,), max_frames=17, decode_threads=2, decode_batch=4, decoder="dali")


@pytest.fixture(scope="module")
def workers() -> Iterator[ClipReader]:
    with ClipReader(SETTINGS.buckets, SETTINGS.max_frames, 60.0, num_workers=2) as shared:
        yield shared


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """17 frames of 640x352 in the codecs that NVDEC decodes, with what differs between files."""
    folder = tmp_path_factory.mktemp("clips")
    frames = moving_picture(17, SIZE[1], SIZE[0])
    uneven = np.cumsum([20, 50, 90] * 6).tolist()
    return {
        "h264": write_video(folder / "h264.mp4", frames),
        "h264 in order": write_video(folder / "in_order.mp4", frames, bf="0", g="4"),
        "h264, uneven times": write_frames(
            folder / "uneven.mp4", [frames], "libx264", times_milliseconds=uneven, bf="0"
        ),
        "h264, odd macroblocks": write_video(folder / "odd.mp4", moving_picture(17, 346, 634)),
        "vp9": write_frames(folder / "vp9.webm", [frames], **FAST_VPX),
        "vp8": write_video(folder / "vp8.webm", frames, "libvpx", **{"auto-alt-ref": "1", "b": "4M"}),
    }


def difference(found: object, expected: np.ndarray) -> np.ndarray:
    assert isinstance(found, DeviceFrames)
    return np.abs(on_host(found).astype(np.int16) - expected)


@pytest.mark.parametrize("name", ["h264", "h264 in order", "h264, uneven times", "h264, odd macroblocks", "vp9", "vp8"])
def test_nvdec_is_close_to_pyav(clips: dict[str, Path], workers: ClipReader, name: str) -> None:
    expected = decode_frames(Media(clips[name])).frames
    own_size = replace(SETTINGS, buckets=((expected.shape[2], expected.shape[1]),))
    reader = DaliReader(own_size, torch.cuda.current_device(), workers)
    clip = reader.read([make_row(clips[name])])[0]
    assert isinstance(clip, DeviceClip), clip
    assert not reader.by_pyav
    found = difference(clip.target, expected)
    largest, mean = LIMITS["gpu"]
    assert found.max() <= largest
    assert found.mean() <= mean


def test_nvdec_is_close_to_pyav_on_real_clips(shared_root: Path, workers: ClipReader) -> None:
    largest, mean = LIMITS["gpu"]
    paths = sorted((shared_root / "videos" / "clips").glob("*.mp4"))
    assert paths
    for path in paths:
        expected = decode_frames(Media(path), max_frames=17).frames
        own_size = replace(SETTINGS, buckets=((expected.shape[2], expected.shape[1]),))
        clip = DaliReader(own_size, torch.cuda.current_device(), workers).read([make_row(path)])[0]
        assert isinstance(clip, DeviceClip), clip
        found = difference(clip.target, expected[: len(clip.target)])
        assert found.max() <= largest, path
        assert found.mean() <= mean, path


def test_a_refused_batch_does_not_harm_the_next(clips: dict[str, Path]) -> None:
    good = np.fromfile(clips["h264"], np.uint8)
    damaged = good.copy()
    damaged[len(good) // 2 : len(good) // 2 + 4000] = 0
    graph = Graph("video", torch.cuda.current_device(), 2, 2)
    piece = Piece(good, *SIZE, num_frames=17)
    expected = on_host(graph.run([piece])[0])
    for bad in (np.frombuffer(b"junk" * 50, np.uint8), good[: len(good) // 2], good[:0]):
        with pytest.raises(RuntimeError):
            graph.run([piece, Piece(bad, *SIZE, num_frames=17)])
        np.testing.assert_array_equal(on_host(graph.run([piece])[0]), expected)
    with suppress(RuntimeError):  # NVDEC may conceal damage inside the stream; the next batch is unharmed either way
        graph.run([piece, Piece(damaged, *SIZE, num_frames=17)])
    np.testing.assert_array_equal(on_host(graph.run([piece])[0]), expected)


def test_every_file_of_the_zoo_is_read_or_refused_as_by_pyav(zoo: dict[str, Path], workers: ClipReader) -> None:
    settings = replace(SETTINGS, buckets=((256, 160),), decode_batch=8)
    reader = DaliReader(settings, torch.cuda.current_device(), workers)
    wrong = []
    for name, path in zoo.items():
        row = make_row(path)
        try:
            expected = load_clip(row, settings.buckets, settings.max_frames).target
        except ClipError as error:
            expected = str(error)
        found = reader.read([row])[0]
        if isinstance(found, DeviceClip) and not isinstance(expected, str):
            far = float(difference(found.target, expected).mean())
            if far > 1.0:  # both scale, by other kernels
                wrong.append(f"{name}: {far:.2f} levels")
        elif not isinstance(found, ClipError) or str(found) != expected:
            wrong.append(f"{name}: {found} instead of {expected}")
    assert not wrong


@pytest.fixture(scope="module")
def manifest(clips: dict[str, Path], zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw clips, pairs and images, and a clip that nothing decodes."""
    rows = [{"video": str(path), "caption": name} for name, path in clips.items()]
    rows += [{"source": str(clips["h264"]), "target": str(clips["vp9"]), "instruction": "Change the codec."}]
    rows += [{"video": str(zoo["cut.mp4"]), "caption": "cut"}]
    rows += [{"image": str(zoo[name]), "caption": name} for name in ("image.jpg", "image.png", "clear.png")]
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    write_jsonl(rows, path)
    return path


def test_samples_stay_on_the_device_and_are_encoded_there(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    settings = LoaderSettings(
        2, 3, seed=2, buckets=((64, 64),), max_frames=9, max_bad_share=1.0, decode_batch=2, decoder="auto"
    )
    dataset = load_manifest(manifest)
    recipe = tiny_recipe(0, tmp_path, manifest, changes={"anchor.num_frames": 2})
    encoders = build_encoders(recipe, device)

    def encoded(decoder: str) -> list[tuple[str, list[torch.Tensor]]]:
        chosen = replace(settings, decoder=decoder)
        quarantine = Quarantine(tmp_path / f"{decoder}.jsonl")
        results = []
        with SampleLoader(dataset, chosen, 0, 1, quarantine, device=device.index) as loader:
            steps = list(loader.prefetching(0, 4))  # all held: no later batch may write over an earlier one
        for sample in (sample for step in steps for sample in step.samples):
            assert isinstance(sample.target_frames, DeviceFrames) == (decoder == "auto")
            jobs = SampleEncoder(recipe, encoders, device).jobs([sample], [sample.prompt], 4)
            results.append((sample.sample_id, [job.run() for job in jobs]))
        return results

    plain = encoded("pyav")
    with monkeypatch.context() as no_host:
        no_host.setattr(DeviceFrames, "on_host", None)
        on_device = encoded("auto")
    assert [name for name, _ in on_device] == [name for name, _ in plain]
    for (_, found), (_, expected) in zip(on_device, plain, strict=True):
        for one, other in zip(found, expected, strict=True):
            assert one.is_cuda
            assert (one - other).abs().mean() <= 0.05 * other.abs().mean() + 1e-3


def test_memory_is_kept_until_the_stream_is_done_with_it(clips: dict[str, Path]) -> None:
    graph = Graph("video", torch.cuda.current_device(), 2, 1)
    content = np.fromfile(clips["h264"], np.uint8)
    in_use = InUse()
    frames = as_clip(graph.run([Piece(content, *SIZE, num_frames=17)])[0])
    assert isinstance(frames, torch.Tensor)
    expected = frames.sum(dtype=torch.int64).item()
    torch.cuda._sleep(2_000_000_000)  # the stream is behind by about a second
    late = frames.sum(dtype=torch.int64)
    in_use.keep(frames)
    del frames
    other = np.fromfile(clips["h264 in order"], np.uint8)
    for _ in range(4):  # would fill the same memory
        graph.run([Piece(other, *SIZE, num_frames=17)])
    assert late.item() == expected
    in_use.keep(late)
    torch.cuda.synchronize()
    in_use.keep(late)
    assert len(in_use._held) <= 1
