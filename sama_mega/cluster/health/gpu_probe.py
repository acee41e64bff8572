"""The GPUs of a node, as Slurm granted them and as the driver shows them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence

from sama_mega.cluster.health.facts import Gpu, GpuFacts
from sama_mega.cluster.health.time_limit import within

GRANTED_VARIABLE = "SLURM_GPUS_ON_NODE"
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_QUERY = "index,uuid,name,driver_version,memory.total,memory.free,ecc.errors.uncorrected.volatile.total"
_ANSWER_SECONDS = 20.0
# Killing a process that hangs in the driver may hang as well.
_KILL_SECONDS = 2.0
# What a GPU without that feature, or a user without that right, is told: nothing is wrong.
_UNKNOWN_VALUES = ("n/a", "not supported", "insufficient permissions", "unknown")
_KERNEL_LOG = "/dev/kmsg"
_KERNEL_RECORD_BYTES = 8192
_XID = re.compile(r"NVRM: (Xid \(([^)]*)\): (\d+),?.*)")
# NVIDIA's list of Xid errors: memory, row remapping, NVLink, lost from the bus, firmware. Programs cause the others.
_HARDWARE_XIDS = {48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120, 140}
_MOST_LOG_LINES = 4


def may_use_gpus_alone(environ: Mapping[str, str]) -> bool:
    """Whether this rank has fewer GPUs than its node was granted, so that no other rank can speak for them."""
    visible, granted = environ.get(VISIBLE_VARIABLE), read_granted(environ)
    return bool(visible and granted and len(visible.split(",")) < granted)


def read_granted(environ: Mapping[str, str]) -> int | None:
    """GPUs of the job on this node as Slurm says, or None."""
    text = environ.get(GRANTED_VARIABLE, "")
    return int(text) if text.isdigit() else None


def probe_gpus(environ: Mapping[str, str], seconds: float = _ANSWER_SECONDS) -> GpuFacts:
    """Asks Slurm's variables, `nvidia-smi` and, where it may, the kernel's log.

    Args:
        environ: Its PATH finds nvidia-smi.
        seconds: How long the driver may take.
    """
    granted = read_granted(environ)
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return GpuFacts(granted=granted, gpus=(), error="nvidia-smi is not installed")
    try:
        gpus = within(seconds + _KILL_SECONDS, lambda: _ask_driver(program, seconds))
    except (TimeoutError, subprocess.TimeoutExpired):
        return GpuFacts(granted=granted, gpus=(), error=f"nvidia-smi did not answer within {seconds:g} s")
    except (OSError, ValueError) as error:
        return GpuFacts(granted=granted, gpus=(), error=str(error))
    visible = environ.get(VISIBLE_VARIABLE)
    gpus = select_visible(gpus, visible)
    log = hardware_errors(read_kernel_log()) if gpus else ()
    return GpuFacts(granted=granted, gpus=gpus, has_slices=has_slices(visible), log=log)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Reads nvidia-smi's answer, a line of comma-separated values a GPU.

    Raises:
        ValueError: It is something else; the message is for users.
    """
    gpus = []
    for line in text.splitlines():
        if not line.strip():
            continue
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(_QUERY.split(",")) or not values[0].isdigit():
            raise ValueError(f"nvidia-smi wrote {line.strip()[:80]!r} in place of a GPU")
        index, uuid, name, driver, total, free, errors = values
        faults = [fault for value in values[1:] if (fault := _fault(value))]
        gpus.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                driver=driver,
                memory_total_mib=_number(total),
                memory_free_mib=_number(free),
                uncorrected_errors=None if (count := _number(errors)) is None else int(count),
                fault=faults[0] if faults else None,
            )
        )
    return tuple(gpus)


def select_visible(gpus: Sequence[Gpu], variable: str | None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES lets a process use; all where it is unset or names parts of GPUs."""
    if variable is None or has_slices(variable):
        return tuple(gpus)
    entries = [entry.strip() for entry in variable.split(",") if entry.strip()]
    return tuple(gpu for gpu in gpus if any(_names(entry, gpu) for entry in entries))


def has_slices(variable: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names parts of GPUs."""
    return variable is not None and "MIG-" in variable


def hardware_errors(lines: Iterable[str]) -> tuple[str, ...]:
    """The newest few Xid errors that tell of broken hardware; one of each kind and GPU."""
    newest: dict[tuple[str, str], str] = {}
    for line in lines:
        match = _XID.search(line)
        if match and int(match.group(3)) in _HARDWARE_XIDS:
            key = (match.group(2), match.group(3))
            newest.pop(key, None)
            newest[key] = match.group(1).strip()
    return tuple(newest.values())[-_MOST_LOG_LINES:]


def read_kernel_log(path: str = _KERNEL_LOG, read: Callable[[int, int], bytes] = os.read) -> list[str]:
    """Messages of the kernel since it started; none where this user may not read them."""
    lines: list[str] = []
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return lines
    try:
        while True:
            try:
                record = read(file, _KERNEL_RECORD_BYTES)
            except BrokenPipeError:
                continue  # this record was overwritten meanwhile; the next read gives the one after
            if not record:
                return lines
            lines.append(record.decode(errors="replace").partition(";")[2].partition("\n")[0])
    except OSError:
        return lines
    finally:
        os.close(file)


def _ask_driver(program: str, seconds: float) -> tuple[Gpu, ...]:
    answer = subprocess.run(
        [program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).split("\n")
        first = next((line.strip() for line in said if line.strip()), "it said nothing")
        raise ValueError(f"nvidia-smi failed with status {answer.returncode}: {first[:200]}")
    return parse_gpus(answer.stdout)


def _names(entry: str, gpu: Gpu) -> bool:
    return entry == str(gpu.index) if entry.isdigit() else gpu.uuid.startswith(entry)


def _bare(value: str) -> str:
    return value.strip("[] ")


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _fault(value: str) -> str | None:
    """`[Unknown Error]` and `[GPU requires reset]` are faults, `[N/A]` is none."""
    if not value.startswith("["):
        return None
    return None if _bare(value).lower() in _UNKNOWN_VALUES else _bare(value)
