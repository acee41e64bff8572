"""`make gpu-check` where there is no GPU, and its summary."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.gpu import check

FINE = check.Step("fine", ("-c", "import sama_mega, sama_kernels, sama_data"), {"numpy": "numpy"}, 60.0)
BROKEN = check.Step("broken", ("-c", "raise SystemExit(3)"), {}, 60.0)
SLOW = check.Step("slow", ("-c", "import time; time.sleep(60)"), {}, 0.2)
LACKING = check.Step("lacking", ("-c", ""), {"nowhere.to.be.found": "a-package", "numpy": "numpy"}, 60.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == check.NOT_RUN
    assert capsys.readouterr().err.startswith("gpu-check: no GPU: torch ")


def test_an_interpreter_without_torch_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "_is_there", lambda name: name != "torch")
    assert check.main([]) == check.NOT_RUN
    (line,) = capsys.readouterr().err.splitlines()
    assert sys.executable in line and "GPU_PYTHON=" in line


@pytest.mark.parametrize(
    ("steps", "status", "words"),
    [
        ((FINE,), check.PASSED, ["fine         passed", "exit status 0"]),
        ((FINE, BROKEN, LACKING), check.FAILED, ["fine         passed", "broken       FAILED", "exit status 3"]),
        ((FINE, LACKING), check.NOT_RUN, ["lacking      NOT RUN  not installed: a-package"]),
        ((SLOW,), check.FAILED, ["took more than 0 s"]),
    ],
)
def test_every_step_is_told(
    steps: tuple[check.Step, ...],
    status: int,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(check, "_why_no_gpu", lambda: None)
    assert check.main(["--out", str(tmp_path / "out")]) == status
    shown = capsys.readouterr().out
    for word in words:
        assert word in shown


def test_each_steps_command_is_one_that_there_is() -> None:
    root = Path(__file__).parents[2]
    for step in check.STEPS:
        module = step.command[1]
        assert (root / f"{module.replace('.', '/')}.py").exists() or module in ("pytest", "sama_mega")
