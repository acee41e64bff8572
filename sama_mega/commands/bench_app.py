"""Declares the commands of `sama-mega bench`, as `sama_mega.__main__` does those beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sama_mega.commands.options import JsonOption

app = typer.Typer(help="Time this software against its peers.", no_args_is_help=True, rich_markup_mode=None)

ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where --json writes its dated file.")]
RESULTS = Path("kernels/bench/results")


@app.command("layer")
def bench_layer(
    model: Annotated[str, typer.Option(help="Width of the block: 14b, 1.3b or toy.")] = "",
    workload: Annotated[
        list[str] | None,
        typer.Option(help="81-frames, 49-frames, images or toy; repeat for several (default: all that fit)."),
    ] = None,
    attention: Annotated[str, typer.Option(help="kernels.attention of this project's rows.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each row.")] = 10,
    compile_peers: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also diffusers as torch.compile makes it.")
    ] = True,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Time one transformer block, forward and backward, against its peers: parity first."""
    from sama_mega.commands import bench_layer as command

    raise typer.Exit(command.run(model, workload or [], attention, rounds, compile_peers, as_json, results))
