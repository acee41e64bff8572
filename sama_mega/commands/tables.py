"""How commands print tables."""

from __future__ import annotations

from rich import box
from rich.table import Table


def plain_table(title: str, *columns: str) -> Table:
    """A table without lines: names on the left, and on the right the numbers, whose columns end in ``|n``."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        name, _, unit = column.partition("|")
        table.add_column(name, justify="right" if unit == "n" else "left")
    return table
