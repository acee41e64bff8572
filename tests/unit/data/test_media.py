"""Media: whole files, members of tars and URLs give the same bytes and the same frames."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sama_data.decode import decode_frames
from sama_data.errors import ClipError, DataError
from sama_data.media import Media, is_url
from sama_data.sniff import content_kind

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def files(tmp_path_factory, make_frames, make_video) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files, with: odd names")
    picture = folder / "a.png"
    Image.fromarray(make_frames(1)[0]).save(picture)
    suffixes = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".ts": "libx264"}
    clips = {suffix[1:]: make_video(folder / f"a{suffix}", make_frames(), codec) for suffix, codec in suffixes.items()}
    return clips | {"png": picture}


def write_tar(path: Path, *contents: bytes) -> list[Media]:
    """Members of one name; each is found by where it lies."""
    with tarfile.open(path, "w") as tar:
        for content in contents:
            member = tarfile.TarInfo("sample.bin")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(path) as tar:
        return [Media(path, member.offset_data, member.size) for member in tar.getmembers()]


@pytest.mark.parametrize("name", ["mp4", "mkv", "webm", "ts", "png"])
def test_a_member_and_a_url_decode_as_the_file(files, name, tmp_path):
    whole = decode_frames(files[name])
    content = files[name].read_bytes()
    _, member, _ = write_tar(tmp_path / "shard, 1: a.tar", b"before" * 99, content, b"after" * 999)
    system = fsspec.filesystem("memory")
    system.pipe_file(f"/clips/{name}", content)
    system.pipe_file(f"/shards/{name}.tar", member.path.read_bytes())
    for media in (
        Media(files[name]),
        member,
        Media(f"memory://clips/{name}"),
        Media(f"memory://shards/{name}.tar", member.offset, member.num_bytes),
    ):
        decoded = decode_frames(media)
        assert decoded.fps == whole.fps
        np.testing.assert_array_equal(decoded.frames, whole.frames)
        np.testing.assert_array_equal(decode_frames(media, content=media.read()).frames, whole.frames)
        assert content_kind(media) == content_kind(Media(files[name]))
        assert media.read() == content
        assert media.read_head(9) == content[:9]
        with media.open() as file:
            assert (file.seek(5), file.read(7), file.seek(0, io.SEEK_END)) == (5, content[5:12], len(content))


def test_concatenated_tars_with_repeated_names(files, tmp_path, make_frames):
    pictures = []
    for seed in range(4):
        picture = io.BytesIO()
        Image.fromarray(make_frames(1, 32, 32, seed=seed)[0]).save(picture, "PNG")
        pictures.append(picture.getvalue())
    write_tar(tmp_path / "first.tar", *pictures[:2])
    write_tar(tmp_path / "second.tar", *pictures[2:])
    joined = tmp_path / "joined.tar"
    joined.write_bytes((tmp_path / "first.tar").read_bytes() + (tmp_path / "second.tar").read_bytes())
    with tarfile.open(joined, ignore_zeros=True) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["sample.bin"] * 4
    for seed, member in enumerate(members):
        frames = decode_frames(Media(joined, member.offset_data, member.size)).frames
        np.testing.assert_array_equal(frames, make_frames(1, 32, 32, seed=seed))


def test_a_clip_cut_out_of_a_file_is_truncated_as_a_file_would_be(files, tmp_path, make_frames, make_video):
    content = make_video(tmp_path / "a.mp4", make_frames(), mp4_index_first=True).read_bytes()
    (member,) = write_tar(tmp_path / "a.tar", content)
    short = Media(member.path, member.offset, member.num_bytes * 2 // 3)
    with pytest.raises(ClipError, match=r"a\.tar \(bytes 512 to \d+\): is (truncated|damaged)"):
        decode_frames(short)


BAD_MEDIA = [
    (Media("none.mp4"), "none.mp4: does not exist"),
    (Media("none.tar", 0, 9), r"none\.tar \(bytes 0 to 9\): does not exist"),
    (Media("memory://none.mp4"), "memory://none.mp4: does not exist"),
    (Media("memory://none.tar", 5, 6), r"memory://none\.tar \(bytes 5 to 11\): does not exist"),
    (Media("ten.bin", 4, 7), r"ten\.bin \(bytes 4 to 11\): is cut off: its file ends at byte 10"),
    (Media("memory://ten.bin", 4, 7), r"is cut off: 6 bytes came for 7"),
    (Media("ten.bin", 4, 0), r"is empty \(0 bytes\)"),
    (Media("memory://ten.bin", 4, 0), r"is empty \(0 bytes\)"),
    (Media("memory://empty.bin"), r"is empty \(0 bytes\)"),
    (Media("ten.bin"), "is neither an image nor a video"),
    (Media("memory://ten.bin", 2, 5), "is neither an image nor a video: its content starts with b'23456'"),
    (Media("."), "is not a regular file"),
]


@pytest.mark.parametrize(("media", "reason"), BAD_MEDIA, ids=[media.name for media, _ in BAD_MEDIA])
def test_bad_media_have_a_reason(media, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ten.bin").write_bytes(b"0123456789")
    system = fsspec.filesystem("memory")
    system.pipe_file("/ten.bin", b"0123456789")
    system.pipe_file("/empty.bin", b"")
    with pytest.raises(ClipError, match=reason) as caught:
        decode_frames(media)
    assert caught.value.path == media.name
    if "neither" not in reason:
        for act in (media.read, media.open):
            with pytest.raises(ClipError, match=reason):
                act()


def test_only_the_members_bytes_are_asked_for(monkeypatch):
    system = fsspec.filesystem("memory")
    system.pipe_file("/shard.tar", bytes(range(200)))
    asked = []
    cat_file = type(system).cat_file

    def noted(self, path, start=None, end=None, **others):
        asked.append((start, end))
        return cat_file(self, path, start=start, end=end, **others)

    monkeypatch.setattr(type(system), "cat_file", noted)
    assert Media("memory://shard.tar", 20, 30).read() == bytes(range(20, 50))
    with pytest.raises(ClipError, match="neither an image nor a video"):
        decode_frames(Media("memory://shard.tar", 50, 30))
    assert asked == [(20, 50), (50, 80)]  # decoding asks once


def test_any_error_of_a_protocol_is_the_clips(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no route\nto the host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(ClipError, match=r"cannot be read: RuntimeError: no route$"):
        Media("memory://a.mp4").read()


def test_what_is_not_installed_is_no_bad_clip(monkeypatch):
    with pytest.raises(DataError, match=r"fsspec cannot read nothing://\.\.\.: Protocol not known") as caught:
        Media("nothing://bucket/a.mp4").read()
    assert not isinstance(caught.value, ClipError)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"fsspec cannot read s3://\.\.\.: Install s3fs"):
        Media("s3://bucket/a.mp4").read()
    monkeypatch.setitem(sys.modules, "fsspec.registry", None)
    with pytest.raises(DataError, match=r"reading s3://\.\.\. needs fsspec: pip install fsspec"):
        Media("s3://bucket/a.mp4").read()


def test_paths_and_urls_are_told_apart(tmp_path):
    assert is_url("s3://bucket/a") and not is_url("a:/b")
    assert Media("a/b.mp4") == Media(Path("a/b.mp4"))
    assert Media.in_folder(tmp_path, "a.mp4").path == tmp_path / "a.mp4"
    assert Media.in_folder(tmp_path, "/a.mp4").path == Path("/a.mp4")
    assert Media.in_folder(tmp_path, "s3://b/a.tar", 1, 2) == Media("s3://b/a.tar", 1, 2)
    assert Media("s3://b/a").is_remote and not Media("a").is_remote
    assert Media("a").is_whole and not Media("a", 0, 1).is_whole
    with pytest.raises(ValueError, match="give both or none"):
        Media("a", 3)
