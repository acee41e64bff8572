"""Declares `sama-mega evaluate`: the suite of known truth, and the suites that a judge scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sama_mega.commands.options import CheckpointArgument, GuidanceOption, JsonOption, StepsOption, WeightsOption

SYNTHETIC = "synthetic"


def evaluate(
    checkpoint: CheckpointArgument,
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="synthetic: held-out clips whose truth is known; vie-bench, openve-bench, reco-bench or a YAML file "
            "like theirs: real clips and a judge.",
        ),
    ] = SYNTHETIC,
    weights: WeightsOption = "ema",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Clips at most, per kind of edit.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where scores go, with pictures, or with edits, answers and a page."),
    ] = None,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Judged: the clips, a JSONL, JSON or CSV list or a folder with one."),
    ] = None,
    edits: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Judged: edits that are made already; no model is loaded.")
    ] = None,
    max_frames: Annotated[
        int, typer.Option(min=1, help="Judged: of a longer clip so many frames are edited and judged.")
    ] = 81,
    judge_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Judged: an OpenAI-compatible server, as http://host:8000/v1.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The judge's name there (default: Qwen/Qwen2.5-VL-72B-Instruct).")
    ] = None,
    judge_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variable with the API key (default: SAMA_MEGA_SCORE_API_KEY, if set)."),
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="Times that an edit is judged; its scores are the means.")] = 3,
    frames: Annotated[int, typer.Option(min=1, help="Frames shown of source and edit, evenly spaced.")] = 8,
    video_side: Annotated[int, typer.Option(min=28, help="Longer side of a frame shown, in pixels.")] = 640,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="Of the judge's sampling.")] = 0.7,
    max_output_tokens: Annotated[int, typer.Option(min=32, help="Longest answer.")] = 600,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at a time.")] = 16,
    timeout_seconds: Annotated[float, typer.Option(help="For one request.")] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, help="Times that a turn is asked before it is given up.")] = 6,
    response_format: Annotated[
        Literal["auto", "json_schema", "json_object", "text"],
        typer.Option(help="How JSON is asked for; auto: the strictest that the server takes."),
    ] = "auto",
    input_price: Annotated[
        float | None, typer.Option(min=0.0, help="Price of a million tokens read, for the estimate.")
    ] = None,
    output_price: Annotated[float | None, typer.Option(min=0.0, help="Price of a million tokens written.")] = None,
    retry_unscored: Annotated[
        bool, typer.Option("--retry-unscored", help="Ask again about edits that got wrong answers before.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Go on after the estimate without a question.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the estimate; make, ask and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint on a suite: edits whose truth is known, or real clips that a vision-language model judges.

    A judged suite makes the edits that --out lacks, shows first what asking costs, and goes on where it was killed.
    """
    if suite == SYNTHETIC:
        from sama_mega.commands import evaluate as synthetic

        _refuse_judging(clips=clips, edits=edits, judge_url=judge_url, judge_model=judge_model)
        raise typer.Exit(
            synthetic.run(
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
    from sama_data.score.settings import DEFAULT_MODEL, EndpointSettings, JudgeSettings
    from sama_mega.commands import evaluate_judged as command
    from sama_mega.commands.judging import Prices, api_key
    from sama_mega.config.errors import ConfigError
    from sama_mega.judged.suite import load_suite

    load_suite(suite)  # a misspelt suite is told before what it would need
    if clips is None or out is None:
        missing = "--clips" if clips is None else "--out"
        raise ConfigError(
            f"{missing} is missing: {suite} needs a list of clips (--clips LIST) and a folder (--out DIR)"
        )
    judge = JudgeSettings(
        model=DEFAULT_MODEL if judge_model is None else judge_model,
        turns=turns,
        num_frames=frames,
        max_frames=max_frames,
        video_side=video_side,
        temperature=temperature,
        max_output_tokens=max_output_tokens,
    )
    key = api_key(judge_key_env, "--judge-key-env")
    endpoint = None
    if judge_url is not None:
        endpoint = EndpointSettings(
            url=judge_url,
            api_key=key,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            response_format=response_format,
        )
    options = command.Options(
        out=out,
        clips=clips,
        edits=edits,
        limit=limit,
        weights=weights,
        steps=steps,
        guidance=guidance,
        max_frames=max_frames,
        retry_unscored=retry_unscored,
        prices=Prices(input_price, output_price),
        yes=yes,
        dry_run=dry_run,
    )
    raise typer.Exit(command.run(checkpoint, suite, judge, endpoint, options, as_json))


def _refuse_judging(**given: object) -> None:
    from sama_mega.config.errors import ConfigError

    for name, value in given.items():
        if value is not None:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} ({value}) is for judged suites, and synthetic judges by known truth: drop it")
