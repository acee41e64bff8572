"""What the tests of Triton kernels share: who runs them, a kernel with a bug in it, and the measure for bfloat16."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sama_kernels.dispatch import interpreting
from tests.support.kernel_checks import relative_error

needs_interpreter = pytest.mark.skipif(not interpreting(), reason="triton is not interpreted here")

BACKENDS = ["reference", pytest.param("triton", marks=needs_interpreter)]
"""For tests whose tensors are on the CPU."""

_numbers = itertools.count()


@contextmanager
def unwritten_memory_is_nan() -> Iterator[None]:
    """While new memory holds NaN, or the largest integer: what a kernel forgot to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def plant(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kernels: ModuleType, caller: ModuleType, right: str, wrong: str
) -> None:
    """Lets a module call copies of kernels in which ``right`` became ``wrong`` everywhere.

    Args:
        monkeypatch: Ends it.
        folder: For the copy: kernels must live in a file.
        kernels: The module that defines them.
        caller: The module that imported them.
        right: In the source of the kernels.
        wrong: What stands there instead.
    """
    assert kernels.__file__ is not None
    source = Path(kernels.__file__).read_text()
    assert right in source, f"{kernels.__name__} has no {right!r}"
    name = f"kernels_with_a_bug_{next(_numbers)}"
    file = folder / f"{name}.py"
    file.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, copy)
    spec.loader.exec_module(copy)
    for kernel, value in vars(copy).items():
        function = getattr(value, "fn", None)
        if getattr(function, "__module__", None) == name and hasattr(caller, kernel):
            monkeypatch.setattr(caller, kernel, value)


def assert_as_exact_as_eager(
    ours: Callable[..., list[Tensor]], eager: Callable[..., list[Tensor]], given: list[Tensor], float32_limit: float
) -> None:
    """Checks that results and gradients are within 1.5 times of eager torch's error against float64.

    Args:
        ours: Takes the tensors, returns results and gradients.
        eager: The same with plain torch; called in float64 it is the truth.
        given: What they take, on one device.
        float32_limit: Relative, L2: what is computed in float32 need not be better than this.
    """
    exact = eager(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in given))
    for place, (mine, theirs, truth) in enumerate(zip(ours(*given), eager(*given), exact, strict=True)):
        limit = max(1.5 * relative_error(theirs, truth), float32_limit)
        assert relative_error(mine, truth) <= limit, place
