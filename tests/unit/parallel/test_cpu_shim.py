"""What megatron-core's CUDA literals become without a GPU, and that a GPU switches the shim off."""

from __future__ import annotations

import pytest
import torch

from sama_mega.parallel.cpu_shim import cuda_literals_on_cpu, install_cpu_shim, needs_cpu_shim

without_gpu = pytest.mark.skipif(not needs_cpu_shim(), reason="this host has a GPU")


@without_gpu
def test_cuda_literals_mean_the_cpu() -> None:
    with cuda_literals_on_cpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.tensor([1.0], device=torch.device("cuda", 1)).device.type == "cpu"
        assert torch.zeros(2).to("cuda").device.type == "cpu"
        assert torch.zeros(2).cuda().device.type == "cpu"
        assert torch.zeros(2).type() == "torch.cuda.FloatTensor"
        assert torch.zeros(2, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(2).type(torch.float64).dtype == torch.float64
        assert torch.zeros(2).to(torch.float64).dtype == torch.float64
        assert torch.zeros(2, device="meta").device.type == "meta"


@without_gpu
def test_nothing_changes_outside_the_context() -> None:
    with cuda_literals_on_cpu():
        pass
    assert torch.zeros(2).type() == "torch.FloatTensor"
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")


def test_a_gpu_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    current_device, synchronize = torch.cuda.current_device, torch.cuda.synchronize
    assert not install_cpu_shim()
    assert torch.cuda.current_device is current_device
    assert torch.cuda.synchronize is synchronize
    with cuda_literals_on_cpu():
        assert torch.zeros(2).type() == "torch.FloatTensor"
