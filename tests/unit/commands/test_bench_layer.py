"""`sama-mega bench layer` on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sama_mega.commands import bench_layer
from sama_mega.config import ConfigError


def test_the_command_writes_rows_and_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = bench_layer.run("toy", ["toy"], "auto", 1, compile_peers=False, as_json=True, results=tmp_path)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0 and len(printed["rows"]) == 8
    document = json.loads(Path(printed["file"]).read_text())
    assert document["machine"]["device"] == "CPU" and document["roof"]["matmul_flops_per_second"] > 0
    assert document["machine"]["versions"]["torch"] == torch.__version__
    assert len(list(tmp_path.glob("*.svg"))) == 1


def test_unknown_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--workload \(81\) must be one of 81-frames"):
        bench_layer.run("toy", ["81"], "auto", 1, compile_peers=False, as_json=False, results=tmp_path)


def test_a_folder_that_takes_no_results_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--results \(.*file\) cannot be written: File exists: choose another"):
        bench_layer.run("toy", ["toy"], "auto", 1, compile_peers=False, as_json=True, results=tmp_path / "file")
