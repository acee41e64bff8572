"""Clips in tars are found by the names a dataset uses, and never one for another."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sama_data.ingest.archives import ArchiveIndex, find_archives, how_to_unpack
from sama_data.ingest.interface import Advance, Clip, Skip
from tests.support.ingest_sets import tar_bytes, write_files


def index_of(root: Path, workers: int = 1) -> ArchiveIndex:
    return ArchiveIndex(root, find_archives(root).tars, workers, Advance())


def content(clip: Clip | Skip | None) -> bytes:
    assert isinstance(clip, Clip)
    assert clip.offset is not None
    assert clip.num_bytes is not None
    return Path(clip.path).read_bytes()[clip.offset : clip.offset + clip.num_bytes]


@pytest.mark.parametrize("inner", ["", "./", "src_videos/", "add/src_videos/", "ReCo-Data/add/src_videos/"])
def test_members_are_found_however_their_paths_start(tmp_path, inner):
    write_files(tmp_path, {"add/src_videos/add_src_video_00.tar": tar_bytes([(f"{inner}x.mp4", b"source")])})
    assert content(index_of(tmp_path).find("add/src_videos/x.mp4")) == b"source"


def test_a_member_of_another_folder_is_not_taken(tmp_path):
    """Only the sources are there: an edit of the same name must not be found among them."""
    write_files(tmp_path, {"add/src_videos/00.tar": tar_bytes([("x.mp4", b"source")])})
    index = index_of(tmp_path)
    assert index.find("add/tar_videos/x.mp4") is None
    assert index.find("add/src_videos/y.mp4") is None
    assert content(index.find("x.mp4")) == b"source"  # without a folder the name is all there is


def test_equal_names_in_several_folders(tmp_path):
    write_files(
        tmp_path,
        {
            "add/src_videos/00.tar": tar_bytes([("x.mp4", b"add")]),
            "replace/src_videos/00.tar": tar_bytes([("x.mp4", b"replace")]),
            "all.tar": tar_bytes([("style/src_videos/x.mp4", b"style"), ("remove/src_videos/x.mp4", b"remove")]),
        },
    )
    index = index_of(tmp_path, workers=3)
    for task in ("add", "replace", "style", "remove"):
        assert content(index.find(f"{task}/src_videos/x.mp4")) == task.encode()


def test_equal_members_are_one_and_unequal_ones_none(tmp_path):
    write_files(tmp_path, {"v/a.tar": tar_bytes([("x.mp4", b"same"), ("y.mp4", b"one")])})
    write_files(tmp_path, {"v/b.tar": tar_bytes([("x.mp4", b"same"), ("y.mp4", b"two")])})
    index = index_of(tmp_path)
    assert content(index.find("v/x.mp4")) == b"same"
    assert isinstance(index.find("v/y.mp4"), Skip)


def test_damage_is_told(tmp_path):
    write_files(tmp_path, {"a.tar": tar_bytes([("x.mp4", b"1" * 5000)])[:2000], "b.tar": tar_bytes([("y.mp4", b"2")])})
    index = index_of(tmp_path)
    assert [skip.place for skip in index.damaged] == ["a.tar at byte 512: ends inside member x.mp4"]
    assert content(index.find("y.mp4")) == b"2"


PACKED = (
    "source.tar.gz.part000",
    "source.tar.gz.part001",
    "local.tar.gz.aa",
    "style.tar.gz.00",
    "a.tgz",
    "b.tar.zst",
    "c.zip",
    "d.tar.001",
    "e.tar.part2",
)


def test_archives_that_must_be_unpacked_are_told_from_others(tmp_path):
    write_files(tmp_path, dict.fromkeys((*PACKED, "plain.tar", "x.mp4", "notes.txt", "z.tar.md5sum.txt"), b""))
    found = find_archives(tmp_path)
    assert [path.name for path in found.tars] == ["plain.tar"]
    assert [path.name for path in found.packed] == sorted(PACKED)


@pytest.mark.parametrize(
    ("parts", "compress"),
    [
        (["s.tar.gz.part000", "s.tar.gz.part001"], ["gzip"]),
        (["s.tar.bz2"], ["bzip2"]),
        (["s.tgz"], ["gzip"]),
        (["s.tar.xz.aa", "s.tar.xz.ab"], ["xz"]),
    ],
)
def test_the_command_that_is_named_unpacks(tmp_path, parts, compress):
    folder = tmp_path / "with space"
    packed = subprocess.run(compress, input=tar_bytes([("x.mp4", b"clip")]), capture_output=True, check=True).stdout
    size = -(-len(packed) // len(parts))
    write_files(folder, {name: packed[number * size : (number + 1) * size] for number, name in enumerate(parts)})
    subprocess.run(["bash", "-c", how_to_unpack(folder / parts[0])], check=True, timeout=60)
    assert (folder / "x.mp4").read_bytes() == b"clip"


def test_a_split_tar_is_only_joined(tmp_path):
    whole = tar_bytes([("x.mp4", b"clip")])
    write_files(tmp_path, {"s.tar.part0": whole[:700], "s.tar.part1": whole[700:]})
    subprocess.run(["bash", "-c", how_to_unpack(tmp_path / "s.tar.part0")], check=True, timeout=60)
    assert content(index_of(tmp_path).find("x.mp4")) == b"clip"
