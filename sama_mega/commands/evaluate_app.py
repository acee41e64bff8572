"""Declares `sama-mega evaluate`: the suite of known truth, and the suites that a judge scores."""

from __future__ import annotations

from collections.abc import Set
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
from sama_mega.commands.options import CheckpointArgument, GuidanceOption, JsonOption, StepsOption, WeightsOption

SYNTHETIC = "synthetic"
OF_EVERY_SUITE = {"checkpoint", "suite", "weights", "steps", "guidance", "limit", "out", "as_json"}
"""Parameters that also say something where no judge is asked."""
OF_MAKING_EDITS = {"weights", "steps", "guidance"}
"""Parameters that say nothing where the edits are there already."""


def evaluate(
    context: typer.Context,
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
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Judged: an OpenAI-compatible server, as http://host:8000/v1.")
    ] = None,
    judge_model: JudgeModelOption = DEFAULT_MODEL,
    turns: TurnsOption = 3,
    frames: FramesOption = 8,
    video_side: VideoSideOption = 640,
    temperature: TemperatureOption = 0.7,
    max_output_tokens: MaxOutputTokensOption = 600,
    concurrency: ConcurrencyOption = 16,
    timeout_seconds: TimeoutOption = 120.0,
    attempts: AttemptsOption = 6,
    response_format: ResponseFormatOption = "auto",
    api_key_variable: ApiKeyVariableOption = None,
    input_price: InputPriceOption = None,
    output_price: OutputPriceOption = None,
    retry_unscored: RetryUnscoredOption = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a checkpoint on a suite: edits whose truth is known, or real clips that a vision-language model judges.

    A judged suite makes the edits that --out lacks, shows first what asking costs, and goes on where it was killed.
    """
    if suite == SYNTHETIC:
        from sama_mega.commands import evaluate as synthetic

        judging = {parameter.name or "" for parameter in context.command.params} - OF_EVERY_SUITE
        _refuse_given(context, judging, f"is for judged suites, and {SYNTHETIC} judges by known truth")
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
    from sama_data.score.settings import EndpointSettings, JudgeSettings
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
    if edits is not None:
        _refuse_given(context, OF_MAKING_EDITS, "says how edits are made, and those of --edits are made already")
    judge = JudgeSettings(
        model=judge_model,
        turns=turns,
        num_frames=frames,
        max_frames=max_frames,
        video_side=video_side,
        temperature=temperature,
        max_output_tokens=max_output_tokens,
    )
    key = api_key(api_key_variable)
    server = None
    if endpoint is not None:
        server = EndpointSettings(
            url=endpoint,
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
    raise typer.Exit(command.run(checkpoint, suite, judge, server, options, as_json))


def _refuse_given(context: typer.Context, names: Set[str], why: str) -> None:
    """Raises ConfigError for the first of the options that was given, since it would say nothing."""
    from sama_mega.config.errors import ConfigError

    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in names and source is not None and source.name != "DEFAULT":
            raise ConfigError(f"{parameter.opts[0]} {why}: drop it")
