"""Declares the commands of `sama-mega bench`, as `sama_mega.__main__` does those beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sama_mega.commands.options import JsonOption

app = typer.Typer(help="Time this software against its peers.", no_args_is_help=True, rich_markup_mode=None)

ModelOption = Annotated[str, typer.Option(help="Width of the blocks: 14b, 1.3b or toy (default: by the device).")]
AttentionOption = Annotated[str, typer.Option(help="kernels.attention of this project's rows.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Timed runs of each row.")]
CompileOption = Annotated[
    bool, typer.Option("--compile/--no-compile", help="Also diffusers as torch.compile makes it.")
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="DIR", help="Where --json writes its dated file.")]
RESULTS = Path("kernels/bench/results")


@app.command("kernels")
def bench_kernels(
    kernel: Annotated[
        list[str] | None, typer.Option(help="Such as adaln or attention; repeat for several (default: all).")
    ] = None,
    model: ModelOption = "",
    workload: Annotated[str, typer.Option(help="81-frames, 49-frames, images or toy (default: by the device).")] = "",
    tensor: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks of which one is timed.")] = 1,
    rounds: RoundsOption = 20,
    compile_reference: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also the reference as torch.compile makes it.")
    ] = True,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Time every operation by every backend that runs here: parity first."""
    from sama_mega.commands import bench_kernels as command

    status = command.run(kernel or [], model, workload, tensor, rounds, compile_reference, as_json, results)
    raise typer.Exit(status)


@app.command("layer")
def bench_layer(
    model: ModelOption = "",
    workload: Annotated[
        list[str] | None,
        typer.Option(help="81-frames, 49-frames, images or toy; repeat for several (default: by the device)."),
    ] = None,
    attention: AttentionOption = "auto",
    rounds: RoundsOption = 10,
    compile_peers: CompileOption = True,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Time one transformer block, forward and backward, against its peers: parity first."""
    from sama_mega.commands import bench_layer as command

    raise typer.Exit(command.run(model, workload or [], attention, rounds, compile_peers, as_json, results))


@app.command("train")
def bench_train(
    model: ModelOption = "",
    workload: Annotated[str, typer.Option(help="81-frames, 49-frames, images or toy (default: by the device).")] = "",
    layers: Annotated[int, typer.Option(min=1, help="Blocks of the model.")] = 2,
    attention: AttentionOption = "auto",
    rounds: RoundsOption = 5,
    compile_peers: CompileOption = True,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Time optimizer steps of a model of few layers against diffusers' model."""
    from sama_mega.commands import bench_train as command

    status = command.run(model, workload, layers, attention, rounds, compile_peers, as_json, results)
    raise typer.Exit(status)
