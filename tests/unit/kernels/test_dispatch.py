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


@pytest.fixture(autouse=True)
def built_for_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is tested on rows of its own; triton is not being interpreted."""
    monkeypatch.setitem(BUILT, "adaln", ("triton", "reference"))
    monkeypatch.setitem(BUILT, "attention", ("cudnn", "triton", "torch", "reference"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_is_triton_on_a_gpu_and_the_reference_elsewhere() -> None:
    assert choose_backend("adaln", "auto", "cuda") == "triton"
    assert choose_backend("adaln", "auto", "cpu") == "reference"


def test_auto_attention_is_torchs_until_somebody_measures() -> None:
    assert choose_backend("attention", "auto", "cpu") == choose_backend("attention", "auto", "cuda") == "torch"


def test_a_built_backend_is_taken_as_asked() -> None:
    assert choose_backend("attention", "reference", "cuda") == "reference"
    assert choose_backend("attention", "cudnn", "cuda") == "cudnn"


def test_a_missing_backend_is_never_replaced() -> None:
    with pytest.raises(ValueError, match=r"'flash9' is not built for attention: use auto or cudnn, .*, reference"):
        choose_backend("attention", "flash9", "cuda")


def test_a_gpu_backend_is_refused_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'cudnn' needs a CUDA device and .* on cpu: use auto or torch, reference"):
        choose_backend("attention", "cudnn", "cpu")
    with pytest.raises(ValueError, match=r"'triton' needs TRITON_INTERPRET=1 or a CUDA device"):
        choose_backend("adaln", "triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("adaln", "triton", "cpu") == "triton"


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
    with pytest.raises(ValueError, match=r"kernels\.attention \(flash\).* not built for attention: use auto or cudnn"):
        require_built("reference", "flash")


def test_a_recipes_choice_is_checked_against_the_device_where_it_is_known() -> None:
    require_built("auto", "cudnn")
    require_built("auto", "cudnn", "cuda")
    with pytest.raises(ValueError, match=r"kernels\.attention \(cudnn\): 'cudnn' needs a CUDA device"):
        require_built("auto", "cudnn", "cpu")
