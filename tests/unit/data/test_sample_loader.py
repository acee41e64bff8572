"""The loader: the same steps on any ranks and from any start, bad clips replaced, prompts and plans."""

from __future__ import annotations

import json
import logging
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import sama_data.clip_reader
from sama_data.clip_reader import ClipReader
from sama_data.errors import DataError
from sama_data.loader import LoaderSettings, Quarantine, SampleLoader
from sama_data.manifest import load_blend, load_manifest, write_jsonl, write_parquet
from sama_data.pretext import Motion, plan_pretext
from sama_data.readers import PyavReader
from tests.support import worker_jobs

READERS: list[PyavReader] = []
SETTINGS = LoaderSettings(images_per_step=5, videos_per_step=3, seed=11, buckets=((32, 32), (48, 32)), max_frames=17)


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_frames, make_video) -> Path:
    """6 video pairs and 4 raw clips of several lengths and sizes, 7 image pairs, an image with a caption."""
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number in range(6):
        frames, height = (9, 32) if number % 2 else (13, 40)
        for side in ("source", "target"):
            picture = make_frames(frames, height, 32, seed=number)
            make_video(folder / f"{side}{number}.mp4", picture if side == "source" else 255 - picture)
        edit = {
            "source": f"source{number}.mp4",
            "target": f"target{number}.mp4",
            "instruction": f"Invert {number}.",
        }
        rows.append(edit | {"task": "style", "num_frames": frames, "width": 32, "height": height})
    for number in range(4):
        make_video(folder / f"raw{number}.mp4", make_frames(18, 32, 48, seed=20 + number), fps=12)
        rows.append({"video": f"raw{number}.mp4", "caption": f"Waves {number}."})
    for number in range(7):
        picture = make_frames(1, 32, 32, seed=40 + number)[0]
        Image.fromarray(picture).save(folder / f"before{number}.png")
        Image.fromarray(255 - picture).save(folder / f"after{number}.png")
        paths = {"source": f"before{number}.png", "target": f"after{number}.png"}
        rows.append(paths | {"instruction": f"Turn {number}."})
    rows.append({"image": "before0.png", "caption": "A still wave."})
    write_jsonl(rows, folder / "manifest.jsonl")
    return folder


@pytest.fixture(scope="module", autouse=True)
def shared_reader() -> Iterator[None]:
    """Starting workers for each of a hundred loaders would take most of these tests' time."""
    with closing(PyavReader(replace(SETTINGS, decode_threads=3))) as reader:
        READERS.append(reader)
        yield
    READERS.clear()


def make_loader(
    folder: Path, tmp_path: Path, rank: int = 0, ranks: int = 1, own_reader: bool = False, **changed: object
) -> SampleLoader:
    dataset = load_manifest(folder / "manifest.jsonl")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    reader = None if own_reader else READERS[0]
    return SampleLoader(dataset, replace(SETTINGS, **changed), rank, ranks, quarantine, reader)


def contents(sample) -> tuple:
    frames = (sample.source_frames.tobytes(), sample.target_frames.tobytes())
    return (sample.slot, sample.sample_id, sample.index, sample.epoch, sample.plan, sample.prompt, frames)


@pytest.mark.parametrize("ranks", [2, 3, 11])
def test_ranks_share_the_slots_of_one_step_between_them(world, tmp_path, ranks):
    alone = make_loader(world, tmp_path)
    shares = [make_loader(world, tmp_path, rank, ranks) for rank in range(ranks)]
    for step in (0, 4):
        whole = alone.step(step)
        parts = [share.step(step) for share in shares]
        assert [sample.slot for sample in whole.samples] == list(range(8))
        assert all(part.num_slots == 8 and part.num_image_slots == 5 for part in parts)
        together = sorted((contents(sample) for part in parts for sample in part.samples), key=lambda item: item[0])
        assert together == [contents(sample) for sample in whole.samples]
    assert any(not part.samples for part in parts) == (ranks > 8)


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(0, 9),
    videos=st.integers(1, 6),
    ranks=st.integers(1, 12),
    start=st.integers(0, 300),
    seed=st.integers(0, 2**40),
)
def test_any_world_and_any_start_draw_the_same_slots(world, tmp_path_factory, images, videos, ranks, start, seed):
    dataset = load_manifest(world / "manifest.jsonl")
    changed = replace(SETTINGS, images_per_step=images, videos_per_step=videos, seed=seed)
    quarantine = Quarantine(tmp_path_factory.getbasetemp() / "quarantine.jsonl")
    loaders = [SampleLoader(dataset, changed, rank, ranks, quarantine) for rank in range(ranks)]
    late = SampleLoader(dataset, changed, 0, 1, quarantine)
    for step in range(2):
        loaders[0].draws(start + step)  # a loader that went through earlier steps

    def places(jobs) -> list[tuple[int, str, int, int]]:
        return [(job.draw.slot, job.draw.stream.kind, job.draw.place, job.draw.epoch) for job in jobs]

    step = start + 2
    dealt = [places(loader._plan_step(step)) for loader in loaders]
    together = sorted(place for share in dealt for place in share)
    assert together == places(late._plan_step(step))
    assert [slot for slot, *_ in together] == list(range(images + videos))
    assert [kind for _, kind, *_ in together] == ["image"] * images + ["video"] * videos


