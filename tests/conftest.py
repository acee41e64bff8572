"""Fixtures that every test may use, and the rule for tests that need a GPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

# Triton reads this when it is first imported, so it is set before anything else: without a GPU its kernels run on the
# CPU, where a test asks for them.
os.environ.setdefault("TRITON_INTERPRET", "0" if shutil.which("nvidia-smi") else "1")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_root(repo_root: Path) -> Path:
    """Optional material beside the clone (real clips, golden tensors); skips where there is none."""
    folder = repo_root.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} folder beside the clone")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
