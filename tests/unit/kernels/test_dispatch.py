"""One rule for choosing a backend, and every operation obeys it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sama_kernels.adaln import adaln
from sama_kernels.attention import attention
from sama_kernels.dispatch import BUILT, choose_backend, require_built
from sama_kernels.gate_residual import gate_residual
from sama_kernels.qk_norm_rope import qk_norm_rope
from sama_kernels.semantic_loss import semantic_head, semantic_loss

TOKENS = torch.ones(3, 1, 4)
PER_SAMPLE = torch.ones(1, 4)
HEADS = torch.ones(3, 1, 2, 2)
WIDE, PROJECTION = torch.ones(4), torch.ones(5, 4)

OPERATIONS: dict[str, Callable[[str], object]] = {
    "adaln": lambda backend: adaln(TOKENS, PER_SAMPLE, PER_SAMPLE, eps=1e-6, backend=backend),
    "gate_residual": lambda backend: gate_residual(TOKENS, TOKENS, PER_SAMPLE, backend=backend),
    "attention": lambda backend: attention(HEADS, HEADS, HEADS, backend=backend),
    "qk_norm_rope": lambda backend: qk_norm_rope(
        HEADS, HEADS, WIDE, WIDE, rope=None, full_width=4, eps=1e-6, backend=backend
    ),
    "semantic_head": lambda backend: semantic_head(
        TOKENS, WIDE, WIDE, PROJECTION, torch.ones(5), eps=1e-6, backend=backend
    ),
    "semantic_loss": lambda backend: semantic_loss(
        TOKENS, torch.ones(3, 1, 5), WIDE, WIDE, PROJECTION, torch.ones(5), eps=1e-6, backend=backend
    ),
}


def test_auto_takes_the_preferred_backend() -> None:
    assert choose_backend("attention", "auto") == "torch"
    assert choose_backend("adaln", "auto") == "reference"


def test_a_built_backend_is_taken_as_asked() -> None:
    assert choose_backend("attention", "reference") == "reference"


def test_a_missing_backend_is_never_replaced() -> None:
    with pytest.raises(ValueError, match=r"'cudnn' is not built for attention: use auto or torch, reference"):
        choose_backend("attention", "cudnn")


def test_the_table_names_the_operations_that_exist(repo_root: Path) -> None:
    folders = {file.parent.name for file in (repo_root / "kernels" / "sama_kernels").glob("*/__init__.py")}
    assert folders == BUILT.keys()
    assert all("reference" in backends for backends in BUILT.values())


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_refuses_what_is_not_built(operation: str) -> None:
    OPERATIONS[operation]("auto")
    OPERATIONS[operation]("reference")
    with pytest.raises(ValueError, match="'no_such_backend' is not built for "):
        OPERATIONS[operation]("no_such_backend")


def test_a_recipes_choice_is_checked_at_once() -> None:
    """The message names the recipe's key, as `kernels.ops` means every operation but attention."""
    require_built("auto", "auto")
    require_built("reference", "torch")
    with pytest.raises(ValueError, match=r"kernels\.ops \(no_such_backend\).* not built for"):
        require_built("no_such_backend", "auto")
    with pytest.raises(ValueError, match=r"kernels\.ops \(torch\).* not built for"):
        require_built("torch", "torch")
    with pytest.raises(ValueError, match=r"kernels\.attention \(flash\).* not built for attention: use auto or torch"):
        require_built("reference", "flash")
