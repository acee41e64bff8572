"""What `sama-mega profile` writes and shows of a traced run."""

from __future__ import annotations

import gc
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sama_mega.bench.results import describe_machine, wide_console
from sama_mega.bench.roof import Roof, measure_roof
from sama_mega.commands.tables import plain_table
from sama_mega.config.errors import ConfigError
from sama_mega.config.schema import Recipe
from sama_mega.observe.flops import FORMULA, model_flops
from sama_mega.observe.gpu_kinds import kind_of_device, load_gpu_kinds
from sama_mega.observe.profiling.kernel_table import Rates, StepTable, make_table
from sama_mega.observe.profiling.picture import draw_step
from sama_mega.observe.profiling.step_work import step_work
from sama_mega.observe.profiling.trace_rows import read_trace, rows_of_trace
from sama_mega.train.hooks.profile import Profiled

_NAME_WIDTH = 72
_GROUP_COLUMNS = (
    "operation",
    "calls|n",
    "ms|n",
    "of the step|n",
    "TFLOP/s|n",
    "of the peak|n",
    "GB/s|n",
    "of the roof|n",
)
_KERNEL_COLUMNS = ("kernel", "operation", "calls|n", "ms|n", "of the step|n")


def write_report(recipe: Recipe, told: Profiled, steps: int, out: Path, nsys: Sequence[str]) -> dict[str, Any]:
    """Measures what the device can do, makes the table of the trace, writes and shows it.

    Args:
        recipe: Of the run.
        told: By the profiled run.
        steps: That were traced.
        out: Where `profile.json`, `profile.md` and `step.svg` go.
        nsys: The command line that looks at the same steps with Nsight Systems.

    Returns:
        What `profile.json` holds.

    Raises:
        ConfigError: A file cannot be written.
    """
    assert told.trace is not None
    console = Console(stderr=True, highlight=False)
    console.print("measuring what the device can do", style="dim")
    dtype = torch.bfloat16 if recipe.train.precision == "bfloat16" else torch.float32
    gc.collect()  # the model's modules hold each other
    if told.device.type == "cuda":
        torch.cuda.empty_cache()
    roof = measure_roof(told.device, dtype)
    peak = _peak_flops(told.device, recipe.train.precision)
    console.print(f"reading {told.trace}", style="dim")
    traced = rows_of_trace(read_trace(told.trace))
    rates = Rates(roof.matmul_flops_per_second, roof.copy_bytes_per_second, peak)
    table = make_table(traced, step_work(recipe, told.batches, steps, told.share), rates)
    report = _report(recipe, told, steps, table, roof, peak, traced.on_device, nsys)
    title = _title(report)
    _write(out / "profile.json", json.dumps(report, indent=1) + "\n")
    _write(out / "profile.md", _markdown(title, report, table))
    _write(out / "step.svg", draw_step(title, table))
    _show(title, report, table, out)
    return report


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}: free or change the disk") from error


def _peak_flops(device: torch.device, precision: str) -> float | None:
    if device.type != "cuda":
        return None
    kind = kind_of_device(torch.cuda.get_device_name(device), load_gpu_kinds())
    return None if kind is None else kind.peak_flops(precision)


def _report(
    recipe: Recipe,
    told: Profiled,
    steps: int,
    table: StepTable,
    roof: Roof,
    peak: float | None,
    on_device: bool,
    nsys: Sequence[str],
) -> dict[str, Any]:
    seconds, split = table.step_milliseconds / 1000, told.share.split
    depth = told.share.layers / recipe.model.num_layers
    flops = sum(batch.samples * model_flops(recipe, batch.num_tokens).total for batch in told.batches)
    # The formula is of whole training: with low-rank weights most products for the weights' gradients are not there.
    achieved = None if recipe.lora.rank else flops * depth / split / steps / seconds
    return {
        "machine": describe_machine(told.device),
        "layout": told.layout,
        "precision": recipe.train.precision,
        "recompute": recipe.train.recompute,
        "steps": steps,
        "times_of": "device kernels" if on_device else "operations on the CPU, without what they call",
        "step_milliseconds": table.step_milliseconds,
        "tokens_per_second": sum(batch.samples * batch.num_tokens for batch in told.batches) / steps / seconds,
        "model_tflops": None if achieved is None else achieved / 1e12,
        "share_of_roof": None if achieved is None else achieved / roof.matmul_flops_per_second,
        "share_of_peak": None if achieved is None or peak is None else achieved / peak,
        "flops": FORMULA,
        "roof": asdict(roof),
        "peak_flops": peak,
        "peak_memory_bytes": told.peak_bytes,
        "trace": str(told.trace),
        "memory_snapshot": None if told.snapshot is None else str(told.snapshot),
        "nsys": shlex.join(nsys),
        "groups": [asdict(group) for group in table.groups],
        "kernels": [asdict(kernel) for kernel in table.kernels],
    }


