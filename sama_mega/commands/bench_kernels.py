"""`sama-mega bench kernels`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from sama_mega.bench.clock import Spread
from sama_mega.bench.kernel_cases import CASES, Shard
from sama_mega.bench.kernels import CHAIN, COMPILED, EAGER, KernelRow, bench_kernel, contenders_of
from sama_mega.bench.results import NO_GPU, describe_machine, require_writable, wide_console, write_results
from sama_mega.bench.roof import Roof, measure_roof
from sama_mega.bench.shapes import MODELS, PARITY_WORKLOAD, WORKLOADS, named
from sama_mega.parallel.rank_environment import read_rank_environment
from sama_mega.parallel.runtime import find_device

BASELINES = (EAGER, COMPILED, CHAIN)


def run(
    kernels: Sequence[str],
    model: str,
    workload: str,
    tensor: int,
    rounds: int,
    compile_reference: bool,
    as_json: bool,
    results: Path,
) -> int:
    """Times operations by every backend that runs here.

    Returns:
        0, or 1 where a backend that is available here is wrong or fails.

    Raises:
        ConfigError: A kernel, model or workload that is not in the registry.
    """
    on_gpu = torch.cuda.is_available()
    model, workload = model or ("14b" if on_gpu else "toy"), workload or ("81-frames" if on_gpu else "toy")
    size, work = named("--model", model, MODELS), named("--workload", workload, WORKLOADS)
    cases = {name: named("--kernel", name, CASES) for name in kernels or CASES}
    console = Console(stderr=True)
    if as_json:
        require_writable(results)
    if not on_gpu:
        console.print(NO_GPU)
    device = find_device(read_rank_environment({}))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    roof = measure_roof(device, dtype)
    rows: list[KernelRow] = []
    for name, case in cases.items():
        console.print(name, style="dim")
        contenders = contenders_of(case, device, dtype, compile_reference)
        small, shard = Shard(size, PARITY_WORKLOAD, tensor), Shard(size, work, tensor)
        rows += bench_kernel(name, case, contenders, small, shard, device, dtype, rounds)
    machine = describe_machine(device)
    _print(wide_console(), rows, roof, f"{machine['device']}, {model} of {tensor} ranks, {work.label} tokens, {dtype}")
    if as_json:
        settings = {"model": model, "workload": workload, "tensor": tensor, "dtype": str(dtype)}
        document = {**settings, "machine": machine, "roof": asdict(roof), "rows": [asdict(row) for row in rows]}
        path = write_results(results, "kernels", document)
        print(json.dumps({"file": str(path), "rows": document["rows"]}))
    return int(any(row.broken for row in rows if row.contender not in BASELINES))


def _print(console: Console, rows: Sequence[KernelRow], roof: Roof, title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("kernel")
    table.add_column("by")
    for heading in ("fwd, ms", "of copy", "TFLOP/s", "bwd, ms", "of copy", "TFLOP/s", "error / limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        first = row.contender == next(one.contender for one in rows if one.kernel == row.kernel)
        table.add_row(row.kernel if first else "", row.contender, *_cells(row, roof))
    console.print(table)
    copy, matmul = roof.copy_bytes_per_second / 1e12, roof.matmul_flops_per_second / 1e12
    console.print(f"measured roof: copy {copy:.3g} TB/s (read + written), matmul {matmul:.4g} TFLOP/s")
    for row in rows:
        if row.problem:
            console.print(f"{row.kernel} by {row.contender}: {row.problem}", soft_wrap=True)


def _cells(row: KernelRow, roof: Roof) -> list[str]:
    error = "" if row.error is None or row.limit is None else f"{row.error / row.limit:.2f}"
    if row.forward is None:
        return [*[""] * 6, error]
    return [
        _milliseconds(row.forward),
        _share(row.forward_bytes_per_second, roof.copy_bytes_per_second),
        _tera(row.forward_flops_per_second),
        _milliseconds(row.backward),
        _share(row.backward_bytes_per_second, roof.copy_bytes_per_second),
        _tera(row.backward_flops_per_second),
        error,
    ]


def _milliseconds(spread: Spread | None) -> str:
    return "" if spread is None else f"{1e3 * spread.median:.4g}"


def _share(rate: float | None, roof: float) -> str:
    return "" if rate is None else f"{rate / roof:.0%}"


def _tera(rate: float | None) -> str:
    return "" if rate is None else f"{rate / 1e12:.4g}"