def test_an_epoch_visits_every_row_once(world, tmp_path):
    loader = make_loader(world, tmp_path, images_per_step=0, videos_per_step=2)
    ids = [sample.sample_id for step in range(5) for sample in loader.step(step).samples]
    assert len(set(ids)) == 10
    again = [sample.sample_id for step in range(5, 10) for sample in loader.step(step).samples]
    assert sorted(again) == sorted(ids)
    assert again != ids
    assert {sample.epoch for sample in loader.step(5).samples} == {1}


def test_images_and_videos_have_orders_of_their_own(tmp_path):
    rows = [{"video": f"{number}.mp4", "caption": "x"} for number in range(40)]
    rows += [{"image": f"{number}.png", "caption": "x"} for number in range(40)]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    draws = make_loader(tmp_path, tmp_path, images_per_step=40, videos_per_step=40).draws(0)
    images, videos = ([draw.place for draw in draws if draw.stream.kind == kind] for kind in ("image", "video"))
    assert sorted(images) == sorted(videos) == list(range(40))
    assert sum(image == video for image, video in zip(images, videos, strict=True)) < 10


def test_prefetching_gives_what_single_steps_give(world, tmp_path):
    single = make_loader(world, tmp_path)
    expected = [[contents(sample) for sample in single.step(step).samples] for step in range(3, 7)]
    for threads, ahead in ((1, 2), (3, 1), (2, 0)):
        loader = make_loader(world, tmp_path, decode_threads=threads, prefetch_steps=ahead)
        steps = list(loader.prefetching(3, 4))
        assert [step.step for step in steps] == [3, 4, 5, 6]
        assert [[contents(sample) for sample in step.samples] for step in steps] == expected
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sama-data")]


def samples_by_id(loader: SampleLoader, steps: int = 6) -> dict:
    return {sample.sample_id: sample for step in range(steps) for sample in loader.step(step).samples}


def test_edits(world, tmp_path, measure_psnr, make_frames):
    samples = samples_by_id(make_loader(world, tmp_path))
    video = samples["target3.mp4"]
    assert (video.kind, video.task) == ("video", "edit")
    assert (video.prompt, video.prompt_prefix) == ("[Video edit] Invert 3.", "[Video edit]")
    assert video.plan.frame_indices == tuple(range(9))
    assert video.plan.tube_order is None
    assert video.source_frames.shape == video.target_frames.shape == (9, 32, 32, 3)
    assert measure_psnr(video.source_frames, make_frames(9, 32, 32, seed=3)) > 26
    assert measure_psnr(video.source_frames, 255 - video.target_frames) > 26
    image = samples["after2.png"]
    assert (image.kind, image.task) == ("image", "edit")
    assert (image.prompt, image.prompt_prefix) == ("[Image edit] Turn 2.", "[Image edit]")
    np.testing.assert_array_equal(image.source_frames, make_frames(1, 32, 32, seed=42))
    np.testing.assert_array_equal(image.target_frames, 255 - image.source_frames)


def test_raw_clips_get_a_plan_and_its_token(world, tmp_path):
    tasks = set()
    loader = make_loader(world, tmp_path, images_per_step=0)
    for step in range(20):
        for sample in loader.step(step).samples:
            if not sample.sample_id.startswith("raw"):
                continue
            assert sample.source_frames is sample.target_frames
            assert sample.target_frames.shape == (17, 32, 48, 3)  # 18 frames, cut to 4k+1; the wide bucket
            plan = plan_pretext(Motion(), 11, sample.sample_id, sample.epoch, 17, 32, 48)
            assert sample.plan == plan
            assert sample.task == plan.task
            caption = f"Waves {sample.sample_id[3]}."
            assert sample.prompt == (f"{plan.prompt_token} {caption}" if plan.prompt_token else caption)
            assert sample.prompt_prefix == plan.prompt_token
            tasks.add(sample.task)
    assert tasks == {"none", "cube", "speed", "tube"}


