"""What nvidia-smi may answer: GPUs, faults, nonsense, nothing at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sama_mega.cluster.health.gpu_probe import (
    hardware_errors,
    may_use_gpus_alone,
    parse_gpus,
    probe_gpus,
    read_granted,
    read_kernel_log,
    select_visible,
)
from tests.support.health_reports import gpu

HEALTHY = """0, GPU-aa, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 81008, 0
1, GPU-bb, NVIDIA H100 80GB HBM3, 570.86.15, 81559, 81008, 0
"""


def smi(folder: Path, script: str) -> dict[str, str]:
    """An environment whose nvidia-smi is a shell script."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_healthy_gpus(tmp_path: Path) -> None:
    (tmp_path / "answer").write_text(HEALTHY)
    facts = probe_gpus(
        {**smi(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/answer'), "SLURM_GPUS_ON_NODE": "2"}
    )
    assert facts.granted == 2 and facts.error is None and not facts.has_slices
    assert [(each.index, each.uuid, each.driver) for each in facts.gpus] == [
        (0, "GPU-aa", "570.86.15"),
        (1, "GPU-bb", "570.86.15"),
    ]
    first = facts.gpus[0]
    assert (first.memory_total_mib, first.memory_free_mib, first.uncorrected_errors) == (81559, 81008, 0)
    assert (tmp_path / "asked").read_text().startswith("--query-gpu=index,uuid,name,driver_version,memory.total")


def test_no_driver(tmp_path: Path) -> None:
    assert probe_gpus({"PATH": str(tmp_path)}).error == "nvidia-smi is not installed"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (
            "echo 'NVIDIA-SMI has failed because'; exit 9",
            "nvidia-smi failed with status 9: NVIDIA-SMI has failed because",
        ),
        ("exit 3", "nvidia-smi failed with status 3: it said nothing"),
        ("echo; echo No devices were found >&2; exit 6", "nvidia-smi failed with status 6: No devices were found"),
        ("echo hello", "nvidia-smi wrote 'hello' in place of a GPU"),
        (
            "printf '\\377\\376\\n'",
            "nvidia-smi wrote '\ufffd\ufffd' in place of a GPU",
        ),
    ],
)
def test_no_answer_to_rely_on(tmp_path: Path, script: str, error: str) -> None:
    facts = probe_gpus(smi(tmp_path, script))
    assert (facts.error, facts.gpus) == (error, ())


def test_a_program_that_cannot_run(tmp_path: Path) -> None:
    environ = smi(tmp_path, "")
    (tmp_path / "nvidia-smi").write_text("#!/no/such/shell\n")
    assert "No such file" in str(probe_gpus(environ).error)


def test_a_driver_that_hangs(tmp_path: Path) -> None:
    start = time.monotonic()
    facts = probe_gpus(smi(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 60"), seconds=1.0)
    assert facts.error == "nvidia-smi did not answer within 1 s"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    assert time.monotonic() - start < 5


def test_errors_and_faults_of_single_gpus() -> None:
    lines = [
        "0, GPU-aa, A100, 550.1, 81920, 80000, 3",
        "1, GPU-bb, A100, 550.1, 81920, 80000, [N/A]",
        "2, GPU-cc, A100, 550.1, [Unknown Error], [Unknown Error], [GPU requires reset]",
        "3, GPU-dd, A100, 550.1, 81920, 80000, [Not Supported]",
    ]
    found = parse_gpus("\n".join(lines))
    assert [each.uncorrected_errors for each in found] == [3, None, None, None]
    assert [each.fault for each in found] == [None, None, "Unknown Error", None]
    assert found[2].memory_total_mib is None
    assert parse_gpus("0, GPU-aa, A100, 550.1, 81920, 80000, [GPU requires reset]")[0].fault == "GPU requires reset"


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("NoDevFiles", []),
        ("2,0", [0, 2]),
        ("7", []),
        ("GPU-0001", [1]),
        ("MIG-0123", [0, 1, 2]),
    ],
)
def test_gpus_that_are_another_jobs_are_left_out(variable: str | None, indices: list[int]) -> None:
    assert [each.index for each in select_visible([gpu(0), gpu(1), gpu(2)], variable)] == indices


def test_who_speaks_for_the_gpus() -> None:
    assert read_granted({"SLURM_GPUS_ON_NODE": "8"}) == 8
    assert read_granted({}) is None and read_granted({"SLURM_GPUS_ON_NODE": "(null)"}) is None
    assert may_use_gpus_alone({"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0"})
    assert not may_use_gpus_alone({"SLURM_GPUS_ON_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1"})
    assert not may_use_gpus_alone({"CUDA_VISIBLE_DEVICES": "0"})


def test_hardware_errors_in_the_kernels_log() -> None:
    log = [
        "eth0: link up",
        "NVRM: Xid (PCI:0000:3b:00): 31, pid=77, name=python, Ch 00000008",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=2, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:86:00): 48, An uncorrectable double bit error",
    ]
    assert hardware_errors(log) == (
        "Xid (PCI:0000:3b:00): 79, pid=2, GPU has fallen off the bus.",
        "Xid (PCI:0000:86:00): 48, An uncorrectable double bit error",
    )
    assert hardware_errors([log[2], log[4], log[3]])[-1].endswith("pid=2, GPU has fallen off the bus.")
    assert len(hardware_errors(f"NVRM: Xid (PCI:{bus}): 79, gone" for bus in range(9))) == 4


def test_reading_the_kernels_log(tmp_path: Path) -> None:
    records = [b"6,1,0,-;first\n DETAIL=x\n", BrokenPipeError(), b"6,3,0,-;third: \xff\n", BlockingIOError()]

    def read(file: int, size: int) -> bytes:
        record = records.pop(0)
        if isinstance(record, OSError):
            raise record
        return record

    (tmp_path / "log").touch()
    assert read_kernel_log(str(tmp_path / "log"), read) == ["first", "third: \ufffd"]
    assert read_kernel_log(str(tmp_path / "none")) == []
