"""Declares the commands of `sama-mega data`, as `sama_mega.__main__` does those beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sama_data.score.settings import DEFAULT_MODEL
from sama_mega.commands.judge_options import (
    ApiKeyVariableOption,
    AttemptsOption,
    ConcurrencyOption,
    DryRunOption,
    FramesOption,
    InputPriceOption,
    JudgeModelOption,
    MaxOutputTokensOption,
    OutputPriceOption,
    ResponseFormatOption,
    RetryUnscoredOption,
    TemperatureOption,
    TimeoutOption,
    TurnsOption,
    VideoSideOption,
    YesOption,
)
from sama_mega.commands.options import (
    JsonOption,
    ManifestArgument,
    ManifestOutOption,
    OverridesArgument,
    RecipeArgument,
)

app = typer.Typer(help="Make and inspect datasets.", no_args_is_help=True, rich_markup_mode=None)


@app.command("synth")
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


@app.command("ingest")
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


@app.command("probe")
def data_probe(
    manifest: ManifestArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="P.parquet", help="The manifest to write (default: only print).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode (default: one for each core).")
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="The longest that one row may take.")
    ] = 120.0,
    as_json: JsonOption = False,
) -> None:
    """Decode every clip once: codec, true length, size, rate; reject rows that cannot be trained on, and say why.

    A run that was killed goes on where it was: what it found is in a journal beside P.parquet. Clips that were written
    anew since are decoded again.
    """
    from sama_mega.commands import data_probe as command

    raise typer.Exit(command.run(manifest, out, workers, timeout_seconds, as_json))


@app.command("filter")
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


@app.command("score")
def data_score(
    manifest: ManifestArgument,
    out: ManifestOutOption,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="An OpenAI-compatible server, such as http://host:8000/v1.")
    ],
    judge_model: JudgeModelOption = DEFAULT_MODEL,
    turns: TurnsOption = 3,
    frames: FramesOption = 8,
    max_frames: Annotated[
        int, typer.Option(min=1, help="They are taken from so many frames at the clip's start.")
    ] = 81,
    video_side: VideoSideOption = 640,
    image_side: Annotated[int, typer.Option(min=28, help="Longer side of an image shown, in pixels.")] = 1024,
    temperature: TemperatureOption = 0.7,
    max_output_tokens: MaxOutputTokensOption = 400,
    concurrency: ConcurrencyOption = 16,
    timeout_seconds: TimeoutOption = 120.0,
    attempts: AttemptsOption = 6,
    response_format: ResponseFormatOption = "auto",
    api_key_variable: ApiKeyVariableOption = None,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    rescore: Annotated[bool, typer.Option("--rescore", help="Judge rows too that have their scores.")] = False,
    retry_unscored: RetryUnscoredOption = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Have a vision-language model score every edit: instruction, quality, preservation and, for videos, motion.

    Shows first what that costs. A run that was killed goes on where it was: its answers are in a journal beside
    M.parquet, and nothing that was answered is asked again.
    """
    from sama_data.score.settings import EndpointSettings, JudgeSettings
    from sama_mega.commands import data_score as command
    from sama_mega.commands.judging import Prices, api_key

    judge = JudgeSettings(
        model=judge_model,
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
        api_key=api_key(api_key_variable),
        concurrency=concurrency,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        response_format=response_format,
    )
    options = command.Options(
        rescore=rescore,
        retry_unscored=retry_unscored,
        prices=Prices(input_price, output_price),
        yes=yes,
        dry_run=dry_run,
    )
    raise typer.Exit(command.run(manifest, out, judge, server, options, as_json))


@app.command("stats")
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


@app.command("preview")
def data_preview(
    subject: Annotated[str, typer.Argument(metavar="MANIFEST|RECIPE", help="A manifest, or a recipe's YAML.")],
    out: Annotated[Path, typer.Option(metavar="SHEET", help="The sheet to write, .png or .html.")],
    overrides: OverridesArgument = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples to show: half images, half videos.")] = 12,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of order and perturbations (default: the recipe's; for a manifest 0)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a sheet of what training will see: sources as perturbed, targets, prompts, buckets."""
    from sama_mega.commands import data_preview as command

    raise typer.Exit(command.run(subject, overrides or [], out, num_samples=samples, seed=seed, as_json=as_json))


@app.command("cache")
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
