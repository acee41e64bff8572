"""Pages of the documentation that come from the code are what the code says now."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
import typer

from sama_mega.__main__ import app
from sama_mega.commands.reference import pages, render_commands


@pytest.mark.parametrize("name", list(pages(app)))
def test_the_committed_page_is_the_generated_one(name: str, repo_root: Path) -> None:
    committed = (repo_root / "docs" / name).read_text(encoding="utf-8")
    assert committed == pages(app)[name], f"docs/{name} is not what the code says now: run `make reference`"


def test_commands_are_listed_with_what_they_take() -> None:
    example, group = typer.Typer(), typer.Typer()

    @example.command()
    def paint(
        context: typer.Context,
        wall: Annotated[Path, typer.Argument(metavar="WALL", help="What.")],
        colours: Annotated[list[str] | None, typer.Argument(metavar="COLOUR", help="Which.")] = None,
        num_coats: Annotated[int, typer.Option(min=1, help="How often.")] = 2,
        is_dry: Annotated[bool, typer.Option("--dry", "-d", help="Whether | not.")] = False,
    ) -> None:
        """Paint a wall."""

    @group.command("wash")
    def wash_it(out: Annotated[Path, typer.Option(metavar="BUCKET", help="Where to.")]) -> None:
        """Wash a brush."""

    @example.command(hidden=True)
    def secret() -> None:
        """Not shown."""

    example.add_typer(group, name="brush")
    lines = render_commands(example).splitlines()
    assert [line for line in lines if line.startswith("## ")] == ["## paint", "## brush wash"]
    assert "sama-mega paint WALL [COLOUR ...] [OPTIONS]" in lines
    assert [line for line in lines if line.startswith("| `")] == [
        "| `WALL` | What. | required |",
        "| `COLOUR ...` | Which. |  |",
        "| `--num-coats N` | How often. | `2` |",
        "| `--dry, -d` | Whether \\| not. |  |",
        "| `--out BUCKET` | Where to. | required |",
    ]
