"""The command line: `sama-mega`, or `python -m sama_mega`.

Declares commands and options and nothing else: each command imports its module when it runs, so that `--help`
costs no torch. Every `run` returns the exit status; `main` turns user errors into one line and status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

import sama_mega

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
data_app = typer.Typer(help="Make and inspect datasets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, such as recipes/demo_stage0.yaml.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="A.B=VALUE", help="Replace values, such as train.steps=100.")
]
CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A step-NNNNNNNN or a run folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Make the last line of stdout one JSON object.")]
WeightsOption = Annotated[Literal["ema", "model"], typer.Option(help="The moving average, or the weights themselves.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Sampling steps (default: the checkpoint's recipe).")]
GuidanceOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Guidance strength (default: the checkpoint's recipe); 1 is none."),
]
ManifestArgument = Annotated[Path, typer.Argument(metavar="MANIFEST", help="JSONL or Parquet, a row a sample.")]
ManifestOutOption = Annotated[Path, typer.Option(metavar="M.parquet", help="The manifest to write.")]


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
def train(recipe: RecipeArgument, overrides: OverridesArgument = None, as_json: JsonOption = False) -> None:
    """Run a recipe; resume where its run folder ends.

    One process alone, or as ranks of `torchrun -m sama_mega train ...` or of `srun` with one task per rank.
    """
    from sama_mega.commands import train as command

    raise typer.Exit(command.run(recipe, overrides or [], as_json=as_json))


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
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Ranks on a node: warn of groups that span nodes.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Validate a recipe for any number of GPUs, without one; show its layout and sequence lengths."""
    from sama_mega.commands import check as command

    raise typer.Exit(command.run(recipe, overrides or [], num_ranks=gpus, as_json=as_json, gpus_per_node=gpus_per_node))


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial noise.")] = 1,
    weights: WeightsOption = "ema",
    max_frames: Annotated[int, typer.Option(min=1, help="Longest clip in frames.")] = 81,
    as_json: JsonOption = False,
) -> None:
    """Edit a video by an instruction."""
    from sama_mega.commands import edit as command

    raise typer.Exit(
        command.run(
            checkpoint=checkpoint,
            video=video,
            instruction=instruction,
            out=out,
            steps=steps,
            guidance=guidance,
            seed=seed,
            weights=weights,
            max_frames=max_frames,
            as_json=as_json,
        )
    )


@app.command()
def evaluate(
    checkpoint: CheckpointArgument,
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="There is one: synthetic, held-out clips of the synthetic world.")
    ] = "synthetic",
    weights: WeightsOption = "ema",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips at most, per kind of edit.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where pictures and scores go.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint on a suite of edits whose truth is known."""
    from sama_mega.commands import evaluate as command

    raise typer.Exit(
        command.run(
            checkpoint=checkpoint,
            suite=suite,
            weights=weights,
            steps=steps,
            guidance=guidance,
            limit=limit,
            out=out,
            as_json=as_json,
        )
    )


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


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where clips and manifests go.")],
    num_videos: Annotated[int, typer.Option("--videos", min=0, help="Video pairs to make.")] = 64,
    num_images: Annotated[int, typer.Option("--images", min=0, help="Image pairs to make.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same clips.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 1,
    size: Annotated[int, typer.Option(help="Height and width in pixels, a multiple of 16.")] = 64,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip, 4k+1.")] = 17,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Kind of edit; repeat for several (default: all).")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also write which pixels each edit may change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the synthetic editing world: moving shapes with an exact truth for every edit."""
    from sama_mega.commands import data as command

    raise typer.Exit(
        command.run_synth(
            out=out,
            num_videos=num_videos,
            num_images=num_images,
            seed=seed,
            workers=workers,
            size=size,
            frames=frames,
            kinds=kinds,
            as_json=as_json,
            masks=masks,
        )
    )


