"""How fast a machine is: what turns a step's work into seconds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from sama_mega.observe.gpu_kinds import GpuKind

# Estimates, not measurements; they matter where micro-batches are small. A block's two passes take about 0.2 ms of
# launches, as the model by which samples are dealt to ranks has it.
_BLOCK_PASS_SECONDS, _MICRO_BATCH_SECONDS, _STEP_SECONDS = 1e-4, 2e-3, 5e-3
_NODE_HOP_SECONDS, _NETWORK_HOP_SECONDS = 4e-6, 1e-5


@dataclass(frozen=True)
class Rates:
    """What one rank reaches; an infinite rate costs nothing.

    Attributes:
        gemm_flops: Operations a second in products of matrices.
        attention_forward_flops: Operations a second in attention's forward pass.
        attention_backward_flops: Operations a second in its backward pass, over endlessly many keys.
        attention_half_keys: Keys at which it reaches half of that.
        memory_bytes: Bytes a second of element-wise operations, read and written together.
        encoder_flops: Operations a second of pretrained encoders.
        host_bytes: Bytes a second to the host's memory.
        node_bytes: Bytes a second to the ranks of the node.
        network_bytes: Bytes a second to other nodes.
        node_hop_seconds: What a message costs for each rank that it passes, beside its bytes, in a node.
        network_hop_seconds: Between nodes.
        pixel_seconds: Of the built-in encoders, for a pixel.
        block_pass_seconds: What each pass through a block costs beside its work: launches.
        micro_batch_seconds: What each micro-batch costs beside its blocks.
        step_seconds: What each optimizer step costs beside its micro-batches.
        overlap: The share of the time that messages can travel beside work, 0 to 1.
    """

    gemm_flops: float = inf
    attention_forward_flops: float = inf
    attention_backward_flops: float = inf
    attention_half_keys: float = 0.0
    memory_bytes: float = inf
    encoder_flops: float = inf
    host_bytes: float = inf
    node_bytes: float = inf
    network_bytes: float = inf
    node_hop_seconds: float = 0.0
    network_hop_seconds: float = 0.0
    pixel_seconds: float = 0.0
    block_pass_seconds: float = 0.0
    micro_batch_seconds: float = 0.0
    step_seconds: float = 0.0
    overlap: float = 0.0


def rates_of(gpu: GpuKind, precision: str) -> Rates:
    """What a kind of GPU reaches, by its data sheet and the shares in its entry.

    Args:
        gpu: The kind.
        precision: `train.precision`.
    """
    peak, share = gpu.peak_flops(precision), gpu.achieved
    return Rates(
        gemm_flops=peak * share.gemm,
        attention_forward_flops=peak * share.attention_forward,
        attention_backward_flops=peak * share.attention_backward,
        attention_half_keys=share.attention_half_keys,
        memory_bytes=1e9 * gpu.memory_gbytes * share.memory,
        encoder_flops=peak * share.encoders,
        host_bytes=1e9 * gpu.host_gbytes,
        node_bytes=1e9 * gpu.node_gbytes * share.node,
        network_bytes=1e9 * gpu.network_gbytes * share.network,
        node_hop_seconds=_NODE_HOP_SECONDS,
        network_hop_seconds=_NETWORK_HOP_SECONDS,
        block_pass_seconds=_BLOCK_PASS_SECONDS,
        micro_batch_seconds=_MICRO_BATCH_SECONDS,
        step_seconds=_STEP_SECONDS,
        overlap=1.0,
    )


def describe_rates(gpu: GpuKind, precision: str) -> list[str]:
    """The assumptions behind `rates_of`, a line each."""
    share, rates = gpu.achieved, rates_of(gpu, precision)
    how = "measured on this kind" if share.measured else "those of an H200, not measured on this kind"
    peak, node, network = gpu.peak_flops(precision) / 1e12, rates.node_bytes / 1e9, rates.network_bytes / 1e9
    return [
        f"of the data sheet's {peak:g} TFLOP/s ({precision}) products reach {share.gemm:.0%}, attention "
        f"{share.attention_forward:.0%} forward and {share.attention_backward:.0%} backward (shares {how})",
        f"element-wise operations reach {share.memory:.0%} of {gpu.memory_gbytes:g} GB/s: the copy rate x 85 %, a goal",
        f"links: {node:.0f} GB/s a GPU in a node, {network:.0f} GB/s between nodes ({share.node:.0%} and "
        f"{share.network:.0%} of the table's, not measured), rings, {_NODE_HOP_SECONDS * 1e6:g} and "
        f"{_NETWORK_HOP_SECONDS * 1e6:g} us a rank on the way; no congestion",
        "messages that travel beside work are hidden as far as that work is long, and do not slow it down",
        f"{_BLOCK_PASS_SECONDS * 1e3:g} ms a pass of a block, {_MICRO_BATCH_SECONDS * 1e3:g} ms a micro-batch and "
        f"{_STEP_SECONDS * 1e3:g} ms a step for launches (estimates)",
        "all ranks are equally fast: no jitter, no waiting for data, no checkpoints, no restarts",
    ]
