"""Clips read in worker processes: the same frames, and a decoder that hangs or crashes is one bad clip."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

import sama_data.clip_reader
from sama_data.clip_reader import ClipReader
from sama_data.clips import load_clip
from sama_data.errors import ClipError, DecoderLostError
from sama_data.manifest import load_manifest, write_jsonl
from tests.support import worker_jobs

BUCKETS = ((64, 64), (128, 64))


@pytest.fixture
def rows(tmp_path: Path, make_frames, make_video) -> dict:
    """A pair whose frames take another way to the parent than those of a small raw clip do, and clips that are bad."""
    make_video(tmp_path / "source.mp4", make_frames(17, 64, 128, seed=1))
    make_video(tmp_path / "target.mp4", make_frames(14, 64, 128, seed=2))
    make_video(tmp_path / "raw.mp4", make_frames(5, 64, 64, seed=3), fps=12)
    (tmp_path / "empty.mp4").write_bytes(b"")
    written = [{"source": "source.mp4", "target": "target.mp4", "instruction": "x"}]
    written += [
        {"video": name, "caption": "x"} for name in ("raw.mp4", "empty.mp4", "hang.mp4", "crash.mp4", "odd.mp4")
    ]
    write_jsonl(written, tmp_path / "manifest.jsonl")
    return {row.sample_id.removesuffix(".mp4"): row for row in load_manifest(tmp_path / "manifest.jsonl")}


def test_frames_are_those_of_a_decoder_in_this_process(rows):
    with ClipReader(BUCKETS, 17, 60.0) as reader:
        for name in ("target", "raw"):
            ours, truth = reader.read(rows[name], threads=2), load_clip(rows[name], BUCKETS, 17)
            np.testing.assert_array_equal(ours.source, truth.source)
            np.testing.assert_array_equal(ours.target, truth.target)
            assert ours.fps == truth.fps
            assert ours.source.flags.writeable and ours.target.flags.c_contiguous
            assert ours.num_bytes == sum({id(side): side.nbytes for side in (ours.source, ours.target)}.values())
            assert (ours.source is ours.target) == (name == "raw")


def test_what_befalls_a_decoder_is_said_of_its_clip(rows, monkeypatch):
    monkeypatch.setattr(sama_data.clip_reader, "load_clip", worker_jobs.load_clip)
    reasons = {
        "empty": "is empty (0 bytes)",
        "hang": "took longer than 0.5 s to decode (data.decode_timeout_seconds)",
        "crash": "the decoder died of signal 11 (SIGSEGV) twice",
        "odd": "cannot be decoded: MemoryError: no room for 10**12 frames",
    }
    with ClipReader(BUCKETS, 17, 0.5) as reader:
        reader.read(rows["raw"])
        for name, reason in reasons.items():
            with pytest.raises(ClipError) as caught:
                reader.read(rows[name])
            assert (caught.value.path, caught.value.reason) == (str(rows[name].target.path), reason)
            assert isinstance(caught.value, DecoderLostError) == (name in ("hang", "crash"))
        assert len(reader.read(rows["raw"]).target) == 5


@pytest.mark.parametrize("kind", [ClipError, DecoderLostError])
def test_errors_pickle_whole(kind):
    error = kind("a.mp4", "is bad")
    error.told_by_first_rank = True
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.path, copy.reason, str(copy)) == ("a.mp4", "is bad", "a.mp4: is bad")
    assert copy.told_by_first_rank