@data_app.command("ingest")
def data_ingest(
    name: Annotated[str | None, typer.Argument(metavar="SET", help="What it is, such as openve; see --list.")] = None,
    source: Annotated[
        Path | None, typer.Argument(metavar="SRC", help="The dataset's folder, or the file that lists its rows.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="M.parquet", help="The manifest; .jsonl for one a person can read.")
    ] = None,
    media: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with the clips (default: SRC, or the folder it is in).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows at most.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Files read at the same time (default: twice the cores, 16 at most).")
    ] = None,
    keep_missing: Annotated[
        bool, typer.Option("--keep-missing", help="Also write rows whose clips are not there.")
    ] = False,
    list_sets: Annotated[bool, typer.Option("--list", help="Show the sets with hub id, licence and layout.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a dataset into a manifest; rows that cannot be used are left out and counted.

    Clips in uncompressed tars stay there: the manifest says which bytes they are. Other archives must be unpacked.
    """
    from sama_mega.commands import data as command

    if list_sets:
        raise typer.Exit(command.list_sets(as_json))
    raise typer.Exit(
        command.run_ingest(
            name,
            source,
            out,
            media=media,
            limit=limit,
            workers=workers,
            keep_missing=keep_missing,
            as_json=as_json,
        )
    )


@data_app.command("filter")
def data_filter(
    manifest: ManifestArgument,
    out: ManifestOutOption,
    min_scores: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="[image.|video.]SCORE=LEAST",
            help="Replace a threshold, as in --min video.if_score=9; LEAST none looks at no such score "
            "(default: the paper's, images 9 9 9, videos 8 9 8 8).",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="[DATASET=]TASK",
            help="Keep only this kind of edit, * allowed; repeat for several; paper: what the paper keeps of Ditto "
            "and OpenVE (default: all).",
        ),
    ] = None,
    licences: Annotated[
        list[str] | None, typer.Option("--licence", help="Keep only this licence; repeat for several (default: all).")
    ] = None,
    commercial_only: Annotated[
        bool, typer.Option("--commercial-only", help="Keep only licences that are known to allow commercial use.")
    ] = False,
    keep_unscored: Annotated[bool, typer.Option("--keep-unscored", help="Keep edits that lack a score.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Keep the rows that are good enough to train on: scores, kinds of edit, licences; say why the others went.

    Rows that `data probe` rejected always go. Raw clips are not held to scores.
    """
    from sama_mega.commands import data_filter as command

    raise typer.Exit(
        command.run(
            manifest=manifest,
            out=out,
            min_scores=min_scores or [],
            tasks=tasks or [],
            licences=licences or [],
            commercial_only=commercial_only,
            keep_unscored=keep_unscored,
            as_json=as_json,
        )
    )


@data_app.command("score")
def data_score(
    manifest: ManifestArgument,
    out: ManifestOutOption,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="An OpenAI-compatible server, such as http://host:8000/v1.")
    ],
    model: Annotated[
        str | None, typer.Option(help="The model's name there (default: Qwen/Qwen2.5-VL-72B-Instruct).")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Times that a pair is judged; its scores are the means.")] = 3,
    frames: Annotated[int, typer.Option(min=1, help="Frames shown of each of the two clips, evenly spaced.")] = 8,
    max_frames: Annotated[
        int, typer.Option(min=1, help="They are taken from so many frames at the clip's start.")
    ] = 81,
    video_side: Annotated[int, typer.Option(min=28, help="Longer side of a frame shown, in pixels.")] = 640,
    image_side: Annotated[int, typer.Option(min=28, help="Longer side of an image shown, in pixels.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Of the model's sampling.")] = 0.7,
    max_output_tokens: Annotated[int, typer.Option(min=32, help="Longest answer.")] = 400,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    timeout_seconds: Annotated[float, typer.Option(help="For one request.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="Times that a turn is asked before its row is given up.")] = 6,
    response_format: Annotated[
        Literal["auto", "json_schema", "json_object", "text"],
        typer.Option(help="How JSON is asked for; auto: the strictest that the server takes."),
    ] = "auto",
    api_key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the API key (default: SAMA_MEGA_SCORE_API_KEY, if set)."
        ),
    ] = None,
    input_price: Annotated[
        float | None, typer.Option(min=0.0, help="Price of a million tokens read, for the estimate.")
    ] = None,
    output_price: Annotated[float | None, typer.Option(min=0.0, help="Price of a million tokens written.")] = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Judge rows too that have their scores.")] = False,
    retry_unscored: Annotated[
        bool, typer.Option("--retry-unscored", help="Ask again about rows that got wrong answers before.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Go on after the estimate without a question.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the estimate; ask and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have a vision-language model score every edit: instruction, quality, preservation and, for videos, motion.

    Shows first what that costs. A run that was killed goes on where it was: its answers are in a journal beside
    M.parquet, and nothing that was answered is asked again.
    """
    from sama_data.score.settings import DEFAULT_MODEL, EndpointSettings, JudgeSettings
    from sama_mega.commands import data_score as command

    judge = JudgeSettings(
        model=DEFAULT_MODEL if model is None else model,
        turns=turns,
        num_frames=frames,
        max_frames=max_frames,
        video_side=video_side,
        image_side=image_side,
        temperature=temperature,
        max_output_tokens=max_output_tokens,
    )
    server = EndpointSettings(
        url=endpoint,
        api_key=command.api_key(api_key_variable),
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        response_format=response_format,
    )
    options = command.Options(
        rescore=rescore,
        retry_unscored=retry_unscored,
        input_price=input_price,
        output_price=output_price,
        yes=yes,
        dry_run=dry_run,
    )
    raise typer.Exit(command.run(manifest, out, judge, server, options, as_json))


@data_app.command("stats")
def data_stats(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    ranks: Annotated[
        list[int] | None, typer.Option(min=1, help="Data-parallel ranks to deal to; repeat (default: 16 and 56).")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to simulate.")] = 1000,
    paper_mixture: Annotated[
        bool, typer.Option("--paper-mixture", help="Stand-ins for the paper's datasets instead of the manifests.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a recipe's steps are made of and how evenly ranks share them; decodes nothing."""
    from sama_mega.commands import data_stats as command

    raise typer.Exit(
        command.run(
            recipe, overrides or [], ranks=ranks or [16, 56], steps=steps, paper_mixture=paper_mixture, as_json=as_json
        )
    )


@data_app.command("preview")
def data_preview(
    subject: Annotated[str, typer.Argument(metavar="MANIFEST|RECIPE", help="A manifest, or a recipe's YAML.")],
    out: Annotated[Path, typer.Option(metavar="SHEET", help="The sheet to write, .png or .html.")],
    overrides: OverridesArgument = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to show: half images, half videos.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order and perturbations.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a sheet of what training will see: sources as perturbed, targets, prompts, buckets."""
    from sama_mega.commands import data_preview as command

    raise typer.Exit(command.run(subject, overrides or [], out, num_samples=samples, seed=seed, as_json=as_json))


@data_app.command("cache")
def data_cache(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The cache, made or gone on with.")],
    overrides: OverridesArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Encode a recipe's samples once: latents, semantic features and prompts, for training with data.cache=DIR.

    One process alone, or many (torchrun, srun), each on its own share; goes on where an earlier life ended.
    """
    from sama_mega.commands import data_cache as command

    raise typer.Exit(command.run(recipe, overrides or [], out=out, as_json=as_json))


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
