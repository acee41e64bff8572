"""The command line: `sama-mega`, or `python -m sama_mega`.

Declares commands and options and nothing else (those of `data`, `bench` and `evaluate` in `commands/data_app.py`,
`commands/bench_app.py` and `commands/evaluate_app.py`): each command imports its module when it runs, so that `--help`
costs no torch. Every `run` returns the exit status; `main` turns user errors into one line and status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import sama_mega
from sama_mega.commands import bench_app, data_app, evaluate_app
from sama_mega.commands.options import (
    CheckpointArgument,
    GuidanceOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    StepsOption,
    WeightsOption,
)

USER_ERROR_STATUS = 2
INTERRUPTED_STATUS = 130
USER_ERRORS = (("sama_mega.config.errors", "UserError"), ("sama_data.errors", "DataError"))

app = typer.Typer(
    help="Train SAMA, an instruction-guided video editing model, on one CPU or a GPU cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help and usage errors: the same on a terminal and in a log, and faster
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app.app, name="data")
app.add_typer(bench_app.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sama-mega {sama_mega.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Hold the options before the command."""


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A replay/step-*/report.json: take just that step once more; exit 1 if it is bad again.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe; resume where its run folder ends.

    One process alone, or as ranks of `torchrun -m sama_mega train ...` or of `srun` with one task per rank.
    """
    from sama_mega.commands import train as command

    if replay is not None:
        raise typer.Exit(command.run_replay(recipe, replay, overrides or [], as_json=as_json))
    raise typer.Exit(command.run(recipe, overrides or [], as_json=as_json))


@app.command()
def profile(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to trace.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where trace and table go (default: profiles/RECIPE).")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Also a snapshot of the GPU's memory.")] = False,
    ranks: Annotated[Literal["all", "0"], typer.Option(help="Whose steps are traced.")] = "all",
    nvtx: Annotated[bool, typer.Option("--nvtx", help="For nsys or ncu around it: NVTX ranges, no trace.")] = False,
    ncu: Annotated[
        str | None, typer.Option(metavar="KERNEL", help="Read one kernel's counters with Nsight Compute instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Trace some training steps for Perfetto, and show where their time goes and how near it comes to the peak.

    Alone, or as ranks like `train`. Keeps nothing of the run, resumes nothing, and starts from random weights.
    """
    from sama_mega.commands import profile as command

    options = command.Options(steps, warmup, out, memory, ranks, nvtx, ncu)
    raise typer.Exit(command.run(recipe, overrides or [], options, as_json=as_json))


@app.command("job-ended", hidden=True)
def job_ended(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    status: Annotated[int, typer.Option(help="Exit status of the job step.")] = 0,
    preempted: Annotated[bool, typer.Option("--preempted", help="Slurm takes the nodes for another job.")] = False,
) -> None:
    """Decide whether a Slurm job whose ranks have ended starts again; for slurm/job.sh."""
    from sama_mega.commands import job_ended as command

    raise typer.Exit(command.run(recipe, overrides or [], status, preempted=preempted))


@app.command()
def check(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks to plan for (default: the fewest that the degrees allow)."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="H100, H200, B200, A100 or yours (default: H200; float32: none)."),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="What a rank may take of a GPU's memory (default: the kind's).")
    ] = None,
    gpu_table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own GPUs, like slurm/gpus.yaml (or $SAMA_MEGA_GPUS).")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on a node: warn of groups that span nodes.")] = 8,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Also simulate 8 to 4,096 GPUs, each in the fastest layout that fits.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate and plan a recipe for any number of GPUs, without one: layout, memory by part, step time, what fits."""
    from sama_mega.commands import check as command
    from sama_mega.commands.check_plan import GpuRequest

    request = GpuRequest(gpu, gpu_memory_gib, gpu_table, gpus_per_node)
    raise typer.Exit(
        command.run(recipe, overrides or [], num_ranks=gpus, as_json=as_json, request=request, scaling=scaling)
    )


@app.command()
def health(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Check the nodes of a job before it trains, or this one alone: GPUs, run folder, clocks, versions; exit 1 if ill.

    As ranks of `srun`, all of them meet here, and none exits with 0 unless every node is healthy.
    """
    from sama_mega.commands import health as command

    raise typer.Exit(command.run(recipe, overrides or [], as_json=as_json))


