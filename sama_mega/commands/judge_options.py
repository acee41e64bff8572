"""Options of the commands that ask a judge, `data score` and `evaluate`; they mean the same in both."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

KEY_VARIABLE = "SAMA_MEGA_SCORE_API_KEY"

TurnsOption = Annotated[int, typer.Option(min=1, help="Times that an edit is judged; its scores are the means.")]
FramesOption = Annotated[int, typer.Option(min=1, help="Frames shown of source and edit, evenly spaced.")]
VideoSideOption = Annotated[int, typer.Option(min=28, help="Longer side of a frame shown, in pixels.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, max=2.0, help="Of the judge's sampling.")]
MaxOutputTokensOption = Annotated[int, typer.Option(min=32, help="Longest answer.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Requests under way at a time.")]
TimeoutOption = Annotated[float, typer.Option(help="For one request.")]
AttemptsOption = Annotated[int, typer.Option(min=1, help="Times that a turn is asked before it is given up.")]
ResponseFormatOption = Annotated[
    Literal["auto", "json_schema", "json_object", "text"],
    typer.Option(help="How JSON is asked for; auto: the strictest that the server takes."),
]
JudgeModelOption = Annotated[
    str, typer.Option("--judge-model", metavar="NAME", help="The judge's name at the endpoint.")
]
ApiKeyVariableOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Environment variable with the API key (default: {KEY_VARIABLE}, if set)."),
]
InputPriceOption = Annotated[
    float | None, typer.Option(min=0.0, help="Price of a million tokens read, for the estimate.")
]
OutputPriceOption = Annotated[float | None, typer.Option(min=0.0, help="Price of a million tokens written.")]
RetryUnscoredOption = Annotated[
    bool, typer.Option("--retry-unscored", help="Ask again about edits that got wrong answers before.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Go on after the estimate without a question.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the estimate; make, ask and write nothing.")]
