"""Tars are read by their headers alone: every member's place is right, whatever wrote them and however they end."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sama_data.errors import DataError
from sama_data.ingest.tar_members import Damage, Member, read_members
from tests.support.ingest_sets import tar_bytes

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def read(path: Path) -> list[tuple[str, bytes, bool]]:
    """All members with their bytes; damage fails."""
    content = path.read_bytes()
    members = list(read_members(path))
    assert not [member for member in members if isinstance(member, Damage)]
    return [(m.name, content[m.offset : m.offset + m.num_bytes], m.follows) for m in members if isinstance(m, Member)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tars")


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=130).filter(
    lambda name: not name.isspace() and len(name.encode()) < 255
)
archives = st.lists(
    st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=4), min_size=1, max_size=3
)  # several archives in one file


@given(archives, st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
def test_members_of_concatenated_archives(folder, contents, tar_format):
    path = folder / "property.tar"
    path.write_bytes(b"".join(tar_bytes(members, tar_format) for members in contents))
    assert [(name, content) for name, content, _ in read(path)] == [pair for members in contents for pair in members]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_folders_and_links_are_passed_over(tmp_path, tar_format):
    path = tmp_path / "mixed.tar"
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, kind in (("clips", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "elsewhere" * 20 if tar_format != tarfile.USTAR_FORMAT else "x"
            tar.addfile(header)
        header = tarfile.TarInfo("clips/a.mp4")
        header.size = 5
        tar.addfile(header, io.BytesIO(b"hello"))
    assert read(path) == [("clips/a.mp4", b"hello", True)]


def test_an_end_of_archive_is_seen_between_members(tmp_path):
    path = tmp_path / "two.tar"
    path.write_bytes(tar_bytes([("a", b"1"), ("b", b"2")]) + tar_bytes([("a", b"3")]))
    assert read(path) == [("a", b"1", False), ("b", b"2", True), ("a", b"3", False)]


def test_a_tar_that_ends_early_names_the_member(tmp_path):
    path = tmp_path / "short.tar"
    path.write_bytes(tar_bytes([("a", b"1" * 600), ("b", b"2" * 2000)])[: 512 + 1024 + 512 + 1000])
    members = list(read_members(path))
    assert [type(member) for member in members] == [Member, Damage]
    assert "ends inside member b" in members[1].what


def test_a_tar_that_ends_inside_a_header(tmp_path):
    path = tmp_path / "short.tar"
    path.write_bytes(tar_bytes([("a", b"1"), ("b", b"2")])[: 1024 + 300])
    damage = list(read_members(path))[1]
    assert damage == Damage(1024, "ends inside a header")


def test_an_archive_behind_damage_is_read(tmp_path):
    path = tmp_path / "damaged.tar"
    path.write_bytes(tar_bytes([("a", b"1")])[:1024] + b"\x07" * 2048 + tar_bytes([("b", b"2")]))
    members = list(read_members(path))
    assert [type(member) for member in members] == [Member, Damage, Member]
    assert members[1].offset == 1024
    assert (members[2].name, members[2].follows) == ("b", False)


def test_a_sparse_member_is_damage_and_not_a_clip(tmp_path):
    header = tarfile.TarInfo("sparse.mp4")
    header.size = 512
    header.type = tarfile.GNUTYPE_SPARSE
    path = tmp_path / "sparse.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"x" * 512 + tar_bytes([("b", b"2")]))
    assert [getattr(member, "name", "damage") for member in read_members(path)] == ["damage", "b"]


def test_a_compressed_tar_says_how_to_unpack_it(tmp_path):
    path = tmp_path / "clips.tar"
    path.write_bytes(gzip.compress(tar_bytes([("a", b"1")])))
    with pytest.raises(DataError, match=r"compressed with gzip.*gunzip"):
        list(read_members(path))


def test_a_missing_tar_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"none\.tar: cannot be read: No such file"):
        list(read_members(tmp_path / "none.tar"))
