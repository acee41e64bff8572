"""`sama-mega bench train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sama_mega.bench.results import NO_GPU, describe_machine, require_writable, wide_console, write_results
from sama_mega.bench.shapes import MODELS, WORKLOADS, named, one_rank_recipe
from sama_mega.bench.train import BuildTrainer, TrainRow, diffusers, ours, run_train_bench
from sama_mega.commands.bench_layer import MODES, OWN
from sama_mega.config import build_recipe
from sama_mega.observe.flops import FORMULA
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

_GIB = 1 << 30
REFERENCE = f"{OWN}selective, plain torch operations"
_MOST_DIFFERENT = {torch.bfloat16: 0.01, torch.float32: 1e-5}
"""Relative, of a loss."""


def run(
    model: str,
    workload: str,
    num_layers: int,
    attention: str,
    rounds: int,
    compile_peers: bool,
    as_json: bool,
    results: Path,
) -> int:
    """Times optimizer steps of a model of few layers.

    Returns:
        0, or 1 where this project's loss does not fall, or is not the one of plain torch operations.

    Raises:
        ConfigError: A model or workload that is not in the registry.
    """
    on_gpu = torch.cuda.is_available()
    model, workload = model or ("14b" if on_gpu else "toy"), workload or ("81-frames" if on_gpu else "toy")
    size, work = named("--model", model, MODELS), named("--workload", workload, WORKLOADS)
    console = Console(stderr=True)
    if as_json:
        require_writable(results)
    if not on_gpu:
        console.print(NO_GPU)
    context = start_parallel(build_recipe(one_rank_recipe(num_layers), "bench train"))
    try:
        dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
        contenders = _contenders(context, attention, compile_peers)
        rows = run_train_bench(
            contenders,
            size,
            work,
            num_layers,
            context.device,
            dtype,
            rounds,
            lambda what: console.print(what, style="dim"),
        )
        machine = describe_machine(context.device)
    finally:
        stop_parallel()
    title = f"{num_layers} layers of {model}, {work.label} tokens: {machine['device']}, {dtype}, attention {attention}"
    _print(wide_console(), rows, title)
    if as_json:
        settings = {"model": model, "workload": workload, "layers": num_layers, "attention": attention}
        document = {**settings, "machine": machine, "flops": FORMULA, "rows": [asdict(row) for row in rows]}
        path = write_results(results, "train", document)
        print(json.dumps({"file": str(path), "rows": document["rows"]}))
    return int(_wrong(rows, dtype))


def _contenders(context: ParallelContext, attention: str, compile_peers: bool) -> dict[str, BuildTrainer]:
    peers = {"diffusers": diffusers(), "diffusers, full recompute": diffusers(recompute=True)}
    if compile_peers:
        peers["diffusers, compiled"] = diffusers(compiled=True)
    own = {f"{OWN}{mode}": ours(context, mode, attention) for mode in MODES}
    return peers | own | {REFERENCE: ours(context, "selective", "torch", ops="reference")}


def _wrong(rows: Sequence[TrainRow], dtype: torch.dtype) -> bool:
    """Whether a loss of this project does not fall, or is not what plain torch operations give."""
    own = [row for row in rows if row.contender.startswith(OWN) and row.losses]
    plain = next((row.losses for row in own if row.contender == REFERENCE), None)
    if plain is None:
        # It did not fit, and nothing is shown.
        return True
    differ = [
        row.contender
        for row in own
        for loss, expected in zip(row.losses, plain, strict=True)
        if not abs(loss - expected) <= _MOST_DIFFERENT[dtype] * expected
    ]
    return bool(differ) or any(row.seconds is None for row in own)


def _print(console: Console, rows: Sequence[TrainRow], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    for heading in ("s", "spread", "tokens/s", "TFLOP/s", "peak", "first loss", "last loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.contender, *_cells(row))
    console.print(table)
    console.print(f"FLOPs of the blocks: {FORMULA}", soft_wrap=True)


def _cells(row: TrainRow) -> list[str]:
    if row.seconds is None or row.tokens_per_second is None or row.flops_per_second is None:
        return [row.problem or "", *[""] * 6]
    return [
        f"{row.seconds.median:.4f}",
        f"{row.seconds.minimum:.4f}-{row.seconds.maximum:.4f}",
        f"{row.tokens_per_second:,.0f}",
        f"{row.flops_per_second / 1e12:.4g}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / _GIB:.2f} GiB",
        f"{row.losses[0]:.4f}",
        f"{row.losses[-1]:.4f}",
    ]
