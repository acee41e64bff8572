"""Sheets: one PNG, one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sama_mega.preview.cards import Card, Strip
from sama_mega.preview.html_sheet import html_sheet
from sama_mega.preview.png_sheet import png_sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def strip(label: str, colour: tuple[int, int, int], frames: int = 3) -> Strip:
    pictures = tuple(Image.new("RGB", (100, 50), colour) for _ in range(frames))
    return Strip(label, pictures, tuple(range(frames)), frames)


def card(text: str = "Make it blue.", frames: int = 3, name: str = "clip") -> Card:
    strips = (strip("source", RED, frames), strip("target", BLUE, frames))
    return Card(name, (("dataset", "openve"), ("licence", "CC BY")), "[Video edit]", text, strips)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def test_every_frame_is_on_the_picture() -> None:
    pixels = opened(png_sheet([card(), card()], "A sheet"))
    assert count(pixels, RED) == count(pixels, BLUE) == 2 * 3 * 100 * 50


def test_source_stands_over_target_and_pictures_beside_each_other() -> None:
    def first(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int]:
        lines, columns = np.nonzero((pixels == colour).all(axis=-1))
        return int(lines[0]), int(columns[0])

    video, image = (opened(png_sheet([card(frames=frames)], "x")) for frames in (3, 1))
    (top, left), (below, beneath) = first(video, RED), first(video, BLUE)
    assert below > top + 50
    assert beneath == left
    (top, left), (same, right) = first(image, RED), first(image, BLUE)
    assert same == top
    assert right > left + 100


@pytest.mark.parametrize("length", [400, 2000])
def test_a_long_caption_is_broken_and_not_cut(length: int) -> None:
    short, long = (opened(png_sheet([card(text)], "x")) for text in ("word", "word " * length))
    assert long.shape[1] == short.shape[1]
    lines = (long.shape[0] - short.shape[0]) / 22
    assert lines > length / 60
    assert count(long, (20, 20, 20)) > length * 5  # ink


class Page(HTMLParser):
    """Gathers text, pictures and addresses; complains of tags that do not close."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.pictures: list[bytes] = []
        self.addresses: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name in ("src", "href"):
                head, _, data = str(value).partition(",")
                (self.pictures if head == "data:image/jpeg;base64" else self.addresses).append(data)  # type: ignore

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def close(self) -> None:
        super().close()
        assert self._open == []


def read(page: str) -> Page:
    found = Page()
    found.feed(page)
    found.close()
    return found


def test_the_page_holds_all_pictures_and_names_no_other_file() -> None:
    page = read(html_sheet([card(), card(frames=1)], "A sheet"))
    assert page.addresses == []
    assert len(page.pictures) == 2 * 3 + 2
    for data in page.pictures:
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (100, 50)
    text = " ".join(page.text)
    for expected in ("A sheet", "1. clip", "openve", "CC BY", "[Video edit]", "Make it blue.", "frame 2"):
        assert expected in text


def test_what_a_manifest_says_is_no_markup() -> None:
    page = html_sheet([card("<script>alert(1)</script> & <b>", name="<i>")], "<title>")
    assert "<script" not in page
    found = read(page)
    assert "<script>alert(1)</script> & <b>" in "".join(found.text)
