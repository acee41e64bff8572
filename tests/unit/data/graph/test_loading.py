"""The loader with DALI: the samples, stand-ins and quarantine that it has with PyAV, and which of the two it takes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import sama_data.readers
from sama_data.errors import DataError
from sama_data.graph.frames import DeviceFrames, on_host
from sama_data.graph.piece import Piece
from sama_data.graph.pipeline import Graph
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_manifest, write_jsonl
from sama_data.readers import choose_decoder, make_reader

BUCKETS = ((64, 48), (48, 64))


@pytest.fixture(scope="module")
def manifest(zoo, tmp_path_factory) -> Path:
    """Every file of the zoo as a raw clip or image, and pairs of good with good and of good with bad."""
    rows = []
    for name, path in zoo.items():
        kind = "image" if path.suffix in (".png", ".jpg", ".webp") else "video"
        rows.append({kind: str(path), "caption": name})
    pairs = [("vp9", "h264"), ("odd size", "vp9 in mp4"), ("cut.webm", "vp8"), ("image.jpg", "turned.jpg")]
    rows += [{"source": str(zoo[a]), "target": str(zoo[b]), "instruction": f"{a} to {b}"} for a, b in pairs]
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    write_jsonl(rows, path)
    return path


def samples_of(manifest: Path, quarantine: Path, decoder: str, threads: int = 2, batch: int = 3) -> list:
    settings = LoaderSettings(
        images_per_step=3,
        videos_per_step=7,
        seed=5,
        buckets=BUCKETS,
        max_frames=13,
        max_bad_share=1.0,
        decode_threads=threads,
        decoder=decoder,
        decode_batch=batch,
    )
    loader = SampleLoader(load_manifest(manifest), settings, 0, 1, Quarantine(quarantine))
    samples = [sample for step in loader.prefetching(2, 6) for sample in step.samples]
    loader.close()
    return samples


def facts(sample) -> tuple:
    return sample.slot, sample.sample_id, sample.epoch, sample.plan, sample.prompt, sample.shape


def quarantined(path: Path) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["sample_id"]: (line["path"], line["reason"]) for line in lines}


def test_the_decoder_changes_no_order_and_no_stand_in(manifest, tmp_path):
    plain = samples_of(manifest, tmp_path / "pyav.jsonl", "pyav")
    for number, (threads, batch) in enumerate([(1, 8), (2, 3)]):
        fast = samples_of(manifest, tmp_path / f"dali{number}.jsonl", "dali", threads, batch)
        assert list(map(facts, fast)) == list(map(facts, plain))
        assert quarantined(tmp_path / f"dali{number}.jsonl") == quarantined(tmp_path / "pyav.jsonl")
        for one, other in zip(fast, plain, strict=True):
            assert (one.source_frames is one.target_frames) == (other.source_frames is other.target_frames)
            for side in ("source_frames", "target_frames"):
                difference = np.abs(getattr(one, side).astype(int) - getattr(other, side))
                assert difference.mean() < 0.6
    assert len(quarantined(tmp_path / "pyav.jsonl")) >= 9


@pytest.mark.parametrize(
    ("wanted", "device", "installed", "chosen"),
    [
        ("auto", None, True, "pyav"),
        ("auto", 3, True, "dali"),
        ("auto", 3, False, "pyav"),
        ("pyav", 3, True, "pyav"),
        ("dali", None, True, "dali"),
    ],
)
def test_auto_is_dali_where_there_are_a_gpu_and_dali(monkeypatch, wanted, device, installed, chosen):
    monkeypatch.setattr(sama_data.readers, "has_dali", lambda: installed)
    assert choose_decoder(wanted, device) == chosen


def test_dali_that_is_not_there_is_one_line_with_the_extra(monkeypatch):
    monkeypatch.setattr(sama_data.readers, "has_dali", lambda: False)
    with pytest.raises(DataError, match=r"^data\.decoder \(dali\) needs DALI.*pip install 'sama-mega\[dali\]'"):
        make_reader(LoaderSettings(0, 1, decoder="dali"), None)


def test_the_choice_is_logged_once(manifest, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        samples_of(manifest, tmp_path / "quarantine.jsonl", "dali")
    told = [line for line in caplog.messages if line.startswith("clips are decoded by")]
    assert told == ["clips are decoded by DALI on the CPU (data.decoder: dali)"]
    assert make_reader(LoaderSettings(0, 1, decoder="auto"), None).name == "PyAV on the CPU"


def test_kept_clips_do_not_hold_their_whole_batch(manifest, tmp_path):
    settings = LoaderSettings(
        0, 4, buckets=BUCKETS, max_frames=13, max_bad_share=1.0, decoder="dali", decoded_cache_mib=9
    )
    loader = SampleLoader(load_manifest(manifest), settings, 0, 1, Quarantine(tmp_path / "quarantine.jsonl"))
    samples = loader.step(0).samples
    loader.close()
    assert all(sample.target_frames.flags.owndata for sample in samples)
    assert loader._cache.held_bytes == sum(sample.target_frames.nbytes for sample in samples)


def test_frames_of_a_device_are_handed_over_by_dlpack():
    import torch

    class Tensor:  # DALI's, as far as it is used
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def shape(self) -> list[int]:
            return list(self.array.shape)

        def as_cpu(self) -> np.ndarray:
            return self.array

        def __dlpack__(self, **how: object) -> object:
            return self.array.__dlpack__(**how)

        def __dlpack_device__(self) -> tuple:
            return self.array.__dlpack_device__()

    array = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    frames = DeviceFrames(Tensor(array))
    assert (len(frames), frames.shape) == (5, (5, 4, 6, 3))
    tensor = torch.from_dlpack(frames)
    assert tensor.data_ptr() == array.ctypes.data
    copy = on_host(frames)
    np.testing.assert_array_equal(copy, array)
    assert copy.ctypes.data != array.ctypes.data
    assert on_host(array) is array


def test_a_graph_takes_fewer_files_than_it_could_and_frames_beside_bytes(zoo):
    graph = Graph("video", None, 1, 4)
    given = np.full((3, 8, 6, 3), 7, np.uint8)
    frames, decoded = graph.run([Piece(frames=given), Piece(np.fromfile(zoo["vp9"], np.uint8), 96, 64, None, 2, 5)])
    np.testing.assert_array_equal(frames, given)
    assert decoded.shape == (5, 64, 96, 3)
    for bad in (np.frombuffer(b"junk", np.uint8), np.fromfile(zoo["cut.webm"], np.uint8)):
        with pytest.raises(RuntimeError):
            graph.run([Piece(bad, 96, 64, None, 0, 17), Piece(frames=given)])
    np.testing.assert_array_equal(graph.run([Piece(frames=given)])[0], given)