def test_the_motion_settings_are_used(world, tmp_path):
    loader = make_loader(world, tmp_path, images_per_step=0, motion=Motion(0, 1, 0, 0, cube_share=0.5))
    raw = [sample for step in range(4) for sample in loader.step(step).samples if sample.task != "edit"]
    assert raw
    assert {sample.task for sample in raw} == {"cube"}
    assert {sample.plan.frame_indices.count(-1) for sample in raw} == {8}


def test_a_still_image_with_a_caption(world, tmp_path):
    sample = samples_by_id(make_loader(world, tmp_path))["before0.png"]
    assert (sample.kind, sample.task, sample.prompt, sample.prompt_prefix) == (
        "image",
        "none",
        "A still wave.",
        "",
    )
    assert sample.source_frames is sample.target_frames


def test_a_pair_of_unequal_lengths_and_sizes(tmp_path, make_frames, make_video):
    make_video(tmp_path / "a.mp4", make_frames(14, 64, 96))
    make_video(tmp_path / "b.mp4", make_frames(12, 32, 48))
    write_jsonl([{"source": "a.mp4", "target": "b.mp4", "instruction": "x"}], tmp_path / "manifest.jsonl")
    sample = make_loader(tmp_path, tmp_path, images_per_step=0).step(0).samples[0]
    assert sample.source_frames.shape == sample.target_frames.shape == (9, 32, 48, 3)
    # Both show the same moment and the same part of the picture: a frame or a pixel beside it would differ
    # more.
    source, target = sample.source_frames.astype(int), sample.target_frames.astype(int)
    difference = np.abs(source - target).mean()
    assert difference < 0.5 * np.abs(source[1:] - target[:-1]).mean()
    assert difference < 0.9 * np.abs(source[:, :, 1:] - target[:, :, :-1]).mean()


def test_frame_ranges(tmp_path, make_frames, make_video):
    make_video(tmp_path / "a.mp4", make_frames(17, 32, 32))
    rows = [
        {"video": "a.mp4", "caption": "x", "frame_start": 4, "frame_end": 10, "sample_id": "part"},
        {"video": "a.mp4", "caption": "x", "sample_id": "whole"},
        {"video": "a.mp4", "caption": "x", "frame_start": 10, "frame_end": 20, "sample_id": "beyond"},
    ]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    samples = samples_by_id(make_loader(tmp_path, tmp_path, images_per_step=0))
    np.testing.assert_array_equal(samples["part"].target_frames, samples["whole"].target_frames[4:9])
    assert "beyond" not in samples
    assert "frame_end 20 is out of range: the clip has 17 frames" in (tmp_path / "quarantine.jsonl").read_text()


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize("where", ["{folder}/shard.tar", "file://{folder}/shard.tar"])
def test_clips_in_a_shard_are_those_in_files(world, tmp_path, where, write):
    pytest.importorskip("fsspec")
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for path in world.iterdir():
            tar.add(path, path.name)
    with tarfile.open(shard) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    rows = []
    for row in load_manifest(world / "manifest.jsonl"):
        moved = {"sample_id": row.sample_id, "kind": row.kind, "num_frames": row.num_frames, "width": row.width}
        moved |= {"height": row.height, "instruction" if row.is_edit else "caption": row.text}
        for side, media in (("source", row.source), ("target", row.target)):
            if media is not None:
                offset, num_bytes = members[media.path.name]
                key = row.kind if side == "target" and not row.is_edit else side
                moved |= {key: where.format(folder=tmp_path), f"{side}_offset": offset, f"{side}_bytes": num_bytes}
        rows.append(moved)
    write(rows, tmp_path / "manifest.jsonl")
    files, shards = make_loader(world, tmp_path), make_loader(tmp_path, tmp_path)
    for step in range(4):
        expected = [contents(sample) for sample in files.step(step).samples]
        assert [contents(sample) for sample in shards.step(step).samples] == expected
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_urls_that_cannot_be_read_here_are_told_at_the_start(tmp_path):
    write_jsonl([{"video": "nothing://b/a.mp4", "caption": "x"}], tmp_path / "manifest.jsonl")
    with pytest.raises(DataError, match=r"fsspec cannot read nothing://\.\.\."):
        make_loader(tmp_path, tmp_path)


