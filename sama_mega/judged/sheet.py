"""A page on which people watch every source beside its edit, with what the judge said of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; background: #eee; color: #141414; }
article { background: #fff; border-radius: 6px; padding: .8rem 1rem; margin: 0 0 1rem; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .2rem 0; }
.faint { color: #6e6e6e; }
.clips { display: flex; flex-wrap: wrap; gap: .6rem; }
video { max-width: 26rem; width: 100%; background: #ddd; }
figure { margin: 0; flex: 1 1 16rem; max-width: 26rem; }
figcaption { font-size: .8rem; color: #6e6e6e; }
"""


@dataclass(frozen=True)
class SheetEntry:
    """One clip on the page.

    Attributes:
        name: The clip's.
        label: Its category's.
        instruction: What was to change.
        source: The source's file.
        edit: The edit's; None where there is none.
        columns: Its figures; none where it has no scores.
        remarks: What the judge said that it saw, a text for each turn; or why there are no scores.
    """

    name: str
    label: str
    instruction: str
    source: Path
    edit: Path | None
    columns: Mapping[str, float]
    remarks: Sequence[str]


def sheet_page(entries: Iterable[SheetEntry], title: str, folder: Path) -> str:
    """Returns an HTML page.

    Args:
        entries: In the page's order.
        title: Of the page.
        folder: Where the page will lie: it names the clips relative to that.
    """
    articles = "\n".join(_article(number, entry, folder) for number, entry in enumerate(entries, start=1))
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{articles}\n</html>\n"
    )


def _article(number: int, entry: SheetEntry, folder: Path) -> str:
    figures = ", ".join(f"{escape(name)} {value:.2f}" for name, value in entry.columns.items()) or "no scores"
    remarks = "\n".join(f'<p class="faint">{escape(remark)}</p>' for remark in entry.remarks if remark)
    clips = [_video("source", entry.source, folder)]
    clips += [_video("edit", entry.edit, folder)] if entry.edit is not None else []
    return (
        f"<article>\n<h2>{number}. {escape(entry.label)}: {escape(entry.instruction)}</h2>\n"
        f'<p>{figures} <span class="faint">{escape(entry.name)}</span></p>\n'
        f'<div class="clips">\n{"".join(clips)}</div>\n{remarks}\n</article>'
    )


def _video(label: str, path: Path, folder: Path) -> str:
    # Nothing is loaded before somebody plays it: there may be hundreds of clips.
    place = quote(os.path.relpath(path.resolve(), folder.resolve()))
    return (
        f'<figure><video src="{place}#t=0.01" controls loop muted playsinline preload="metadata"></video>'
        f"<figcaption>{label}</figcaption></figure>\n"
    )
