"""A bar chart as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ROW, _BAR, _LABEL, _WIDTH, _TOP = 26, 18, 250, 520, 44


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: Left of it.
        value: Its length.
        text: At its end.
        own: Whether it is this project's, and stands out.
    """

    label: str
    value: float
    text: str
    own: bool


def draw_bars(title: str, bars: Sequence[Bar]) -> str:
    """Returns an SVG picture of horizontal bars from zero."""
    longest = max(bar.value for bar in bars)
    height = _TOP + _ROW * len(bars) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _WIDTH + 150}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="12" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for index, bar in enumerate(bars):
        top, length = _TOP + index * _ROW, max(1.0, _WIDTH * bar.value / longest)
        colour, baseline = ("#1f6f54" if bar.own else "#a9b4bd"), top + 14
        lines += [
            f'<text x="{_LABEL - 8}" y="{baseline}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
            f'<text x="{_LABEL + length + 6:.1f}" y="{baseline}">{escape(bar.text)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
