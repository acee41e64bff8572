"""Runs everything that needs a GPU, step by step, and prints one summary: `make gpu-check`.

It needs no network and no installed clone: on a machine that has torch alone, the other packages may be unpacked into a
folder on PYTHONPATH. What is missing is named, with the step that needs it.

Exit status: 0 all steps passed; 1 one failed; 2 no GPU, or a step could not run for want of a package.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path("kernels/bench/results")
PASSED, FAILED, NOT_RUN = 0, 1, 2
# By the name that is imported, the package that is installed.
RUNTIME_OF_KERNELS = {
    "torch": "torch",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "typer": "typer",
    "rich": "rich",
    "safetensors": "safetensors",
}
RUNTIME = RUNTIME_OF_KERNELS | {
    "av": "av",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "nvidia.dali": "nvidia-dali-cuda130",
    "astunparse": "astunparse",  # the next two: DALI's graph is Python that it rewrites
    "gast": "gast",
}
IMAGES = {"nvidia.nvimgcodec": "nvidia-nvimgcodec-cu13", "nvidia.nvjpeg": "nvidia-nvjpeg"}
TRAINING = {"megatron.core": "megatron-core", "psutil": "psutil", "triton": "triton"}
TESTS = {"pytest": "pytest", "pytest_timeout": "pytest-timeout"}


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Attributes:
        name: As `--only` takes it.
        command: After the Python interpreter; OUT stands for the folder of results.
        needs: Imported names and packages.
        limit_seconds: It is ended after this.
    """

    name: str
    command: tuple[str, ...]
    needs: dict[str, str]
    limit_seconds: float


PEERS = {"diffusers": "diffusers"}


def _bench(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", "sama_mega", "bench", name, "--json", "--results", "OUT", *options)


_BENCH_DATA = _bench("data")
_PYTEST = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
STEPS = (
    Step("kernels", (*_PYTEST, "tests/unit/kernels", "tests/unit/model"), TRAINING | TESTS, 240.0),
    Step("bench-kernels", _bench("kernels", "--no-compile"), RUNTIME_OF_KERNELS | TRAINING, 240.0),
    Step("bench-layer", _bench("layer", "--rounds", "5"), RUNTIME_OF_KERNELS | TRAINING | PEERS, 300.0),
    Step("bench-train", _bench("train", "--rounds", "18"), RUNTIME_OF_KERNELS | TRAINING | PEERS, 300.0),
    Step("data", (*_PYTEST, "tests/gpu"), RUNTIME | IMAGES | TRAINING | TESTS, 300.0),
    Step("bench-data", _BENCH_DATA, RUNTIME | TRAINING, 300.0),
    Step(
        "bench-resize",
        (*_BENCH_DATA, "--size", "1280x720", "--bucket", "832x480", "--frames", "81", "--batch", "8"),
        RUNTIME | TRAINING,
        300.0,
    ),
    Step("profile", ("-m", "tests.gpu.profile_step", "--out", "OUT"), RUNTIME | TRAINING, 240.0),
    Step("data-wait", ("-m", "tests.gpu.data_wait", "--out", "OUT"), RUNTIME | TRAINING, 300.0),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the steps; see above for what it returns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--only", action="append", choices=names, help="run this step; repeat for several")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"where figures go (default: {RESULTS})")
    options = parser.parse_args(arguments)
    why_not = _why_no_gpu()
    if why_not is not None:
        print(f"gpu-check: no GPU: {why_not}", file=sys.stderr)
        return NOT_RUN
    options.out.mkdir(parents=True, exist_ok=True)
    results = [(step, *_run(step, options.out.resolve())) for step in STEPS if step.name in (options.only or names)]
    print("\ngpu-check:")
    for step, status, told in results:
        print(f"  {step.name:12} {('passed', 'FAILED', 'NOT RUN')[status]:8} {told}")
    statuses = {status for _, status, _ in results}
    return next((status for status in (FAILED, NOT_RUN) if status in statuses), PASSED)


def _why_no_gpu() -> str | None:
    if not _is_there("torch"):
        return f"{sys.executable} has no torch: make install, or make gpu-check GPU_PYTHON=another interpreter"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    print(f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    return None


def _run(step: Step, out: Path) -> tuple[int, str]:
    """Its status and a few words; its output goes where this one's goes."""
    missing = sorted({package for name, package in step.needs.items() if not _is_there(name)})
    if missing:
        return NOT_RUN, f"not installed: {', '.join(missing)}"
    command = [sys.executable, *(str(out) if part == "OUT" else part for part in step.command)]
    print(f"\n=== {step.name}: {' '.join(command)}", flush=True)
    paths = [str(REPOSITORY / folder) for folder in ("", "kernels", "data")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    began = time.monotonic()
    try:
        status = subprocess.run(command, cwd=REPOSITORY, env=environment, timeout=step.limit_seconds).returncode
    except subprocess.TimeoutExpired:
        return FAILED, f"took more than {step.limit_seconds:.0f} s"
    return (PASSED if status == 0 else FAILED), f"{time.monotonic() - began:.0f} s, exit status {status}"


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
