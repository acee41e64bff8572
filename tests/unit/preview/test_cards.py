"""Cards show what the model gets: the perturbed source, the target, the prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sama_data.errors import DataError
from sama_data.loader import LoaderSettings, Quarantine
from sama_data.manifest import load_manifest, write_jsonl
from sama_data.pretext import Motion, PretextPlan, identity_plan
from sama_data.rows import Row
from sama_data.samples import Sample
from sama_mega.inference.pictures import write_video
from sama_mega.preview.cards import MOST_FRAMES, Card, draw_cards, make_card

FRAMES = np.stack([np.full((20, 40, 3), 10 * number, np.uint8) for number in range(13)])
ROW = Row(0, "clip", "video", None, Path("clip.mp4"), "Waves.", task="style", dataset="koala", licence="free")


def card_of(plan: PretextPlan, frames: np.ndarray = FRAMES, kind: str = "video") -> Card:
    prompt = f"{plan.prompt_token} Waves.".strip()
    return make_card(Sample("clip", 0, 2, 0, kind, plan.task, frames, frames, plan, prompt, plan.prompt_token), ROW)


def shades(pictures: tuple[Image.Image, ...]) -> list[int]:
    """The middle of each picture."""
    return [picture.getpixel((picture.width // 2, picture.height // 2))[0] for picture in pictures]


def test_black_frames_are_shown_black() -> None:
    plan = PretextPlan("cube", (0, 1, 2, 3, 4, -1, -1, -1, 8, 9, 10, 11, 12), None, "[Complete it.]")
    card = card_of(plan)
    source, target = card.strips
    assert source.frame_numbers == target.frame_numbers == (0, 2, 5, 7, 10, 12)
    assert shades(source.pictures) == [0, 20, 0, 0, 100, 120]
    assert shades(target.pictures) == [0, 20, 50, 70, 100, 120]
    assert (card.prefix, card.text) == ("[Complete it.]", "Waves.")


def test_a_sped_up_source_is_shorter() -> None:
    card = card_of(PretextPlan("speed", (0, 2, 4, 6, 8), None, "[Slow.]"))
    source, target = card.strips
    assert (source.num_frames, target.num_frames) == (5, 13)
    assert shades(source.pictures) == [0, 20, 40, 60, 80]
    assert dict(card.facts)["frames"] == "13, source 5"


def test_tubes_are_shown_in_their_wrong_order() -> None:
    left_and_right = FRAMES.copy()
    left_and_right[:, :, 20:] = 200
    source, target = card_of(
        PretextPlan("tube", tuple(range(13)), (1, 0, 3, 2, 5, 4, 7, 6), "[Order.]"), left_and_right
    ).strips
    assert source.pictures[0].getpixel((10, 10))[0] == 200
    assert target.pictures[0].getpixel((10, 10))[0] == 0


def test_facts_and_an_image() -> None:
    card = card_of(identity_plan(1, "edit"), FRAMES[3:4], kind="image")
    assert dict(card.facts) == {
        "dataset": "koala",
        "licence": "free",
        "task": "edit / style",
        "bucket": "40x20",
        "kind": "image",
        "frames": "1",
        "epoch": "2",
    }
    assert [len(strip.pictures) for strip in card.strips] == [1, 1]
    assert card.strips[1].pictures[0].size == (200, 100)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for number in range(3):
        Image.fromarray(FRAMES[number]).save(tmp_path / f"{number}.png")
    rows = [{"image": f"{number}.png", "caption": f"Picture {number}."} for number in range(3)]
    # A picture's file as a video of one frame: nothing needs an encoder here.
    rows += [{"source": "0.png", "target": "1.png", "instruction": "Brighter.", "sample_id": "pair"}]
    write_jsonl(rows, tmp_path / "manifest.jsonl")
    return tmp_path / "manifest.jsonl"


def draw(manifest: Path, count: int, **changed: object) -> list[Card]:
    settings = LoaderSettings(**({"images_per_step": 448, "videos_per_step": 112, "buckets": ((32, 32),)} | changed))
    return list(draw_cards(load_manifest(manifest), settings, count, Quarantine(manifest.parent / "quarantine.jsonl")))


def test_cards_are_the_first_draws_of_a_run(manifest: Path) -> None:
    ids = [card.sample_id for card in draw(manifest, 4)]
    assert sorted(ids) == ["0.png", "1.png", "2.png", "pair"]
    assert [card.sample_id for card in draw(manifest, 6)][:4] == ids
    assert {tuple(card.sample_id for card in draw(manifest, 4, seed=seed)) for seed in range(8)} != {tuple(ids)}


def test_a_bad_clip_is_replaced_and_recorded(manifest: Path) -> None:
    (manifest.parent / "2.png").write_bytes(b"")
    cards = draw(manifest, 4)
    assert len(cards) == 4
    assert "2.png" not in {card.sample_id for card in cards}
    assert "2.png" in (manifest.parent / "quarantine.jsonl").read_text()


def test_a_kind_without_rows_gives_its_share_to_the_other(manifest: Path) -> None:
    assert len(draw(manifest, 5)) == 5
    with pytest.raises(DataError, match="no row for the wanted videos"):
        draw(manifest, 5, images_per_step=0)


def test_half_of_the_cards_are_videos(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", noise.repeat(8, axis=1).repeat(8, axis=2), fps=16)
    Image.fromarray(FRAMES[0]).save(tmp_path / "a.png")
    write_jsonl([{"video": "a.mp4", "caption": "x"}, {"image": "a.png", "caption": "y"}], tmp_path / "manifest.jsonl")
    motion = Motion(none=0, cube=0, speed=0, tube=1)
    cards = draw(tmp_path / "manifest.jsonl", 5, motion=motion)
    assert [dict(card.facts)["kind"] for card in cards] == ["image"] * 2 + ["video"] * 3
    video = cards[-1]
    assert (dict(video.facts)["task"], dict(video.facts)["epoch"]) == ("tube", "2")
    assert len(video.strips[0].pictures) == MOST_FRAMES
    source, target = (np.asarray(strip.pictures[0]) for strip in video.strips)
    assert not np.array_equal(source, target)
