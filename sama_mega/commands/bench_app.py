"""Declares the commands of `sama-mega bench`, as `sama_mega.__main__` does those beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sama_mega.commands.options import JsonOption

app = typer.Typer(help="Measure speed, after parity.", no_args_is_help=True, rich_markup_mode=None)


@app.command("data")
def bench_data(
    clips: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Clips to decode (default: made for the occasion).")
    ] = None,
    frames: Annotated[
        list[int] | None, typer.Option(min=1, help="Frames of a clip; repeat for several (default: 49 and 81).")
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Clips of a batch; repeat (default: 1, 2, 4 and 8).")
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of clips that are made, pixels.")] = "832x480",
    bucket: Annotated[
        str | None, typer.Option(metavar="WxH", help="What the loader brings clips to (default: their own size).")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, of which the least and the median are shown.")] = 3,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where --json writes its dated file.")] = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Compare decoding by DALI with PyAV and OpenCV on all cores, and on the GPU where there is one; exit 1 off parity.

    Frames are compared first; where they differ by more than they may, no speed is measured. With --json the figures
    also go to a dated file, with machine, versions and command.
    """
    from sama_mega.commands import bench_data as command

    options = command.Options(clips, tuple(frames or (49, 81)), tuple(batches or (1, 2, 4, 8)), size, bucket, repeats)
    raise typer.Exit(command.run(options, out, as_json=as_json))
