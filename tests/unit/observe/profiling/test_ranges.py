"""Ranges are there while a profile runs, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sama_mega.observe.profiling.ranges import Place, named_ranges, torch_range


class Recorder:
    def __init__(self) -> None:
        self.entered: list[str] = []
        self.open: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.open.append(name)
        self.entered.append("/".join(self.open))
        yield
        self.open.pop()


class Reader:
    @contextmanager
    def reading(self) -> Iterator[int]:
        yield 3


def cube(x: Tensor) -> Tensor:
    return x * x * x


def nodes_of(output: Tensor) -> list[str]:
    names, left = [], [output.grad_fn]
    while left:
        node: Any = left.pop()
        if node is not None:
            names.append(node.name())
            left += [following for following, _ in node.next_functions]
    return names


def test_ranges_nest_and_go_away() -> None:
    linear, functions, record = nn.Linear(2, 2), SimpleNamespace(cube=cube), Recorder()
    reading, calls, seen = Reader.reading, nn.Linear.forward, []
    places = [
        Place(linear, "forward", "outer"),
        Place(linear, "forward", "outermost"),
        Place(functions, "cube", "cube", seen=seen.append),
        Place(Reader, "reading", "read", is_context=True),
    ]
    with named_ranges(places, record), Reader().reading() as value:
        assert value == 3
        result = functions.cube(linear(torch.ones(2)))
    assert record.entered == ["read", "read/outermost", "read/outermost/outer", "read/cube"]
    assert seen == [result]
    # The very objects that were there before: an unprofiled run executes no line of this.
    assert functions.cube is cube and Reader.reading is reading and nn.Linear.forward is calls
    assert "forward" not in vars(linear)


def test_they_go_away_when_the_run_fails() -> None:
    functions = SimpleNamespace(cube=cube)
    with pytest.raises(RuntimeError, match="stop"), named_ranges([Place(functions, "cube", "cube")], Recorder()):
        raise RuntimeError("stop")
    assert functions.cube is cube


def test_autograd_does_not_see_them() -> None:
    functions, x = SimpleNamespace(cube=cube), torch.ones(2, requires_grad=True)
    plain = nodes_of(functions.cube(x))
    with named_ranges([Place(functions, "cube", "cube")], torch_range):
        assert nodes_of(functions.cube(x)) == plain


def test_an_unknown_function_is_an_error() -> None:
    with pytest.raises(AttributeError), named_ranges([Place(SimpleNamespace(), "gone", "gone")], Recorder()):
        pass
