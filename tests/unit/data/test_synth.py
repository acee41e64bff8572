"""The synthetic world: exact truth, unambiguous words, purity, and folders that appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sama_data.errors import DataError
from sama_data.synth import EDIT_KINDS, WorldSpec, make_pair
from sama_data.synth.scene import draw_shapes, paths
from sama_data.synth.write import FIRST_IMAGE_INDEX, load_mask, write_world

SMALL = WorldSpec(num_frames=5)


def decoded(path: Path) -> np.ndarray:
    """Reads every frame of a clip."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_edit_changes_its_region_and_nothing_far_from_it(kind: str) -> None:
    """Inside the mask source and target differ; three pixels off they are equal (shapes are anti-aliased)."""
    for index in range(12):
        pair = make_pair(3, index, SMALL, kind)
        assert pair.kind == kind
        assert pair.source.shape == pair.target.shape == (5, 64, 64, 3)
        assert pair.source.dtype == pair.target.dtype == np.uint8
        assert pair.mask.shape == (5, 64, 64) and pair.mask.any()
        difference = np.abs(pair.source.astype(int) - pair.target.astype(int)).max(-1)
        assert difference[pair.mask].mean() > 15
        near = pair.mask.copy()
        for axis in (1, 2, 1, 2, 1, 2):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        assert not difference[~near].any()


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_pair_is_a_pure_function_of_seed_and_index(kind: str) -> None:
    """The same call gives the same pair; another seed or index another one."""
    one, again = make_pair(1, 7, SMALL, kind), make_pair(1, 7, SMALL, kind)
    assert np.array_equal(one.source, again.source) and np.array_equal(one.target, again.target)
    assert (one.instruction, one.caption) == (again.instruction, again.caption)
    for other in (make_pair(2, 7, SMALL, kind), make_pair(1, 8, SMALL, kind)):
        assert not np.array_equal(one.source, other.source)


def test_instruction_names_one_visible_object() -> None:
    """The colour and shape of an instruction's object are in the caption exactly once."""
    for index in range(60):
        pair = make_pair(11, index, WorldSpec(num_frames=1))
        if pair.kind in ("style", "background"):
            continue
        words = pair.instruction.rstrip(".").split()
        start = {"recolour": 5, "remove": 2, "replace": 2, "add": len(words) - 2}[pair.kind]
        assert pair.caption.lower().count(" ".join(words[start : start + 2])) == 1, (pair.instruction, pair.caption)


def test_kinds_are_drawn_by_weight() -> None:
    """A kind of weight zero is never drawn and all others are."""
    weights = {"recolour": 1.0, "remove": 1.0, "style": 1.0}
    spec = WorldSpec(num_frames=1, kind_weights=weights)
    assert {make_pair(0, index, spec).kind for index in range(60)} == set(weights)


def test_shapes_stay_inside_and_apart() -> None:
    """No shape leaves the frame or touches another at any frame."""
    spec = WorldSpec()
    for index in range(40):
        shapes = draw_shapes(np.random.default_rng(index), spec)
        tracks = [paths(np.asarray(s.centre), np.asarray(s.velocity), spec.num_frames) for s in shapes]
        for shape, track in zip(shapes, tracks, strict=True):
            assert (track >= shape.radius - 1e-6).all() and (track <= 63 - shape.radius + 1e-6).all()
        for first in range(len(shapes)):
            for second in range(first):
                gap = np.linalg.norm(tracks[first] - tracks[second], axis=-1).min()
                assert gap >= shapes[first].radius + shapes[second].radius


@pytest.mark.parametrize("height, width, frames", [(32, 96, 9), (128, 64, 1)])
def test_other_sizes(height: int, width: int, frames: int) -> None:
    """Every kind of edit works at other sizes and lengths."""
    spec = WorldSpec(num_frames=frames, height=height, width=width)
    for kind in EDIT_KINDS:
        assert make_pair(0, 1, spec, kind).target.shape == (frames, height, width, 3)


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"num_frames": 4}, "num_frames"),
        ({"height": 33}, "height"),
        ({"width": 16}, "width"),
        ({"fps": 0}, "fps"),
        ({"kind_weights": {"melt": 1.0}}, "melt"),
        ({"kind_weights": {}}, "kind_weights"),
    ],
)
def test_bad_spec_is_named(fields: dict[str, object], name: str) -> None:
    """A wrong size or kind is one line that names it."""
    with pytest.raises(DataError, match=name):
        WorldSpec(**fields)  # type: ignore[arg-type]


