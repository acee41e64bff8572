"""Fixtures of the kernels' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.triton_checks import unwritten_memory_is_nan


@pytest.fixture
def unwritten_is_nan() -> Iterator[None]:
    """New memory holds NaN."""
    with unwritten_memory_is_nan():
        yield
