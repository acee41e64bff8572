"""`sama-mega bench layer`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sama_mega.bench.chart import Bar, draw_bars
from sama_mega.bench.contenders import Build, chain, diffusers, ours
from sama_mega.bench.layer import OUT_OF_MEMORY, LayerRow, run_layer_bench
from sama_mega.bench.results import NO_GPU, describe_machine, require_writable, wide_console, write_results
from sama_mega.bench.roof import Roof, measure_roof
from sama_mega.bench.shapes import MODELS, WORKLOADS, named, one_rank_recipe
from sama_mega.config import build_recipe
from sama_mega.observe.flops import FORMULA
from sama_mega.parallel.runtime import ParallelContext, start_parallel, stop_parallel

_GIB = 1 << 30
MODES = ("none", "selective", "selective_ffn", "full")
OWN = "sama-mega, "


def run(
    model: str,
    workloads: Sequence[str],
    attention: str,
    rounds: int,
    compile_peers: bool,
    as_json: bool,
    results: Path,
) -> int:
    """Times one block against its peers.

    Returns:
        0, or 1 where a contender of this project is wrong.

    Raises:
        ConfigError: A model or workload that is not in the registry.
    """
    on_gpu = torch.cuda.is_available()
    model = model or ("14b" if on_gpu else "toy")
    names = list(workloads) or (["81-frames", "49-frames", "images"] if on_gpu else ["toy"])
    size, work = named("--model", model, MODELS), {name: named("--workload", name, WORKLOADS) for name in names}
    console = Console(stderr=True)
    if as_json:
        require_writable(results)
    context = start_parallel(build_recipe(one_rank_recipe(), "bench layer"))
    try:
        dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
        if context.device.type != "cuda":
            console.print(NO_GPU)
        roof = measure_roof(context.device, dtype)
        rows = run_layer_bench(
            _contenders(context, attention, dtype, compile_peers),
            size,
            work,
            context.device,
            dtype,
            rounds,
            lambda what: console.print(what, style="dim"),
        )
        machine = describe_machine(context.device)
    finally:
        stop_parallel()
    _print(wide_console(), rows, roof, f"{machine['device']}, {model}, {dtype}, attention {attention}")
    if as_json:
        document = _document(rows, roof, machine, {"model": model, "attention": attention, "dtype": str(dtype)})
        path = write_results(results, "layer", document)
        _write_charts(path, rows, machine["device"])
        print(json.dumps({"file": str(path), "rows": document["rows"]}))
    own = [row for row in rows if row.contender.startswith(OWN)]
    return int(any(row.problem not in (None, OUT_OF_MEMORY) for row in own))


def _contenders(context: ParallelContext, attention: str, dtype: torch.dtype, compile_peers: bool) -> dict[str, Build]:
    precision = str(dtype).removeprefix("torch.")
    contenders = {
        "authors' chain": chain(),
        "authors' chain, full recompute": chain(recompute=True),
        "diffusers": diffusers(),
        "diffusers, full recompute": diffusers(recompute=True),
    }
    if compile_peers:
        contenders["diffusers, compiled"] = diffusers(compiled=True)
    return contenders | {f"{OWN}{mode}": ours(context, mode, attention, precision) for mode in MODES}


def _print(console: Console, rows: Sequence[LayerRow], roof: Roof, title: str) -> None:
    for workload in dict.fromkeys(row.workload for row in rows):
        table = Table(title=f"one block, {workload} tokens: {title}", title_justify="left")
        table.add_column("block")
        for heading in ("fwd + bwd, s", "spread", "fwd, s", "kept", "peak", "TFLOP/s", "roof", "error / limit"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            if row.workload == workload:
                table.add_row(row.contender, *_cells(row, roof))
        console.print(table)
    copy, matmul = roof.copy_bytes_per_second / 1e12, roof.matmul_flops_per_second / 1e12
    console.print(f"measured roof: copy {copy:.3g} TB/s (read + written), matmul {matmul:.4g} TFLOP/s")
    console.print(f"FLOPs: {FORMULA}", soft_wrap=True)


def _cells(row: LayerRow, roof: Roof) -> list[str]:
    if row.seconds is None or row.forward_seconds is None or row.flops_per_second is None or row.parity is None:
        return [row.problem or "", *[""] * 7]
    return [
        f"{row.seconds.median:.4f}",
        f"{row.seconds.minimum:.4f}-{row.seconds.maximum:.4f}",
        f"{row.forward_seconds.median:.4f}",
        _gib(row.activation_bytes),
        _gib(row.peak_bytes),
        f"{row.flops_per_second / 1e12:.4g}",
        f"{row.flops_per_second / roof.matmul_flops_per_second:.0%}",
        f"{row.parity.error / row.parity.limit:.2f}",
    ]


def _gib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / _GIB:.2f} GiB"


def _document(
    rows: Sequence[LayerRow], roof: Roof, machine: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    return {
        **settings,
        "machine": machine,
        "roof": asdict(roof),
        "flops": FORMULA,
        "rows": [asdict(row) for row in rows],
    }


def _write_charts(path: Path, rows: Sequence[LayerRow], device: str) -> None:
    for workload in dict.fromkeys(row.workload for row in rows):
        bars = [
            Bar(row.contender, row.seconds.median, _bar_text(row), row.contender.startswith(OWN))
            for row in rows
            if row.workload == workload and row.seconds is not None
        ]
        if bars:
            title = f"One block, forward + backward, {workload} tokens, {device}"
            name = workload.replace(",", "").replace(" ", "")
            path.with_name(f"{path.stem}-{name}.svg").write_text(draw_bars(title, bars))


def _bar_text(row: LayerRow) -> str:
    assert row.seconds is not None
    memory = "" if row.activation_bytes is None else f", {row.activation_bytes / _GIB:.1f} GiB"
    return f"{row.seconds.median:.3f} s{memory}"
