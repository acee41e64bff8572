"""The DALI reader on the CPU: PyAV's very frames where nothing is scaled, close ones where it is, the same reasons."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from sama_data.clip_reader import ClipReader
from sama_data.clips import Clip, load_clip
from sama_data.errors import ClipError
from sama_data.graph.pipeline import Graph
from sama_data.graph.reader import DaliReader
from sama_data.rows import Row
from sama_data.settings import LoaderSettings
from tests.support.clip_zoo import make_row

SETTINGS = LoaderSettings(0, 1, buckets=((96, 64), (64, 96)), max_frames=17, decode_threads=2, decode_batch=4)
SCALED = replace(SETTINGS, buckets=((64, 48), (48, 64)))

# What of the zoo DALI decodes itself on a CPU, and what goes to PyAV and why.
BY_DALI = ("vp9", "vp9 in mp4", "vp8", "mjpeg", "odd size", "one frame", "uneven times")
IMAGES_BY_DALI = ("image.jpg", "image.png", "image.webp", "grey.png")
BY_PYAV = {
    "h264": "codec h264",
    "h264 4:4:4": "codec h264",
    "bt709": "colour matrix 1",
    "rotated": "rotation tag",
    "clear.png": "images of mode RGBA",
    "turned.jpg": "orientation tag",
}
BAD = ("sound", "missing", "empty.mp4", "junk.mp4", "cut.webm", "cut.mp4", "damaged.mp4", "shrinks", "cut.jpg")

# DALI's cubic is Catmull-Rom on RGB; swscale's has a sharper kernel and scales luma and chroma before they become RGB.
# Colour edges differ most: (mean, largest) difference in levels. Pillow's bicubic on RGB is DALI's but for rounding.
TOLERANCE = {"video": (0.5, 5), "image": (0.25, 2)}


WORKERS: list[ClipReader] = []


@pytest.fixture(scope="module", autouse=True)
def shared_workers() -> Iterator[None]:
    """Starting workers for each of fifty readers would take most of these tests' time."""
    with ClipReader(SETTINGS.buckets, SETTINGS.max_frames, 60.0, num_workers=2) as workers:
        WORKERS.append(workers)
        yield
    WORKERS.clear()


def dali(settings: LoaderSettings = SETTINGS) -> DaliReader:
    return DaliReader(settings, None, WORKERS[0])


def by_dali(row: Row, settings: LoaderSettings = SETTINGS) -> Clip | ClipError:
    return dali(settings).read([row])[0]


def by_pyav(row: Row, settings: LoaderSettings = SETTINGS) -> Clip | ClipError:
    try:
        return load_clip(row, settings.buckets, settings.max_frames)
    except ClipError as error:
        return error


@pytest.mark.parametrize("name", [*BY_DALI, *IMAGES_BY_DALI])
def test_dali_decodes_bit_for_bit_what_pyav_does(zoo, name):
    row = make_row(zoo[name])
    width, height = {"odd size": (101, 67)}.get(name, (83, 61) if row.kind == "image" else (96, 64))
    for crop in (0, 5):  # as it is, and cropped alone
        settings = replace(SETTINGS, buckets=((width - crop, height),))
        reader = dali(settings)
        clip, expected = reader.read([row])[0], by_pyav(row, settings)
        np.testing.assert_array_equal(clip.target, expected.target)
        assert clip.source is clip.target
        assert clip.fps == expected.fps
        assert not reader.by_pyav


@pytest.mark.parametrize("name", [*BY_DALI, *IMAGES_BY_DALI])
def test_scaled_frames_are_close_to_pyavs(zoo, name):
    reader, row = dali(SCALED), make_row(zoo[name])
    mean, largest = TOLERANCE[row.kind]
    difference = np.abs(reader.read([row])[0].target.astype(int) - by_pyav(row, SCALED).target)
    assert not reader.by_pyav
    assert difference.mean() <= mean
    assert difference.max() <= largest


@pytest.mark.parametrize("name", BY_PYAV)
def test_what_dali_would_change_goes_through_pyav(zoo, name, caplog):
    reader, row = dali(SCALED), make_row(zoo[name])
    with caplog.at_level(logging.INFO):
        clips = reader.read([row, row])
    for clip in clips:
        np.testing.assert_array_equal(clip.target, by_pyav(row, SCALED).target)
    assert list(reader.by_pyav.values()) == [2]
    assert BY_PYAV[name] in next(iter(reader.by_pyav))
    assert len([line for line in caplog.messages if "PyAV does" in line and BY_PYAV[name] in line]) == 1


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_the_reasons_that_pyav_gives(zoo, name):
    row = make_row(zoo[name])
    found, expected = by_dali(row), by_pyav(row)
    assert isinstance(found, ClipError)
    assert str(found) == str(expected)
    assert found.path == str(zoo[name])