def _title(report: dict[str, Any]) -> str:
    return f"One step: {report['step_milliseconds']:.1f} ms, {report['machine']['device']}, {report['precision']}"


def _facts(report: dict[str, Any]) -> list[str]:
    roof = report["roof"]
    facts = [
        f"rank 0 of {report['layout']}; recompute {report['recompute']}; mean of {report['steps']} steps;"
        f" times of {report['times_of']}",
        f"{report['tokens_per_second']:,.0f} tokens/s{_arithmetic(report)}",
        f"roof, measured beside it: {roof['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s in one product,"
        f" {roof['copy_bytes_per_second'] / 1e9:,.1f} GB/s in one copy",
    ]
    if report["peak_memory_bytes"] is not None:
        facts.append(f"peak memory of tensors {report['peak_memory_bytes'] / 2**30:.1f} GiB")
    return facts


def _arithmetic(report: dict[str, Any]) -> str:
    """What the model reached; nothing where no formula says what it computes."""
    if report["model_tflops"] is None:
        return ""
    peak = report["share_of_peak"]
    of_peak = "" if peak is None else f", {_percent(peak)} of the data sheet's {report['peak_flops'] / 1e12:.0f}"
    return (
        f"; the model's arithmetic {report['model_tflops']:.3g} TFLOP/s,"
        f" {_percent(report['share_of_roof'])} of the roof{of_peak}"
    )


def _group_rows(table: StepTable) -> Iterable[list[str]]:
    for group in table.groups:
        yield [
            group.group,
            f"{group.calls:.0f}",
            f"{group.milliseconds:.2f}",
            _percent(group.share),
            "" if group.tflops is None else f"{group.tflops:.3g}",
            "" if group.peak_share is None else _percent(group.peak_share),
            "" if group.gbytes is None else f"{group.gbytes:,.1f}",
            "" if group.roof_share is None else _percent(group.roof_share),
        ]


def _kernel_rows(table: StepTable) -> Iterable[list[str]]:
    for kernel in table.kernels:
        name = kernel.name if len(kernel.name) <= _NAME_WIDTH else kernel.name[: _NAME_WIDTH - 3] + "..."
        yield [name, kernel.group, f"{kernel.calls:.0f}", f"{kernel.milliseconds:.2f}", _percent(kernel.share)]


def _show(title: str, report: dict[str, Any], table: StepTable, out: Path) -> None:
    console = wide_console()
    for heading, columns, rows in (
        (title, _GROUP_COLUMNS, _group_rows(table)),
        ("The longest", _KERNEL_COLUMNS, _kernel_rows(table)),
    ):
        shown = plain_table(heading, *columns)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    for fact in _facts(report):
        console.print(fact, highlight=False)
    console.print(f"table: {out}/profile.md   picture: {out}/step.svg", highlight=False)
    console.print(f"trace: {report['trace']}: open it at https://ui.perfetto.dev", highlight=False)


def _markdown(title: str, report: dict[str, Any], table: StepTable) -> str:
    facts = "\n".join(f"- {fact}" for fact in _facts(report))
    return (
        f"# {title}\n\n{facts}\n\n![the step](step.svg)\n\n"
        f"{_pipe_table(_GROUP_COLUMNS, _group_rows(table))}\n"
        f"## The longest\n\n{_pipe_table(_KERNEL_COLUMNS, _kernel_rows(table))}\n"
        "Open the trace at https://ui.perfetto.dev. The same steps for Nsight Systems:\n\n"
        f"```\n{report['nsys']}\n```\n"
    )


def _pipe_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = [column.partition("|") for column in columns]
    lines = [
        "| " + " | ".join(name for name, _, _ in names) + " |",
        "|" + "|".join("---:" if unit else "---" for _, _, unit in names) + "|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