def test_a_step_is_planned_without_a_look_at_its_rows(world, tmp_path, monkeypatch):
    loader = make_loader(world, tmp_path, ranks=2)
    monkeypatch.setattr(type(loader._dataset), "__getitem__", lambda *_: pytest.fail("a row was read"))
    assert loader._plan_step(3)


def spoil(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def copy_of(world: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in world.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_bad_clips_are_replaced_the_same_way_everywhere(world, tmp_path):
    folder = copy_of(world, tmp_path)
    spoil(folder, "target1.mp4", "source2.mp4", "after0.png", "raw0.mp4")
    good = make_loader(world, tmp_path)
    quarantine = tmp_path / "quarantine.jsonl"
    alone = make_loader(folder, tmp_path)
    ranks = [make_loader(folder, tmp_path, rank, 2, decode_threads=2) for rank in range(2)]
    bad = {"target1.mp4", "target2.mp4", "after0.png", "raw0.mp4"}
    num_replaced = 0
    for step in range(4):
        before = good.step(step).samples
        after = alone.step(step)
        shared = [part.step(step) for part in ranks]
        together = sorted((contents(sample) for part in shared for sample in part.samples), key=lambda item: item[0])
        assert together == [contents(sample) for sample in after.samples]
        for old, new in zip(before, after.samples, strict=True):
            assert new.sample_id not in bad
            assert new.kind == old.kind
            assert new.slot == old.slot
            num_replaced += old.sample_id in bad
            if old.sample_id not in bad:
                assert contents(new) == contents(old)
    # A loader that starts late, knowing nothing of the bad ones, draws the same stand-ins.
    late = make_loader(folder, tmp_path).step(3)
    assert [contents(sample) for sample in late.samples] == [contents(sample) for sample in after.samples]
    assert num_replaced >= 4
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert {line["sample_id"] for line in lines} == bad
    assert len(lines) == len(bad)
    assert {line["path"] for line in lines} == {
        str(folder / name) for name in ("target1.mp4", "source2.mp4", "after0.png", "raw0.mp4")
    }
    assert {line["reason"] for line in lines} == {"is empty (0 bytes)"}


def test_a_bad_clip_is_tried_once(world, tmp_path, monkeypatch):
    folder = copy_of(world, tmp_path)
    spoil(folder, "target1.mp4", "raw0.mp4", "after0.png")
    reads = count_reads(monkeypatch)
    loader = make_loader(folder, tmp_path)
    for step in range(12):
        loader.step(step)
    bad = {row.index for row in loader._dataset if row.sample_id in ("target1.mp4", "raw0.mp4", "after0.png")}
    assert len(bad) == 3
    assert [reads.count(index) for index in bad] == [1, 1, 1]


def count_reads(monkeypatch) -> list[int]:
    """Lists the row of every clip that is read from now on."""
    reads: list[int] = []
    read = ClipReader.read

    def counted(reader, row, *others):
        reads.append(row.index)
        return read(reader, row, *others)

    monkeypatch.setattr(ClipReader, "read", counted)
    return reads


def test_all_bad_ends_the_run_with_one_line(world, tmp_path):
    folder = copy_of(world, tmp_path)
    spoil(folder, *[path.name for path in folder.glob("*.mp4")])
    loader = make_loader(folder, tmp_path, max_bad_share=1.0, decode_threads=2)
    with pytest.raises(DataError, match="all 10 video samples are bad") as caught:
        loader.step(0)
    assert "\n" not in str(caught.value)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) >= 10


def test_one_good_clip_is_found_among_many_bad(world, tmp_path):
    folder = copy_of(world, tmp_path)
    spoil(folder, *[path.name for path in folder.glob("*.mp4") if path.name != "raw2.mp4"])
    step = make_loader(folder, tmp_path, images_per_step=0).step(0)
    assert {sample.sample_id for sample in step.samples} == {"raw2.mp4"}
    assert len(step.samples) == 3


def test_too_many_bad_stop_the_run(world, tmp_path):
    rows = [{"video": f"none{number}.mp4", "caption": "x"} for number in range(60)]
    rows += [{"video": str(world / f"raw{number % 4}.mp4"), "caption": "x"} for number in range(30)]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    loader = make_loader(tmp_path, tmp_path, images_per_step=0, max_bad_share=0.3)
    with pytest.raises(DataError, match=r"of the 2\d samples tried on this rank are bad"):
        for _ in loader.prefetching(0, 40):
            pass
    tolerant = make_loader(tmp_path, tmp_path, images_per_step=0, max_bad_share=0.9)
    assert len(list(tolerant.prefetching(0, 10))) == 10


def hang_and_crash(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict]) -> None:
    """Files named hang... and crash... do that to their decoder."""
    monkeypatch.setattr(sama_data.clip_reader, "load_clip", worker_jobs.load_clip)
    write_jsonl(rows, folder / "manifest.jsonl")


