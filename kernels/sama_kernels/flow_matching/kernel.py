"""Noising with numbers drawn in the kernel, and the squared error of a velocity. Samples are flat: ``[B, n]``."""

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST_BITS: tl.constexpr = tl.constexpr(8)
_FLOAT_STEP: tl.constexpr = tl.constexpr(2.0**-24)
_TURN: tl.constexpr = tl.constexpr(6.283185307179586)


@triton.jit
def normals_of_blocks(words, blocks):
    """Four normal numbers of each Philox block, in order: ``sama_kernels.philox.random_normal_batch``'s.

    Args:
        words: Points to a sample's five words, `sama_kernels.philox.counter_words`.
        blocks: ``[N]`` int32 numbers of blocks.

    Returns:
        ``[4 N]`` float32.
    """
    key_0 = tl.load(words).to(tl.uint32)
    key_1 = tl.load(words + 1).to(tl.uint32)
    counter_1 = tl.load(words + 2).to(tl.uint32)
    counter_2 = tl.load(words + 3).to(tl.uint32)
    counter_3 = tl.load(words + 4).to(tl.uint32)
    none = blocks.to(tl.uint32) * 0
    w0, w1, w2, w3 = tl.philox_impl(
        blocks.to(tl.uint32), none + counter_1, none + counter_2, none + counter_3, none + key_0, none + key_1, 10
    )
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def _pair(radius_word, angle_word):
    """Box and Muller; both words' upper 24 bits, the first as 1 - uniform: in (0, 1]."""
    radius = ((radius_word >> _LOWEST_BITS) + 1).to(tl.float32) * _FLOAT_STEP
    radius = tl.sqrt_rn(tl.log(radius) * -2.0)
    angle = (angle_word >> _LOWEST_BITS).to(tl.float32) * _FLOAT_STEP * _TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def add_noise_forward(x, noise, words, sigma, noisy, velocity, num_elements, DRAWN: tl.constexpr, BLOCKS: tl.constexpr):
    """(1 - sigma) x + sigma noise -> noisy, noise - x -> velocity; DRAWN: noise by words, else read."""
    sample = tl.program_id(1).to(tl.int64)
    first_block = tl.program_id(0) * BLOCKS
    offsets = first_block.to(tl.int64) * 4 + tl.arange(0, 4 * BLOCKS)
    inside = offsets < num_elements
    offsets += sample * num_elements
    clean = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    if DRAWN:
        added = normals_of_blocks(words + sample * 5, first_block + tl.arange(0, BLOCKS))
    else:
        added = tl.load(noise + offsets, mask=inside, other=0.0).to(tl.float32)
    level = tl.load(sigma + sample)
    mixed = (1.0 - level) * clean + level * added
    tl.store(noisy + offsets, mixed.to(noisy.dtype.element_ty), mask=inside)
    tl.store(velocity + offsets, added - clean, mask=inside)


@triton.jit
def squared_error_forward(velocity, target, partial_sums, num_elements, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Each program's sum of (velocity - target)^2 over every n-th block of sample b -> ``[B, programs]``."""
    sample = tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    start = tl.program_id(0) * BLOCK
    for first in tl.range(start, num_elements, tl.num_programs(0) * BLOCK, num_stages=STAGES):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < num_elements
        place = sample * num_elements + offsets
        error = tl.load(velocity + place, mask=inside, other=0.0).to(tl.float32)
        error -= tl.load(target + place, mask=inside, other=0.0).to(tl.float32)
        total += error * error
    tl.store(partial_sums + sample * tl.num_programs(0) + tl.program_id(0), tl.sum(total))


@triton.jit
def squared_error_backward(
    velocity,
    target,
    factor,
    d_velocity,
    d_target,
    num_elements,
    WITH_TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """factor[b] * (velocity - target) -> d_velocity, and its negative -> d_target."""
    sample = tl.program_id(1).to(tl.int64)
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < num_elements
    offsets += sample * num_elements
    error = tl.load(velocity + offsets, mask=inside, other=0.0).to(tl.float32)
    error -= tl.load(target + offsets, mask=inside, other=0.0).to(tl.float32)
    error *= tl.load(factor + sample)
    tl.store(d_velocity + offsets, error.to(d_velocity.dtype.element_ty), mask=inside)
    if WITH_TARGET:
        tl.store(d_target + offsets, -error.to(d_target.dtype.element_ty), mask=inside)
