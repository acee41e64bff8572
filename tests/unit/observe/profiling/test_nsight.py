"""Command lines for NVIDIA's profilers."""

from __future__ import annotations

from pathlib import Path

import pytest

from sama_mega.config.errors import ConfigError
from sama_mega.observe.profiling.nsight import find_ncu, ncu_command, nsys_command

PROGRAM = ["python", "-m", "sama_mega", "profile", "recipe.yaml", "--nvtx"]


def test_nsys_records_the_traced_steps_alone() -> None:
    command = nsys_command(PROGRAM, Path("/out"))
    assert command[:2] == ["nsys", "profile"] and command[-len(PROGRAM) :] == PROGRAM
    assert {"--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--output=/out/nsys"} <= set(command)
    assert "--trace=cuda,nvtx,osrt" in command


def test_ncu_counts_one_kernel_in_the_traced_steps() -> None:
    command = ncu_command(PROGRAM, "norm_(forward|backward)", Path("/out"), "/usr/bin/ncu")
    assert command[0] == "/usr/bin/ncu" and command[-len(PROGRAM) :] == PROGRAM
    options = {"--kernel-name=regex:norm_(forward|backward)", "--profile-from-start=off", "--launch-count=3"}
    assert options <= set(command) and "--export=/out/ncu" in command


def test_ncu_takes_regular_expressions_only() -> None:
    with pytest.raises(ConfigError, match=r"--ncu flash\( is not a regular expression"):
        ncu_command(PROGRAM, "flash(", Path("/out"))


def test_a_missing_ncu_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="install the package nsight-compute"):
        find_ncu()
    (tmp_path / "ncu").write_text("#!/bin/sh\n")
    (tmp_path / "ncu").chmod(0o755)
    assert find_ncu() == str(tmp_path / "ncu")