def test_bad_pair_is_named() -> None:
    """An unknown kind or a negative seed is refused."""
    with pytest.raises(DataError, match="melt"):
        make_pair(0, 0, SMALL, "melt")
    with pytest.raises(DataError, match="-1"):
        make_pair(-1, 0, SMALL)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world with masks, written by two processes."""
    out = tmp_path_factory.mktemp("synth") / "world"
    calls: list[tuple[int, int]] = []
    summary = write_world(out, 34, 6, seed=5, workers=2, spec=SMALL, masks=True, on_progress=lambda *c: calls.append(c))
    assert calls[-1] == (40, 40)
    assert sum(summary.kinds.values()) == 40
    return out


def test_written_world_is_the_generated_one(world: Path) -> None:
    """Clips, pictures, words and masks on disk are those that make_pair gives."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in rows[:2]] == ["video-000000", "video-000001"]
    assert len({row["sample_id"] for row in rows}) == 40
    for place, row in ((3, rows[3]), (33, rows[33])):
        pair = make_pair(5, place, SMALL)
        assert (row["instruction"], row["task"], row["fps"]) == (pair.instruction, pair.kind, 16)
        for role, truth in (("source", pair.source), ("target", pair.target)):
            frames = decoded(world / row[role])
            assert frames.shape == truth.shape
            assert np.abs(frames.astype(int) - truth).mean() < 6  # 4:2:0 blurs colour edges, no more
        assert np.array_equal(load_mask(world, row["sample_id"]), pair.mask)
    image = rows[-1]
    pair = make_pair(5, FIRST_IMAGE_INDEX + 5, WorldSpec(num_frames=1))
    assert np.abs(np.asarray(Image.open(world / image["target"])).astype(int) - pair.target[0]).mean() < 3
    assert image["instruction"] == pair.instruction and "fps" not in image


def test_raw_manifest_holds_captioned_videos_and_image_edits(world: Path) -> None:
    """Stage 0 reads single videos with captions, and the image pairs."""
    rows = [json.loads(line) for line in (world / "raw.jsonl").read_text().splitlines()]
    videos = [row for row in rows if "video" in row]
    assert len(videos) == 34 and all(row["caption"] and "instruction" not in row for row in videos)
    assert all("instruction" in row and "source" in row for row in rows if "video" not in row)
    assert all((world / row["video"]).exists() for row in videos)


def test_one_process_writes_the_same_world(world: Path, tmp_path: Path) -> None:
    """The number of processes changes nothing."""
    write_world(tmp_path / "again", 34, 6, seed=5, workers=1, spec=SMALL)
    for name in ("pairs.jsonl", "raw.jsonl", "videos/video-000033-target.mp4", "images/image-000005-source.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (world / name).read_bytes()
    with pytest.raises(DataError, match="masks=True"):
        load_mask(tmp_path / "again", "video-000000")


def test_asked_kinds_come_in_turn(tmp_path: Path) -> None:
    """Each kind that is asked for gets its share."""
    summary = write_world(tmp_path / "w", 6, 4, seed=0, spec=SMALL, kinds=("add", "remove"))
    assert summary.kinds == {"add": 5, "remove": 5}


def test_full_folder_is_refused_and_kept(tmp_path: Path) -> None:
    """An existing non-empty folder is an error, and stays as it is; an empty one is used."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="already exists"):
        write_world(tmp_path / "full", 1, 0, seed=0, spec=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    write_world(tmp_path / "empty", 1, 0, seed=0, spec=SMALL)
    assert (tmp_path / "empty" / "pairs.jsonl").exists()


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure half-way leaves no folder, and a full disk is one line."""

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sama_data.synth.write.write_clip", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_world(tmp_path / "w", 2, 0, seed=0, spec=SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, name",
    [
        ({"num_videos": 0, "num_images": 0}, "num_videos"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
        ({"kinds": ("melt",)}, "melt"),
    ],
)
def test_bad_request_is_named(tmp_path: Path, change: dict[str, object], name: str) -> None:
    """A number or a kind out of range is refused before anything is written."""
    request: dict[str, object] = {"num_videos": 1, "num_images": 1, "seed": 0, **change}
    with pytest.raises(DataError, match=name):
        write_world(tmp_path / "w", **request)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