@app.command()
def verify(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="Recipe of the model to verify.")] = None,
    overrides: OverridesArgument = None,
    golden: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of golden tensors to compare with instead.")
    ] = None,
    tensor: Annotated[
        int | None, typer.Option("--tp", min=1, help="Tensor parallel ranks; by default the recipe's.")
    ] = None,
    context: Annotated[int | None, typer.Option("--cp", min=1, help="Context parallel ranks; likewise.")] = None,
    pipeline: Annotated[int | None, typer.Option("--pp", min=1, help="Pipeline ranks; likewise.")] = None,
    data: Annotated[
        int | None, typer.Option("--dp", min=1, help="Data parallel ranks; likewise, auto being 1.")
    ] = None,
    num_layers: Annotated[int | None, typer.Option("--layers", min=1, help="Blocks to keep of the model.")] = None,
    kernels: Annotated[
        Literal["reference", "triton", "auto"] | None, typer.Option(help="Implementation of the fused operations.")
    ] = None,
    plant: Annotated[
        str | None, typer.Option(metavar="BUG", help="Plant a known bug, to see it found: exit 1.")
    ] = None,
    list_plants: Annotated[bool, typer.Option("--list-plants", help="Name the known bugs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold one training step in a layout against one rank: losses, gradients, updates; exit 1 where they differ."""
    from sama_mega.commands import verify as command
    from sama_mega.config.errors import ConfigError

    if list_plants:
        raise typer.Exit(command.list_plants(as_json))
    if recipe is None and golden is None:
        raise ConfigError("verify needs a RECIPE or --golden DIR")
    if recipe is not None and golden is not None:
        raise ConfigError(f"verify --golden takes no RECIPE and no overrides ({recipe}): leave out one of the two")
    degrees = command.Degrees(tensor, context, pipeline, data)
    if golden is not None:
        if plant is not None or num_layers is not None:
            raise ConfigError("--plant and --layers need a RECIPE: with --golden the folder says what is compared")
        raise typer.Exit(command.run_golden(golden, degrees, kernels, as_json))
    assert recipe is not None
    raise typer.Exit(command.run_recipe(recipe, overrides or [], degrees, num_layers, kernels, plant, as_json))


@app.command()
def edit(
    checkpoint: CheckpointArgument,
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The clip or picture to edit.")],
    instruction: Annotated[str, typer.Argument(metavar="INSTRUCTION", help="What to change.")],
    out: Annotated[Path, typer.Option(metavar="FILE.mp4", help="The edit; FILE.png beside it compares both.")],
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    source_guidance: Annotated[
        float, typer.Option(min=0, help="Guidance scale of the source; 0: none, else one more pass a step.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the initial noise.")] = 1,
    weights: WeightsOption = "ema",
    max_frames: Annotated[int, typer.Option(min=1, help="A longer clip is refused.")] = 81,
    tensor: Annotated[
        int | None, typer.Option("--tp", min=1, help="Tensor parallel ranks; by default all that --cp leaves.")
    ] = None,
    context: Annotated[int, typer.Option("--cp", min=1, help="Context parallel ranks.")] = 1,
    vae_tiling: Annotated[
        Literal["auto", "on", "off"], typer.Option(help="Wan VAE in tiles, for less memory; auto: above 480p.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Edit a video by an instruction; the edit has its length, size, rate and sound.

    Ranks beyond --tp times --cp share the passes of guidance: two ranks with --tp 1 make one each.
    """
    from sama_mega.commands import edit as command

    raise typer.Exit(
        command.run(
            checkpoint=checkpoint,
            video=video,
            instruction=instruction,
            out=out,
            steps=steps,
            guidance=guidance,
            source_guidance=source_guidance,
            seed=seed,
            weights=weights,
            max_frames=max_frames,
            tensor=tensor,
            context=context,
            tiling=vae_tiling,
            as_json=as_json,
        )
    )


@app.command("import")
def import_weights(
    source_format: Annotated[
        Literal["diffusers", "wan", "sama"],
        typer.Argument(metavar="{diffusers|wan|sama}", help="Who wrote the weights."),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder or the file of the weights.")],
    out: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="The checkpoint to write; must not exist.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Of this model (default: by the weights' size, 14B or 1.3B).")
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE[:SCALE]", help="Add a LoRA file to the weights; repeat for several."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a checkpoint of Wan2.1's or SAMA's published weights; every tensor is accounted for."""
    from sama_mega.commands import import_weights as command

    raise typer.Exit(command.run(source_format, path, out, recipe, loras or [], as_json=as_json))


@app.command("export")
def export_weights(
    checkpoint: CheckpointArgument,
    target_format: Annotated[
        Literal["diffusers", "sama"],
        typer.Argument(metavar="{diffusers|sama}", help="A diffusers folder, or one file as SAMA's authors publish."),
    ],
    out: Annotated[Path, typer.Option(metavar="PATH", help="The folder, or the .safetensors file; must not exist.")],
    weights: WeightsOption = "ema",
    dtype: Annotated[Literal["bf16", "fp32"], typer.Option(help="Precision of the tensors.")] = "bf16",
    lora: Annotated[
        bool,
        typer.Option("--lora", help="Write what a run with lora.rank trained, as one LoRA file, and nothing else."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint's weights for diffusers, or for the authors' code; every tensor is accounted for."""
    from sama_mega.commands import export_weights as command

    raise typer.Exit(command.run(checkpoint, target_format, out, weights, dtype, lora, as_json=as_json))


app.command("evaluate")(evaluate_app.evaluate)


@app.command()
def ablation(
    out: Annotated[Path, typer.Option(metavar="DIR", help="The study: worlds, runs, report; gone on with.")],
    size: Annotated[
        str, typer.Option(help="cpu (an hour on two cores), or gpu (minutes on one, with more --jobs).")
    ] = "cpu",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, one process each.")] = 2,
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Train with and without semantic anchoring and motion alignment on the synthetic world, and compare.

    Run it from the repository's root: it uses recipes/ablation. Killed at any moment, it goes on where it was.
    """
    from sama_mega.commands import ablation as command

    raise typer.Exit(command.run(size, out, seeds, jobs, overrides or [], as_json=as_json))


@app.command()
def submit(
    recipe: RecipeArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="A.B=VALUE", help="Replace values in every stage; 0:A.B=VALUE in stage 0 alone."),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(help="0, 1 or 0,1: stage 1 from the recipe named alike, after stage 0 (default: the recipe's)."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of each job.")] = 1,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The cluster's settings, like slurm/cluster.yaml ($SAMA_MEGA_CLUSTER)."),
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs of a node, a rank on each; 0 for CPU nodes (default: 8, for a CPU recipe 0)."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Their kind, of slurm/gpus.yaml: what does not fit it is not submitted."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="HH:MM:SS", help="Time limit; the job goes on in another one.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Slurm's account.")] = None,
    container_image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Run inside this image (pyxis and enroot).")
    ] = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="A.B=V1,V2", help="A job for each value; repeat for the product."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the scripts; write and submit nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a recipe for a number of nodes and submit it to Slurm, with a copy of the code."""
    from sama_mega.commands import submit as command

    raise typer.Exit(
        command.run(
            recipe,
            overrides or [],
            stages=stages,
            num_nodes=nodes,
            cluster=cluster,
            options={
                "gpus_per_node": gpus_per_node,
                "gpu": gpu,
                "time": time,
                "partition": partition,
                "account": account,
                "container_image": container_image,
            },
            sweeps=sweeps or [],
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@app.command(hidden=True)
def reference(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The documentation's folder.")] = Path("docs"),
) -> None:
    """Write the pages of the documentation that come from the code: recipes and commands."""
    from sama_mega.commands import reference as command

    raise typer.Exit(command.run(folder, app))


def _is_user_error(error: Exception) -> bool:
    """Whether the user's input is to blame; a class whose module nobody imported cannot have been raised."""
    classes = [getattr(sys.modules[module], name) for module, name in USER_ERRORS if module in sys.modules]
    return isinstance(error, tuple(classes))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status; unexpected errors keep their traceback and exit 1.

    Args:
        arguments: The command line after the program's name; None reads `sys.argv`.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="sama-mega")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    except Exception as error:
        if not _is_user_error(error):
            raise
        if not getattr(error, "told_by_first_rank", False):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USER_ERROR_STATUS)


if __name__ == "__main__":
    main()
