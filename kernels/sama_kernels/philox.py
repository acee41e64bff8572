"""Counter-based random numbers: a draw depends on what it is for, never on who asks or when.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A draw is addressed by
(seed, sample index, epoch, stream, position), so that no rank layout, batch order or resume changes it, and a
kernel makes the same integers from the same address. Words are uint32 values held in int64 tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sama_kernels.transfer import to_device

_MASK = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_KEY_STEP_0 = 0x9E3779B9
_KEY_STEP_1 = 0xBB67AE85
_NUM_ROUNDS = 10
_WORDS_PER_BLOCK = 4
# The upper 24 bits make a float32 exactly, so every device rounds alike (not at all).
_FLOAT_BITS_DROPPED = 8
_FLOAT_STEP = 2.0**-24

Index = int | Sequence[int]


@dataclass(frozen=True)
class Address:
    """Which random numbers: those that `random_normal_batch` draws for the same arguments.

    Attributes:
        seed: The run's, 0 <= seed < 2**64.
        sample_indices: ``[B]`` the samples' indices in the dataset.
        epochs: ``[B]``, or one for all.
        stream: What the numbers are for; two purposes never share numbers.
    """

    seed: int
    sample_indices: Index
    epochs: Index
    stream: int


def philox_4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 with ten rounds.

    Args:
        counter: Four int64 tensors of uint32 values, broadcastable.
        key: Two such tensors.

    Returns:
        Four int64 tensors of uint32 values.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_NUM_ROUNDS):
        # The product wraps at 64 bits in two's complement; masking after the shift restores its upper half.
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> 32).bitwise_xor(c1 ^ k0).bitwise_and_(_MASK)
        c2 = (product_0 >> 32).bitwise_xor(c3 ^ k1).bitwise_and_(_MASK)
        c1 = product_1.bitwise_and_(_MASK)
        c3 = product_0.bitwise_and_(_MASK)
        k0 = (k0 + _KEY_STEP_0) & _MASK
        k1 = (k1 + _KEY_STEP_1) & _MASK
    return c0, c1, c2, c3


def random_bits_batch(
    seed: int,
    sample_indices: Index,
    epochs: Index,
    stream: int,
    count: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """uint32 words for several samples at once.

    Args:
        seed: The run's, 0 <= seed < 2**64.
        sample_indices: ``[B]`` the samples' indices in the dataset.
        epochs: ``[B]``, or one for all.
        stream: What the words are for.
        count: Words a sample.
        device: Where they are computed; the integers are the same everywhere.

    Returns:
        ``[B, count]`` int64 with values in [0, 2**32).

    Raises:
        ValueError: A seed, index or epoch is out of range, or the lengths differ.
    """
    words = _random_blocks(seed, sample_indices, epochs, stream, count, device)
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def random_uniform_batch(
    seed: int,
    sample_indices: Index,
    epochs: Index,
    stream: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """``[B, *shape]`` float32 in [0, 1), multiples of 2**-24; arguments as `random_bits_batch`."""
    bits = random_bits_batch(seed, sample_indices, epochs, stream, math.prod(shape), device)
    return (bits >> _FLOAT_BITS_DROPPED).to(torch.float32).mul_(_FLOAT_STEP).reshape(-1, *shape)


def random_normal_batch(
    seed: int,
    sample_indices: Index,
    epochs: Index,
    stream: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers by Box and Muller on consecutive pairs of words.

    Arguments as `random_bits_batch`, with one sample's shape in place of the count. No value exceeds 5.77.

    Returns:
        ``[B, *shape]`` float32, contiguous.
    """
    count = math.prod(shape)
    w0, w1, w2, w3 = _random_blocks(seed, sample_indices, epochs, stream, count, device)
    # 1 - uniform, in (0, 1]: its logarithm is finite.
    radius = torch.stack((w0, w2), dim=-1).bitwise_right_shift_(_FLOAT_BITS_DROPPED).add_(1).to(torch.float32)
    radius = radius.mul_(_FLOAT_STEP).log_().mul_(-2.0).sqrt_()
    angle = torch.stack((w1, w3), dim=-1).bitwise_right_shift_(_FLOAT_BITS_DROPPED).to(torch.float32)
    angle = angle.mul_(_FLOAT_STEP).mul_(2.0 * math.pi)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :count].reshape(-1, *shape)


def random_integer_batch(
    seed: int,
    sample_indices: Index,
    epochs: Index,
    stream: int,
    upper: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``[B]`` int64 in [0, upper), from the stream's first word by integer arithmetic alone.

    Raises:
        ValueError: upper is not in [1, 2**31], or as `random_bits_batch`.
    """
    if not 1 <= upper <= 1 << 31:
        raise ValueError(f"random_integer_batch: upper ({upper}) must be between 1 and 2**31")
    bits = random_bits_batch(seed, sample_indices, epochs, stream, 1, device)[:, 0]
    return (bits * upper) >> 32


def random_bits(
    seed: int,
    sample_index: int,
    epoch: int,
    stream: int,
    count: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``[count]`` uint32 words of one sample, as int64; see `random_bits_batch`."""
    return random_bits_batch(seed, sample_index, epoch, stream, count, device)[0]


def random_uniform(
    seed: int,
    sample_index: int,
    epoch: int,
    stream: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """``shape`` float32 in [0, 1) for one sample; see `random_uniform_batch`."""
    return random_uniform_batch(seed, sample_index, epoch, stream, shape, device)[0]


def random_normal(
    seed: int,
    sample_index: int,
    epoch: int,
    stream: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """``shape`` standard normal float32 numbers for one sample; see `random_normal_batch`."""
    return random_normal_batch(seed, sample_index, epoch, stream, shape, device)[0]


def counter_words(address: Address, device: torch.device | str) -> Tensor:
    """What a generator needs to know besides the block's number, one row a sample.

    Args:
        address: Which numbers.
        device: Where the result lives; nothing waits for it.

    Returns:
        ``[B, 5]`` int64 of uint32 values: the key's two words, then the counter's second to fourth.

    Raises:
        ValueError: A seed, index or epoch is out of range, or the lengths differ.
    """
    seed = address.seed
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"philox: seed ({seed}) must be between 0 and 2**64 - 1")
    samples, epochs = _numbers("sample index", address.sample_indices), _numbers("epoch", address.epochs)
    if len(epochs) not in (1, len(samples)):
        raise ValueError(f"philox: {len(epochs)} epochs for {len(samples)} samples")
    if len(epochs) == 1:
        epochs *= len(samples)
    rows = [
        (seed & _MASK, sample & _MASK, address.stream, epoch & _MASK, (sample >> 32) ^ (seed >> 32))
        for sample, epoch in zip(samples, epochs, strict=True)
    ]
    return to_device(torch.tensor(rows, dtype=torch.int64).reshape(-1, 5), device)


def _random_blocks(
    seed: int, sample_indices: Index, epochs: Index, stream: int, count: int, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each block, ``[B, blocks]`` each, blocks enough for count words."""
    words = counter_words(Address(seed, sample_indices, epochs, stream), device)
    key_0, key_1, *counter = words.split(1, dim=1)
    block = torch.arange(-(-count // _WORDS_PER_BLOCK), dtype=torch.int64, device=device)
    return philox_4x32((block.expand(words.shape[0], -1), *counter), (key_0, key_1))


def _numbers(name: str, values: Index) -> list[int]:
    numbers = [values] if isinstance(values, int) else list(values)
    smallest = min(numbers, default=0)
    if smallest < 0:
        raise ValueError(f"philox: {name} ({smallest}) must not be negative")
    return numbers
