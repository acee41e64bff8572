"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

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