def test_clips_that_hang_or_crash_are_replaced_like_bad_ones(world, tmp_path, monkeypatch):
    names = [str(world / f"raw{number}.mp4") for number in range(4)]
    hang_and_crash(
        tmp_path, monkeypatch, [{"video": name, "caption": "x"} for name in (*names, "hang.mp4", "crash.mp4")]
    )
    with make_loader(
        tmp_path, tmp_path, images_per_step=0, decode_timeout_seconds=2.0, decode_threads=2, own_reader=True
    ) as loader:
        drawn = [[sample.sample_id for sample in step.samples] for step in loader.prefetching(0, 4)]
    assert [len(step) for step in drawn] == [3] * 4
    assert {name for step in drawn for name in step} == set(names)
    lines = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert {line["sample_id"]: line["reason"] for line in lines} == {
        "hang.mp4": "took longer than 2 s to decode (data.decode_timeout_seconds)",
        "crash.mp4": "the decoder died of signal 11 (SIGSEGV) twice",
    }


def test_when_everything_hangs_the_run_stops(tmp_path, monkeypatch):
    hang_and_crash(tmp_path, monkeypatch, [{"video": f"hang{number}.mp4", "caption": "x"} for number in range(60)])
    with make_loader(
        tmp_path, tmp_path, images_per_step=0, max_bad_share=1.0, decode_timeout_seconds=0.1, own_reader=True
    ) as loader:
        with pytest.raises(DataError, match="8 samples in a row hung or crashed their decoder") as caught:
            loader.step(0)
        assert "took longer than 0.1 s to decode" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert loader.health.num_bad == 8


def test_stopping_early_does_not_wait_for_a_clip_that_hangs(world, tmp_path, monkeypatch):
    names = [str(world / "raw0.mp4"), "hang.mp4"]
    hang_and_crash(tmp_path, monkeypatch, [{"video": name, "caption": "x"} for name in names])
    with make_loader(tmp_path, tmp_path, images_per_step=0, videos_per_step=1, own_reader=True) as loader:

        def drawn(step: int) -> str:
            return names[next(loader._planner.streams[0].candidates(loader.draws(step)[0]))[0]]

        start = next(step for step in range(40) if [drawn(step), drawn(step + 1)] == names)
        steps = loader.prefetching(start, 9)
        next(steps)
        deadline = time.monotonic() + 30
        while not (tmp_path / "hang.mp4").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        steps.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sama-data")]
    assert not (tmp_path / "quarantine.jsonl").exists()  # where it would be after its 60 seconds


def test_a_stream_without_rows_is_dropped_with_one_warning(world, tmp_path, caplog):
    rows = [{"video": str(world / "raw0.mp4"), "caption": "x"}]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    with caplog.at_level(logging.WARNING, "sama_data"):
        loader = make_loader(tmp_path, tmp_path)
        steps = list(loader.prefetching(0, 3))
    assert len(caplog.records) == 1
    assert "no image rows: the image stream is dropped (data.images_per_step 5)" in caplog.text
    assert all((step.num_slots, step.num_image_slots, len(step.samples)) == (3, 0, 3) for step in steps)
    assert [sample.slot for sample in steps[0].samples] == [0, 1, 2]
    with pytest.raises(DataError, match=r"no row for the wanted images \(5 per step\)"):
        make_loader(tmp_path, tmp_path, videos_per_step=0)


