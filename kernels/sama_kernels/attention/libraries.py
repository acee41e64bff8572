"""Which libraries can compute attention here: what each needs, in one line for the user. Imports none of them."""

from __future__ import annotations

import importlib.util

import torch

_INSTALL_GPU_EXTRA = "install the gpu extra (pip install 'sama-mega[gpu]')"
_OLDEST_CAPABILITY = {"flash4": (9, 0), "cudnn": (8, 0), "te": (8, 0), "triton": (8, 0)}
_ON_TENSOR_CORES_ONLY = frozenset({"flash4", "cudnn", "te"})
_PACKAGES = {
    "flash4": ("flash_attn.cute", "flash-attn-4"),
    "te": ("transformer_engine.pytorch", "transformer-engine"),
    "triton": ("triton", "triton"),
}


def unavailable(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Says why a backend of attention cannot run, or None if it can.

    Args:
        backend: Of `sama_kernels.attention.attention`, known to be built.
        device: Where the tensors are.
        dtype: Of the tensors.

    Returns:
        One line: what is missing and what to do.
    """
    if backend in ("torch", "reference"):
        return None
    return _missing_package(backend) or _unfit_device(backend, device) or _unfit_dtype(backend, dtype)


def _missing_package(backend: str) -> str | None:
    if backend not in _PACKAGES:
        return None
    module, package = _PACKAGES[backend]
    if _is_installed(module):
        return None
    fix = _INSTALL_GPU_EXTRA if backend != "triton" else f"install {package}"
    return f"{backend!r} needs the package {package}, which is not installed: {fix}, or use another backend"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # A parent that is missing, or that cannot be imported here.
        return False


def _unfit_device(backend: str, device: torch.device) -> str | None:
    if device.type != "cuda":
        return None  # The rule of `sama_kernels.dispatch` has refused it, or triton is interpreted.
    capability, oldest = torch.cuda.get_device_capability(device), _OLDEST_CAPABILITY[backend]
    if capability < oldest:
        name = torch.cuda.get_device_name(device)
        return (
            f"{backend!r} needs compute capability {oldest[0]}.{oldest[1]} and {name} has "
            f"{capability[0]}.{capability[1]}: use torch"
        )
    if backend == "cudnn" and not torch.backends.cudnn.is_available():
        return "'cudnn' needs a torch that was built with cuDNN: use another backend"
    return None


def _unfit_dtype(backend: str, dtype: torch.dtype) -> str | None:
    if backend in _ON_TENSOR_CORES_ONLY and dtype not in (torch.bfloat16, torch.float16):
        return f"{backend!r} computes in bfloat16 or float16, not in {str(dtype).removeprefix('torch.')}: use torch"
    return None
