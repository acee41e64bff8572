"""Lets megatron-core run without CUDA, by replacing the few places where it takes CUDA for granted.

Active only where `torch.cuda.is_available()` is False: with a GPU every function here does nothing, so the
code that trains on a cluster is megatron-core's own. Nothing in site-packages is edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MARK = "_sama_mega_cpu_shim"


def needs_cpu_shim() -> bool:
    """Whether this process has no CUDA device."""
    return not torch.cuda.is_available()


def install_cpu_shim() -> bool:
    """Replaces CUDA queries and megatron's CUDA random states by their CPU counterparts, once per process.

    Returns:
        Whether the shim is active; False, with nothing touched, where there is CUDA.
    """
    if not needs_cpu_shim():
        return False
    if hasattr(torch.cuda.current_device, _MARK):
        return True
    from megatron.core.tensor_parallel import random

    # Buffers of the parallel linears, the mappings and DDP are allocated on `torch.cuda.current_device()`.
    torch.cuda.current_device = _marked(lambda: torch.device("cpu"))
    # Timers and parallel_state call it to wait for the device; the CPU has nothing in flight.
    torch.cuda.synchronize = _marked(lambda device=None: None)
    # Recompute saves and restores "the CUDA random state" around a block: here that is the CPU generator's.
    random._get_cuda_rng_state = _marked(lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state())
    random._set_cuda_rng_state = _marked(lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state))
    # The tracker is created by class name in that module, so the class itself is what has to change.
    random.CudaRNGStatesTracker = _cpu_tracker_class(random.CudaRNGStatesTracker)
    random._CUDA_RNG_STATE_TRACKER = None
    random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    return True


def cuda_literals_on_cpu() -> AbstractContextManager[object]:
    """Context in which `device="cuda"` means the CPU, for megatron's optimizer, clipping and schedules.

    Those spell the device as a literal and ask `tensor.type() == "torch.cuda.FloatTensor"`, which no patched
    function can reach. A function mode sees every torch call inside the context, so keep the context small.
    """
    return _CudaLiteralsOnCpu() if needs_cpu_shim() else contextlib.nullcontext()


class _CudaLiteralsOnCpu(TorchFunctionMode):
    """Rewrites CUDA devices to the CPU and CPU type names to CUDA's."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # megatron sorts parameters into fp32 and half groups by this string.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if func is torch.Tensor.to:
            args = tuple(torch.device("cpu") if _is_cuda(argument) else argument for argument in args)
        return func(*args, **kwargs)


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _marked(function: Callable) -> Callable:
    setattr(function, _MARK, True)
    return function


def _cpu_tracker_class(cuda_tracker_class: type) -> type:
    """Makes megatron's tracker of named random states keep them for the CPU generator."""

    class CpuRngStatesTracker(cuda_tracker_class):
        """Same names, seeds and nesting as megatron's; only the generator differs."""

        def add(self, name: str, seed: int) -> None:
            if seed in self.seeds_ or name in self.states_:
                raise RuntimeError(f"random state {name!r} or its seed {seed} exists already")
            self._is_initialized = True
            self.seeds_.add(seed)
            self.states_[name] = torch.Generator().manual_seed(seed).get_state()

        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            # megatron's own fork warns when the CPU state moved: here that is the state being tracked.
            if name not in self.states_:
                raise RuntimeError(f"random state {name!r} was never added")
            outer_state = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer_state)

    return CpuRngStatesTracker