def test_rejected_rows_are_left_out_and_counted_once(world, tmp_path, caplog):
    rows = [{"video": str(world / f"raw{number}.mp4"), "caption": "x"} for number in range(4)]
    for row in rows[1:3]:
        row["rejected"] = "unequal lengths"
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    with caplog.at_level(logging.WARNING, "sama_data"):
        loader = make_loader(tmp_path, tmp_path, images_per_step=0, videos_per_step=2)
        drawn = {sample.index for step in range(4) for sample in loader.step(step).samples}
    assert drawn == {0, 3}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'manifest.jsonl'}: 2 of 4 rows are rejected and left out: their column `rejected` says why"
    ]
    write_jsonl(rows[1:3], tmp_path / "manifest.jsonl")
    with pytest.raises(DataError, match=r"no row for the wanted videos .*; 2 of 2 rows are rejected"):
        make_loader(tmp_path, tmp_path, images_per_step=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images_per_step": 0, "videos_per_step": 0}, "are both 0"),
        ({"max_frames": 0}, r"data\.max_frames \(0\) must be at least 1"),
        (
            {"decode_timeout_seconds": 0.0},
            r"data\.decode_timeout_seconds \(0\) must be greater than 0 and at most 86400",
        ),
        ({"decode_timeout_seconds": float("nan")}, r"data\.decode_timeout_seconds \(nan\) must be greater than 0"),
        ({"max_bad_share": 1.5}, r"data\.max_bad_share \(1\.5\) must be between 0 and 1"),
        ({"buckets": ()}, r"data\.buckets is empty"),
    ],
)
def test_wrong_settings(changed, message):
    with pytest.raises(DataError, match=message):
        replace(SETTINGS, **changed)


def test_the_cache_spares_decoding_and_keeps_its_budget(world, tmp_path, monkeypatch):
    reads = count_reads(monkeypatch)
    plain = make_loader(world, tmp_path)
    expected = [[contents(sample) for sample in plain.step(step).samples] for step in range(8)]
    assert len(reads) == 64
    reads.clear()
    cached = make_loader(world, tmp_path, decoded_cache_mib=64, decode_threads=2)
    assert [[contents(sample) for sample in step.samples] for step in cached.prefetching(0, 8)] == expected
    assert len(reads) < 40
    tight = make_loader(world, tmp_path, decoded_cache_mib=1)
    tight._cache._budget_bytes = 100_000  # less than the videos take
    assert [[contents(sample) for sample in tight.step(step).samples] for step in range(8)] == expected
    assert 0 < tight._cache.held_bytes <= 100_000


def test_a_blend_draws_by_weight_and_counts_a_rows_own_epochs(world, tmp_path):
    raws = [{"video": str(world / f"raw{number}.mp4"), "caption": "x"} for number in range(4)]
    write_jsonl(raws[:2], tmp_path / "often.jsonl")
    write_jsonl(raws, tmp_path / "seldom.jsonl")
    blend = load_blend([(tmp_path / "often.jsonl", 3.0), (tmp_path / "seldom.jsonl", 0.5)])
    changed = replace(SETTINGS, images_per_step=0, videos_per_step=8)  # 3 * 2 + 0.5 * 4 places: an epoch
    seldom: list[int] = []
    loader = SampleLoader(blend, changed, 0, 1, Quarantine(tmp_path / "quarantine.jsonl"))
    for epoch in range(2):
        drawn = [(sample.sample_id[0], sample.index, sample.epoch) for sample in loader.step(epoch).samples]
        often = sorted((index, own) for part, index, own in drawn if part == "0")
        assert often == [(index, own) for index in (0, 1) for own in range(3 * epoch, 3 * epoch + 3)]
        seldom += [index for part, index, own in drawn if part == "1" and own == 0]
        assert len(seldom) == 2 * (epoch + 1)
    assert sorted(seldom) == [2, 3, 4, 5]


def test_predicted_costs_balance_the_ranks(world, tmp_path):
    loaders = [make_loader(world, tmp_path, rank, 2, images_per_step=20, videos_per_step=1) for rank in range(2)]
    sizes = [[sample.kind for sample in loader.step(0).samples] for loader in loaders]
    with_video = next(kinds for kinds in sizes if "video" in kinds)
    assert len(with_video) < 21 - len(with_video)


def test_real_pairs_and_raw_clips(shared_root, tmp_path):
    for name, task in (("pairs", "edit"), ("raw", None)):
        dataset = load_manifest(shared_root / "videos" / f"{name}.jsonl")
        chosen = LoaderSettings(images_per_step=0, videos_per_step=2, seed=1, max_frames=9)
        loader = SampleLoader(dataset, chosen, 0, 1, Quarantine(tmp_path / "quarantine.jsonl"))
        for sample in loader.step(0).samples:
            assert sample.source_frames.shape == sample.target_frames.shape
            assert sample.target_frames.shape[0] == 9
            assert sample.target_frames.shape[1:3] in ((480, 832), (832, 480), (448, 896))
            assert task in (None, sample.task)
    assert not (tmp_path / "quarantine.jsonl").exists()
