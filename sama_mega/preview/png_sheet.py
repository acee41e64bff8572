"""Cards as one picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sama_mega.preview.cards import MOST_FRAMES, Card, Strip

_GAP = 8
_LABEL_WIDTH = 64
_CELL_WIDTH = 204
_WIDTH = 2 * _GAP + _LABEL_WIDTH + MOST_FRAMES * _CELL_WIDTH
_LINE = 22
_FONT_PIXELS, _TITLE_PIXELS, _SMALL_PIXELS = 16, 20, 12
_BACKGROUND, _CARD = (238, 238, 238), (255, 255, 255)
_INK, _FAINT, _TOKEN = (20, 20, 20), (110, 110, 110), (170, 60, 0)

_Words = Sequence[tuple[str, tuple[int, int, int]]]
"""Words and their colours."""


def png_sheet(cards: Sequence[Card], title: str) -> bytes:
    """Returns a PNG with the cards below each other."""
    drawn = [_draw_card(number, card) for number, card in enumerate(cards, start=1)]
    top = _GAP + _LINE + _GAP
    height = top + sum(card.height + _GAP for card in drawn)
    sheet = Image.new("RGB", (_WIDTH + 2 * _GAP, height), _BACKGROUND)
    ImageDraw.Draw(sheet).text((_GAP, _GAP), title, fill=_INK, font=ImageFont.load_default(_TITLE_PIXELS))
    for card in drawn:
        sheet.paste(card, (_GAP, top))
        top += card.height + _GAP
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def _draw_card(number: int, card: Card) -> Image.Image:
    font = ImageFont.load_default(_FONT_PIXELS)
    heading = [(f"{number}.", _INK), *((word, _INK) for word in card.sample_id.split())]
    facts = [(word, colour) for what, value in card.facts for word, colour in _fact(what, value)]
    prompt = [(word, _TOKEN) for word in card.prefix.split()] + [(word, _INK) for word in card.text.split()]
    lines = [line for words in (heading, facts, prompt) for line in _broken(words, font)]
    rows = _rows(card)
    picture = Image.new("RGB", (_WIDTH, _GAP + len(lines) * _LINE + sum(map(_row_height, rows)) + _GAP), _CARD)
    draw = ImageDraw.Draw(picture)
    top = _GAP
    for line in lines:
        left: float = _GAP
        for word, colour in line:
            draw.text((left, top), word, fill=colour, font=font)
            left += font.getlength(f"{word} ")
        top += _LINE
    for row in rows:
        _draw_row(picture, row, top)
        top += _row_height(row)
    return picture


def _fact(what: str, value: str) -> _Words:
    return [(what, _FAINT), *((word, _INK) for word in f"{value}  ".split(" "))]


def _rows(card: Card) -> list[list[Strip]]:
    """Source over target; pictures beside each other."""
    source, target = card.strips
    return [[source, target]] if source.num_frames == target.num_frames == 1 else [[source], [target]]


def _row_height(row: Sequence[Strip]) -> int:
    return max(picture.height for strip in row for picture in strip.pictures) + _LINE


def _draw_row(card: Image.Image, row: Sequence[Strip], top: int) -> None:
    draw, left = ImageDraw.Draw(card), _GAP
    font, small = ImageFont.load_default(_FONT_PIXELS), ImageFont.load_default(_SMALL_PIXELS)
    height = _row_height(row) - _LINE
    for strip in row:
        draw.text((left, top), strip.label, fill=_FAINT, font=font)
        left += _LABEL_WIDTH
        for number, picture in zip(strip.frame_numbers, strip.pictures, strict=True):
            card.paste(picture, (left, top))
            if strip.num_frames > 1:
                draw.text((left, top + height + 1), f"frame {number}", fill=_FAINT, font=small)
            left += _CELL_WIDTH


def _broken(words: _Words, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[_Words]:
    """Words in lines that fit."""
    lines: list[list[tuple[str, tuple[int, int, int]]]] = [[]]
    width = 0.0
    for word in words:
        length = font.getlength(f"{word[0]} ")
        if lines[-1] and width + length > _WIDTH - 2 * _GAP:
            lines.append([])
            width = 0.0
        lines[-1].append(word)
        width += length
    return list(lines)
