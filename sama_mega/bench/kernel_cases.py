"""The registry of `bench kernels`: every operation with its inputs, its unfused form, and the bytes it must move.

Shape legend: S tokens, B batch, d width, h heads of this rank, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from sama_kernels.adaln import adaln
from sama_kernels.attention import attention
from sama_kernels.flow_matching import add_noise, weighted_mse
from sama_kernels.gate_residual import gate_residual, gate_residual_norm, residual_adaln
from sama_kernels.pretext import BLACK_FRAME, pretext
from sama_kernels.pretext.reference import pretext_reference
from sama_kernels.qk_norm_rope import qk_norm_rope
from sama_kernels.rope_attention import rope_attention
from sama_kernels.semantic_loss import semantic_loss
from sama_mega.bench.inputs import EPS, draw_rotation, rope_tables
from sama_mega.bench.shapes import ModelSize, Workload

SEMANTIC_FEATURES, LATENT_CHANNELS, PIXELS_PER_PATCH = 1152, 16, 16

Outputs = tuple[Tensor, ...]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Shard:
    """What one rank sees of a workload.

    Attributes:
        size: Widths of the block.
        work: The micro-batch.
        tensor: Tensor-parallel ranks: each has its share of the heads, or of the tokens.
    """

    size: ModelSize
    work: Workload
    tensor: int = 1

    @property
    def rows(self) -> tuple[int, int, int]:
        """``[S, B, d]`` of a row-wise operation: this rank's tokens, rounded up."""
        return -(-self.work.num_tokens // self.tensor), self.work.batch, self.size.dim

    @property
    def heads(self) -> tuple[int, int, int, int]:
        """``[S, B, h, D]``."""
        return self.work.num_tokens, self.work.batch, self.size.num_heads // self.tensor, self.size.head_dim


@dataclass(frozen=True)
class KernelCase:
    """One operation.

    Attributes:
        operation: A key of `sama_kernels.dispatch.BUILT`.
        draw: Makes the inputs; those that need gradients are told by `differentiable`.
        differentiable: Names of inputs.
        run: Computes it by a backend.
        chain: Computes it as the authors' code writes it, in the inputs' precision; exact in float64.
        forward_bytes: What must be read and written at least.
        backward_bytes: Likewise; None where there is no backward pass.
        flops: Of the forward pass, where matrix products bound it; the backward pass has 2.5 times as many.
    """

    operation: str
    draw: Callable[[Shard, torch.device, torch.dtype], Inputs]
    differentiable: tuple[str, ...]
    run: Callable[[Inputs, Shard, str], Outputs]
    chain: Callable[[Inputs, Shard], Outputs]
    forward_bytes: Callable[[Shard, int], int]
    backward_bytes: Callable[[Shard, int], int] | None
    flops: Callable[[Shard], int] | None = None


def _normal(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(4)
    return lambda *shape: torch.randn(*shape, generator=generator, device=device)


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


# --- rows -------------------------------------------------------------------------------------------------------------


def _draw_rows(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    normal, (_, batch, dim) = _normal(device), shard.rows
    return {
        "x": normal(*shard.rows).to(dtype),
        "branch": normal(*shard.rows).to(dtype),
        "shift": normal(batch, dim),
        "scale": 0.3 * normal(batch, dim),
        "gate": normal(batch, dim),
        "weight": (1 + 0.1 * normal(dim)).to(dtype),
        "bias": (0.1 * normal(dim)).to(dtype),
    }


def _modulated(x: Tensor, given: Inputs) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=EPS) * (1 + given["scale"].to(x.dtype)) + given["shift"].to(x.dtype)


def _gated(given: Inputs) -> Tensor:
    return given["x"] + given["gate"].to(given["x"].dtype) * given["branch"]


def _chain_gate_norm(given: Inputs, shard: Shard) -> Outputs:
    residual = _gated(given)
    return residual, layer_norm(residual, residual.shape[-1:], given["weight"], given["bias"], EPS)


def _chain_residual_adaln(given: Inputs, shard: Shard) -> Outputs:
    residual = given["x"] + given["branch"]
    return residual, _modulated(residual, given)


def _row_case(
    operation: str,
    inputs: tuple[str, ...],
    run: Callable[..., Tensor | Outputs],
    chain: Callable[[Inputs, Shard], Outputs],
    tensors_forward: int,
    tensors_backward: int,
) -> KernelCase:
    """An operation on ``[S, B, d]``, which reads and writes so many tensors of that shape."""

    def run_by(given: Inputs, shard: Shard, backend: str) -> Outputs:
        output = run(*(given[name] for name in inputs), backend=backend)
        return (output,) if isinstance(output, Tensor) else output

    return KernelCase(
        operation,
        lambda shard, device, dtype: {name: _draw_rows(shard, device, dtype)[name] for name in inputs},
        inputs,
        run_by,
        chain,
        lambda shard, itemsize: tensors_forward * _numel(shard.rows) * itemsize,
        lambda shard, itemsize: tensors_backward * _numel(shard.rows) * itemsize,
    )


# --- heads ------------------------------------------------------------------------------------------------------------


def _draw_heads(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Queries and keys as views of one product, head by head, as the model has them."""
    normal, (*_, heads, head_dim) = _normal(device), shard.heads
    return {
        "qkv": normal(*shard.heads[:3], 3, head_dim).to(dtype),
        "q_weight": (1 + 0.1 * normal(heads * head_dim)).to(dtype),
        "k_weight": (1 + 0.1 * normal(heads * head_dim)).to(dtype),
    }


def _run_qk_norm_rope(given: Inputs, shard: Shard, backend: str) -> Outputs:
    rope = rope_tables(shard.size, shard.work, given["qkv"].device)
    q, k, _ = given["qkv"].unbind(-2)
    return qk_norm_rope(
        q, k, given["q_weight"], given["k_weight"], rope=rope, full_width=shard.size.dim, eps=EPS, backend=backend
    )


def _chain_qk_norm_rope(given: Inputs, shard: Shard) -> Outputs:
    rotation = draw_rotation(shard.size, shard.work, given["qkv"].device)[:, None, None]
    results = []
    for part, name in ((0, "q_weight"), (1, "k_weight")):
        x = given["qkv"][..., part, :]
        wide = x if x.dtype == torch.float64 else x.float()
        mean_square = wide.square().sum(dim=(-2, -1), keepdim=True) / shard.size.dim
        normed = (wide * torch.rsqrt(mean_square + EPS)).to(x.dtype) * given[name].view(x.shape[-2:])
        results.append(_turn(normed, rotation).transpose(0, 1).contiguous())
    return tuple(results)


def _turn(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _draw_attention(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    tokens, batch, heads, head_dim = shard.heads
    normal = _normal(device)
    return {name: normal(batch, tokens, heads, head_dim).to(dtype) for name in "qkv"}


def _chain_attention(given: Inputs, shard: Shard) -> Outputs:
    q, k, v = (given[name].transpose(1, 2) for name in "qkv")
    return (scaled_dot_product_attention(q, k, v).transpose(1, 2),)


def _run_rope_attention(given: Inputs, shard: Shard, backend: str) -> Outputs:
    rope = rope_tables(shard.size, shard.work, given["q"].device)
    output, _ = rope_attention(given["q"], given["k"], given["v"], query_rope=rope, key_rope=rope, backend=backend)
    return (output,)


def _chain_rope_attention(given: Inputs, shard: Shard) -> Outputs:
    rotation = draw_rotation(shard.size, shard.work, given["q"].device)[:, None]
    turned = {name: _turn(given[name], rotation) for name in "qk"}
    return _chain_attention(given | turned, shard)


def _attention_flops(shard: Shard) -> int:
    tokens, batch, heads, head_dim = shard.heads
    return 4 * batch * tokens * tokens * heads * head_dim


# --- losses, latents, pixels ------------------------------------------------------------------------------------------


def _draw_semantic(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    normal, tokens, batch, dim = _normal(device), shard.work.num_semantic, shard.work.batch, shard.size.dim
    return {
        "hidden": normal(tokens, batch, dim).to(dtype),
        "target": normal(tokens, batch, SEMANTIC_FEATURES),
        "norm_weight": (1 + 0.1 * normal(dim)).to(dtype),
        "norm_bias": (0.1 * normal(dim)).to(dtype),
        "weight": (normal(SEMANTIC_FEATURES, dim) * dim**-0.5).to(dtype),
        "bias": (0.1 * normal(SEMANTIC_FEATURES)).to(dtype),
    }


def _run_semantic(given: Inputs, shard: Shard, backend: str) -> Outputs:
    return (semantic_loss(**given, eps=EPS, backend=backend),)


def _chain_semantic(given: Inputs, shard: Shard) -> Outputs:
    hidden = given["hidden"]
    normed = layer_norm(hidden, hidden.shape[-1:], given["norm_weight"], given["norm_bias"], EPS)
    predicted = linear(normed, given["weight"], given["bias"])
    wide = predicted if predicted.dtype == torch.float64 else predicted.float()
    return ((wide - given["target"]).abs().sum(dim=(0, 2)),)


def _semantic_bytes(shard: Shard, itemsize: int) -> int:
    rows = shard.work.num_semantic * shard.work.batch
    weights = SEMANTIC_FEATURES * shard.size.dim * itemsize
    return weights + rows * (shard.size.dim * itemsize + SEMANTIC_FEATURES * 4)


def _latents(shard: Shard) -> tuple[int, ...]:
    frames, lines, columns = shard.work.grid
    return shard.work.batch, LATENT_CHANNELS, frames, 2 * lines, 2 * columns


def _draw_latents(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    normal = _normal(device)
    values = {"x": normal(*_latents(shard)), "noise": normal(*_latents(shard))}
    return values | {"sigma": torch.linspace(0.1, 0.9, shard.work.batch, device=device)}


def _run_add_noise(given: Inputs, shard: Shard, backend: str) -> Outputs:
    return add_noise(given["x"], given["noise"], given["sigma"], backend=backend)


def _chain_add_noise(given: Inputs, shard: Shard) -> Outputs:
    x, noise, sigma = given["x"], given["noise"], given["sigma"].view(-1, 1, 1, 1, 1)
    return (1 - sigma) * x + sigma * noise, noise - x


def _run_mse(given: Inputs, shard: Shard, backend: str) -> Outputs:
    return (weighted_mse(given["x"], given["noise"], given["sigma"], backend=backend),)


def _chain_mse(given: Inputs, shard: Shard) -> Outputs:
    return ((given["x"] - given["noise"]).square().mean(dim=(1, 2, 3, 4)) * given["sigma"],)


def _draw_frames(shard: Shard, device: torch.device, dtype: torch.dtype) -> Inputs:
    frames, lines, columns = shard.work.grid
    shape = (4 * (frames - 1) + 1, PIXELS_PER_PATCH * lines, PIXELS_PER_PATCH * columns, 3)
    generator = torch.Generator(device).manual_seed(5)
    return {"frames": torch.randint(0, 256, shape, generator=generator, device=device, dtype=torch.uint8)}


def _frame_indices(frames: Tensor) -> list[int]:
    """A cube: a third of the frames black."""
    count = frames.shape[0]
    return [BLACK_FRAME if count // 3 <= index < 2 * count // 3 else index for index in range(count)]


def _run_pretext(given: Inputs, shard: Shard, backend: str) -> Outputs:
    frames = given["frames"]
    return (pretext(frames, _frame_indices(frames), None, _pixel_dtype(frames), backend=backend),)


def _chain_pretext(given: Inputs, shard: Shard) -> Outputs:
    frames = given["frames"]
    return (pretext_reference(frames, _frame_indices(frames), None, _pixel_dtype(frames)),)


def _pixel_dtype(frames: Tensor) -> torch.dtype:
    """Triton's interpreter cuts off where bfloat16 is rounded."""
    return torch.bfloat16 if frames.is_cuda else torch.float32


def _frames_bytes(shard: Shard, itemsize: int) -> int:
    """A third of the frames is written and not read."""
    frames, lines, columns = shard.work.grid
    count = 4 * (frames - 1) + 1
    pixels = PIXELS_PER_PATCH**2 * lines * columns * 3
    return (count - (2 * count // 3 - count // 3)) * pixels + count * pixels * 2


CASES: dict[str, KernelCase] = {
    "adaln": _row_case(
        "adaln",
        ("x", "shift", "scale"),
        lambda x, shift, scale, backend: adaln(x, shift, scale, eps=EPS, backend=backend),
        lambda given, shard: (_modulated(given["x"], given),),
        tensors_forward=2,
        tensors_backward=3,
    ),
    "gate_residual": _row_case(
        "gate_residual",
        ("x", "branch", "gate"),
        lambda x, branch, gate, backend: gate_residual(x, branch, gate, backend=backend),
        lambda given, shard: (_gated(given),),
        tensors_forward=3,
        tensors_backward=3,
    ),
    "gate_residual_norm": _row_case(
        "gate_residual",
        ("x", "branch", "gate", "weight", "bias"),
        lambda x, branch, gate, weight, bias, backend: gate_residual_norm(
            x, branch, gate, weight, bias, eps=EPS, backend=backend
        ),
        _chain_gate_norm,
        tensors_forward=4,
        tensors_backward=6,
    ),
    "residual_adaln": _row_case(
        "gate_residual",
        ("x", "branch", "shift", "scale"),
        lambda x, branch, shift, scale, backend: residual_adaln(x, branch, shift, scale, eps=EPS, backend=backend),
        _chain_residual_adaln,
        tensors_forward=4,
        tensors_backward=4,
    ),
    "qk_norm_rope": KernelCase(
        "qk_norm_rope",
        _draw_heads,
        ("qkv", "q_weight", "k_weight"),
        _run_qk_norm_rope,
        _chain_qk_norm_rope,
        lambda shard, itemsize: 4 * _numel(shard.heads) * itemsize,
        lambda shard, itemsize: 6 * _numel(shard.heads) * itemsize,
    ),
    "attention": KernelCase(
        "attention",
        _draw_attention,
        ("q", "k", "v"),
        lambda given, shard, backend: (attention(given["q"], given["k"], given["v"], backend=backend),),
        _chain_attention,
        lambda shard, itemsize: 4 * _numel(shard.heads) * itemsize,
        lambda shard, itemsize: 8 * _numel(shard.heads) * itemsize,
        _attention_flops,
    ),
    "rope_attention": KernelCase(
        "rope_attention",
        _draw_attention,
        ("q", "k", "v"),
        _run_rope_attention,
        _chain_rope_attention,
        lambda shard, itemsize: 6 * _numel(shard.heads) * itemsize,
        lambda shard, itemsize: 10 * _numel(shard.heads) * itemsize,
        _attention_flops,
    ),
    "semantic_loss": KernelCase(
        "semantic_loss",
        _draw_semantic,
        ("hidden", "norm_weight", "norm_bias", "weight", "bias"),
        _run_semantic,
        _chain_semantic,
        _semantic_bytes,
        lambda shard, itemsize: 2 * _semantic_bytes(shard, itemsize),
    ),
    "add_noise": KernelCase(
        "flow_matching",
        _draw_latents,
        (),
        _run_add_noise,
        _chain_add_noise,
        lambda shard, itemsize: 4 * _numel(_latents(shard)) * 4,
        None,
    ),
    "weighted_mse": KernelCase(
        "flow_matching",
        _draw_latents,
        ("x",),
        _run_mse,
        _chain_mse,
        lambda shard, itemsize: 2 * _numel(_latents(shard)) * 4,
        lambda shard, itemsize: 3 * _numel(_latents(shard)) * 4,
    ),
    "pretext": KernelCase("pretext", _draw_frames, (), _run_pretext, _chain_pretext, _frames_bytes, None),
}
"""By name in the table."""
