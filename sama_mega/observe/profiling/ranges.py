"""Named ranges around functions of a running program, there only while it is profiled.

Nothing in the model or the step knows of them: entering `named_ranges` puts wrappers in the place of functions, leaving
it puts the functions back. A run that is not profiled runs the code as it is written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """A function that gets a range.

    Attributes:
        owner: The module, class or object that the function is looked up on.
        attribute: Its name there.
        name: The range's.
        is_context: It returns a context manager, whose body gets the range.
        seen: Told what every call returned.
    """

    owner: Any
    attribute: str
    name: str
    is_context: bool = False
    seen: Callable[[Any], None] | None = None


OpenRange = Callable[[str], AbstractContextManager[Any]]


@contextmanager
def named_ranges(places: Iterable[Place], open_range: OpenRange) -> Iterator[None]:
    """While entered, every call of the places runs inside a range.

    Args:
        places: Several may name the same function: the first one's range is the innermost.
        open_range: Makes a range of a name: `torch_range`, or `device_range` for other profilers.
    """
    with ExitStack() as replaced:
        for place in places:
            _wrap(place, open_range, replaced)
        yield


def torch_range(name: str) -> AbstractContextManager[Any]:
    """A range in the trace of torch's profiler."""
    return torch.profiler.record_function(name)


def device_range(name: str) -> AbstractContextManager[Any]:
    """A range for Nsight: NVTX; needs CUDA."""
    return torch.cuda.nvtx.range(name)


def _wrap(place: Place, open_range: OpenRange, replaced: ExitStack) -> None:
    owner, attribute = place.owner, place.attribute
    wrapped = _with_range(getattr(owner, attribute), place, open_range)
    own = vars(owner).get(attribute)
    if own is None:  # inherited, or a module's method: what is set on the object hides it
        replaced.callback(delattr, owner, attribute)
    else:
        replaced.callback(setattr, owner, attribute, own)
    setattr(owner, attribute, wrapped)


def _with_range(function: Callable[..., Any], place: Place, open_range: OpenRange) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*positional: Any, **named: Any) -> Any:
        with open_range(place.name):
            result = function(*positional, **named)
        if place.seen is not None:
            place.seen(result)
        return result

    @functools.wraps(function)
    @contextmanager
    def enter(*positional: Any, **named: Any) -> Iterator[Any]:
        with open_range(place.name), function(*positional, **named) as value:
            yield value

    return enter if place.is_context else call
