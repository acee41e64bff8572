"""A step's samples come back as they were written, frames and all."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.train.numerics.save import read_report
from sama_mega.train.numerics.saved_step import SavedSamples, samples_path, write_samples
from sama_mega.verify.samples import global_batch


def test_samples_come_back_bit_for_bit(tmp_path: Path) -> None:
    samples = global_batch(0)
    for rank in (0, 1):
        write_samples(samples_path(tmp_path, rank), samples[rank::2])
    saved = SavedSamples(tmp_path, 2)
    assert saved.slots_by_rank == [[sample.slot for sample in samples[rank::2]] for rank in (0, 1)]
    assert [saved.sizes[sample.slot] for sample in samples] == [sample.target_frames[..., 0].size for sample in samples]
    bare = {"source_frames": None, "target_frames": None}
    for ours, truth in zip(saved.read([sample.slot for sample in samples]), samples, strict=True):
        assert asdict(replace(ours, **bare)) == asdict(replace(truth, **bare))
        assert np.array_equal(ours.source_frames, truth.source_frames)
        assert np.array_equal(ours.target_frames, truth.target_frames)
        assert (ours.source_frames is ours.target_frames) == (truth.source_frames is truth.target_frames)


def test_a_rank_without_samples_is_kept_too(tmp_path: Path) -> None:
    write_samples(samples_path(tmp_path, 0), [])
    assert SavedSamples(tmp_path, 1).slots_by_rank == [[]]


def test_what_is_missing_or_cut_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"samples-00000\.safetensors cannot be read"):
        SavedSamples(tmp_path, 1)
    path = samples_path(tmp_path, 0)
    write_samples(path, global_batch(1))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"samples-00000\.safetensors cannot be read"):
        SavedSamples(tmp_path, 1)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 99}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError, match="--replay"):
        read_report(tmp_path)
