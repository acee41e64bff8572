"""Declares the commands of `sama-mega bench`, as `sama_mega.__main__` does those beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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


@app.command("planner")
def bench_planner(
    only: Annotated[Literal["memory", "time"] | None, typer.Option(help="One of the two (default: both).")] = None,
    rounds: RoundsOption = 7,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Hold what `check` predicts, memory and step time, against what this machine measures.

    Rates are fitted on every second configuration; the errors of the others say how good the predictions are.
    """
    from sama_mega.commands import bench_planner as command

    raise typer.Exit(command.run(only, rounds, as_json, results))


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
    rounds: RoundsOption = 3,
    as_json: JsonOption = False,
    results: ResultsOption = RESULTS,
) -> None:
    """Time decoding by DALI against PyAV and OpenCV on all cores, and on the GPU where there is one: parity first.

    Exits with 1 where frames differ by more than they may; no speed is measured then.
    """
    from sama_mega.commands import bench_data as command

    options = command.Options(clips, tuple(frames or (49, 81)), tuple(batches or (1, 2, 4, 8)), size, bucket, rounds)
    raise typer.Exit(command.run(options, results, as_json=as_json))