def test_a_bad_file_spoils_no_other_of_its_batch(zoo):
    names = ("vp9", "damaged.mp4", "vp8", "h264")
    reader = dali(SCALED)
    mixed = reader.read([make_row(zoo[name]) for name in names], 1)
    again = reader.read([make_row(zoo[name]) for name in ("vp8", "one frame")], 1)
    assert [type(clip) for clip in mixed] == [Clip, ClipError, Clip, Clip]
    for name, clip in [("vp9", mixed[0]), ("vp8", mixed[2]), ("h264", mixed[3]), ("vp8", again[0])]:
        np.testing.assert_array_equal(clip.target, by_dali(make_row(zoo[name]), SCALED).target)
    assert again[1].target.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    ("source", "target"), [("vp9", "odd size"), ("odd size", "h264"), ("rotated", "vp8"), ("one frame", "vp9")]
)
def test_a_pair_has_one_bucket_and_one_length(zoo, source, target):
    row = make_row(zoo[target], zoo[source])
    clip, expected = by_dali(row, SCALED), by_pyav(row, SCALED)
    assert clip.source.shape == clip.target.shape == expected.target.shape
    assert np.abs(clip.source.astype(int) - expected.source).mean() < TOLERANCE["video"][0]


def test_a_pair_is_bad_if_either_is_and_the_target_is_told_first(zoo):
    rows = [make_row(zoo["vp9"], zoo["cut.webm"]), make_row(zoo["damaged.mp4"], zoo["missing"])]
    assert [clip.path for clip in dali().read([*rows])] == [
        str(zoo["cut.webm"]),
        str(by_pyav(rows[1]).path),
    ]


@pytest.mark.parametrize(
    ("start", "end", "longest", "expected"),
    [(3, 12, 17, range(3, 12)), (0, None, 9, range(9)), (8, None, 17, range(8, 17))],
)
def test_decodes_the_rows_frames(zoo, start, end, longest, expected):
    row = make_row(zoo["vp9"], frame_start=start, frame_end=end)
    whole = by_dali(make_row(zoo["vp9"])).target
    clip = by_dali(row, replace(SETTINGS, max_frames=longest))
    np.testing.assert_array_equal(clip.target, whole[expected.start : expected.stop])


@pytest.mark.parametrize("wanted", [{"frame_start": 17}, {"frame_end": 18}])
@pytest.mark.parametrize("name", ["vp9", "vp9 in mp4", "image.png"])
def test_a_range_that_the_clip_lacks_is_refused_as_by_pyav(zoo, name, wanted):
    row = make_row(zoo[name], **wanted)
    assert str(by_dali(row)) == str(by_pyav(row))


def test_members_of_a_file_and_urls_are_read_too(zoo, tmp_path):
    content = zoo["vp9"].read_bytes()
    (tmp_path / "shard.tar").write_bytes(bytes(700) + content + bytes(90))
    row = make_row(zoo["vp9"])
    member = replace(row, target=type(row.target)(tmp_path / "shard.tar", 700, len(content)))
    remote = replace(row, target=type(row.target)(f"file://{zoo['vp9']}"))
    whole, *others = dali().read([row, member, remote])
    for other in others:
        np.testing.assert_array_equal(other.target, whole.target)


def test_handed_over_frames_outlive_later_batches(zoo):
    reader = dali()
    clip = reader.read([make_row(zoo["vp9"])], 1)[0]
    kept = clip.target.copy()
    for _ in range(3):
        reader.read([make_row(zoo["vp8"])], 1)
    reader.close()
    np.testing.assert_array_equal(clip.target, kept)


def test_what_dali_refuses_unexpectedly_goes_through_pyav(zoo, monkeypatch):
    # A file that the look takes for good and DALI does not.
    run, broken = Graph.run, []

    def refuse(self, pieces):
        if any(piece.content is not None and piece.content.tobytes() == zoo["vp8"].read_bytes() for piece in pieces):
            broken.append(len(pieces))
            raise RuntimeError("in operator ...\nencountered:\n\nAssert on 'x' failed: no luck\nmore")
        return run(self, pieces)

    monkeypatch.setattr(Graph, "run", refuse)
    reader = dali()
    clips = reader.read([make_row(zoo["vp9"]), make_row(zoo["vp8"])])
    assert broken == [2, 1]
    np.testing.assert_array_equal(clips[1].target, by_pyav(make_row(zoo["vp8"])).target)
    assert list(reader.by_pyav) == ["what it refuses with 'Assert on 'x' failed: no luck'"]
