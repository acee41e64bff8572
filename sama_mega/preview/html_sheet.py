"""Cards as one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from sama_mega.preview.cards import Card, Strip

_JPEG_QUALITY = 88
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; background: #eee; color: #141414; }
h1 { font-size: 1.2rem; }
article { background: #fff; border-radius: 6px; padding: .8rem 1rem; margin: 0 0 1rem; overflow-x: auto; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 0 1.2rem; margin: .2rem 0; }
dl div { display: flex; gap: .35rem; }
dt, figcaption, th { color: #6e6e6e; font-weight: normal; }
dd { margin: 0; }
p { margin: .2rem 0 .6rem; }
b { color: #aa3c00; font-weight: normal; }
th { text-align: left; vertical-align: top; padding: 0 .8rem 0 0; }
td { padding: 0 4px 0 0; vertical-align: top; }
figure { margin: 0; }
figcaption { font-size: .75rem; }
img { display: block; }
"""


def html_sheet(cards: Sequence[Card], title: str) -> str:
    """Returns an HTML page with the cards below each other; its pictures are part of it."""
    articles = "\n".join(_article(number, card) for number, card in enumerate(cards, start=1))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{articles}\n</html>\n"
    )


def _article(number: int, card: Card) -> str:
    facts = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in card.facts)
    prefix = f"<b>{escape(card.prefix)}</b> " if card.prefix else ""
    rows = "\n".join(_row(strip) for strip in card.strips)
    return (
        f"<article>\n<h2>{number}. {escape(card.sample_id)}</h2>\n<dl>{facts}</dl>\n"
        f"<p>{prefix}{escape(card.text)}</p>\n<table>\n{rows}\n</table>\n</article>"
    )


def _row(strip: Strip) -> str:
    cells = "".join(
        f"<td>{_figure(picture, strip, number)}</td>"
        for number, picture in zip(strip.frame_numbers, strip.pictures, strict=True)
    )
    return f"<tr><th>{escape(strip.label)}</th>{cells}</tr>"


def _figure(picture: Image.Image, strip: Strip, number: int) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    what = f"{strip.label}, frame {number} of {strip.num_frames}"
    caption = f"<figcaption>frame {number}</figcaption>" if strip.num_frames > 1 else ""
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{escape(what)}" '
        f'width="{picture.width}" height="{picture.height}">{caption}</figure>'
    )
