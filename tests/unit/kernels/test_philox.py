"""Philox against the Random123 vectors, and the properties that resume and layouts rely on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sama_kernels.philox import (
    philox_4x32,
    random_bits,
    random_bits_batch,
    random_integer_batch,
    random_normal,
    random_normal_batch,
    random_uniform,
    random_uniform_batch,
)
from sama_mega.diffusion.streams import Stream

# Random123's kat_vectors, "philox4x32 10": counter, key, expected.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def _philox_plain(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 with Python integers, written apart from the tensor code."""
    c, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(high >> 32) ^ c[1] ^ k[0], high % 2**32, (low >> 32) ^ c[3] ^ k[1], low % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    output = philox_4x32(
        [torch.tensor([word]) for word in _words(counter)], [torch.tensor([word]) for word in _words(key)]
    )
    assert [int(word) for word in output] == _words(expected)


def test_an_address_maps_to_counter_and_key_as_documented() -> None:
    seed, sample, epoch = 0x1234_5678_9ABC_DEF0, 0x0000_0007_0000_0009, 3
    bits = random_bits(seed, sample, epoch, Stream.SEMANTIC_NOISE, 11)
    expected: list[int] = []
    for block in range(3):
        expected += _philox_plain([block, 2, 3, 0x1234_5678 ^ 7], [0x9ABC_DEF0, 9])
    assert bits.tolist() == expected[:11]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**64 - 1),
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
    epoch=st.integers(0, 2**31),
    count=st.integers(1, 41),
)
def test_a_batch_is_its_samples(seed: int, samples: list[int], epoch: int, count: int) -> None:
    """The batch a sample lands in must not change a bit of its noise."""
    bits = random_bits_batch(seed, samples, epoch, Stream.LATENT_NOISE, count)
    normals = random_normal_batch(seed, samples, [epoch] * len(samples), Stream.LATENT_NOISE, [count])
    uniforms = random_uniform_batch(seed, samples, epoch, Stream.LATENT_NOISE, [count])
    for row, sample in enumerate(samples):
        assert torch.equal(bits[row], random_bits(seed, sample, epoch, Stream.LATENT_NOISE, count))
        assert torch.equal(normals[row], random_normal(seed, sample, epoch, Stream.LATENT_NOISE, [count]))
        assert torch.equal(uniforms[row], random_uniform(seed, sample, epoch, Stream.LATENT_NOISE, [count]))


def test_normals_are_box_muller_pairs_of_the_words() -> None:
    """Every word is used once; written apart, in float64."""
    words = random_bits(9, 4, 2, Stream.LATENT_NOISE, 402)
    expected: list[float] = []
    for first, second in words.view(-1, 2).tolist():
        radius = math.sqrt(-2 * math.log(((first >> 8) + 1) / 2**24))
        angle = 2 * math.pi * (second >> 8) / 2**24
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    normals = random_normal(9, 4, 2, Stream.LATENT_NOISE, [402])
    torch.testing.assert_close(normals, torch.tensor(expected), rtol=1e-4, atol=5e-6)


def test_a_longer_draw_starts_with_the_shorter() -> None:
    long = random_normal(5, 1, 0, Stream.LATENT_NOISE, [4099])
    assert torch.equal(random_normal(5, 1, 0, Stream.LATENT_NOISE, [37]), long[:37])


def test_every_part_of_the_address_matters() -> None:
    base = random_bits(1, 2, 3, Stream.TIMESTEP, 8)
    others = [
        random_bits(2, 2, 3, Stream.TIMESTEP, 8),
        random_bits(1 + 2**32, 2, 3, Stream.TIMESTEP, 8),
        random_bits(1, 4, 3, Stream.TIMESTEP, 8),
        random_bits(1, 2 + 2**32, 3, Stream.TIMESTEP, 8),
        random_bits(1, 2, 4, Stream.TIMESTEP, 8),
        random_bits(1, 2, 3, Stream.LATENT_NOISE, 8),
    ]
    for other in others:
        assert not bool((other == base).any())


def test_normals_are_standard_normal() -> None:
    x = random_normal_batch(0, list(range(50)), 0, Stream.LATENT_NOISE, [20_000]).double()
    assert x.dtype == torch.float64 and x.shape == (50, 20_000)
    assert abs(float(x.mean())) < 5e-3
    assert abs(float(x.var()) - 1) < 1e-2
    assert abs(float((x**4).mean()) - 3) < 0.05
    assert 4.5 < float(x.abs().max()) < 5.78
    neighbours = (x[:, 1:] * x[:, :-1]).mean()
    samples = (x[1:] * x[:-1]).mean()
    assert abs(float(neighbours)) < 5e-3 and abs(float(samples)) < 5e-3


def test_uniforms_fill_the_unit_interval() -> None:
    u = random_uniform(0, 0, 0, Stream.TEXT_DROPOUT, [100_000])
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u, 10, 0, 1)
    assert float((counts - 10_000).abs().max()) < 500


def test_integers_are_uniform_and_in_range() -> None:
    values = random_integer_batch(3, list(range(20_000)), 0, Stream.TIMESTEP, 1000)
    assert int(values.min()) >= 0 and int(values.max()) <= 999
    counts = torch.bincount(values // 100, minlength=10)
    assert int((counts - 2000).abs().max()) < 250


@pytest.mark.parametrize(
    ("seed", "samples", "epochs", "message"),
    [
        (-1, [0], [0], "seed"),
        (2**64, [0], [0], "seed"),
        (0, [-1], [0], "sample index"),
        (0, [0], [-1], "epoch"),
        (0, [0, 1, 2], [0, 1], "2 epochs for 3 samples"),
    ],
)
def test_bad_addresses_are_refused(seed: int, samples: list[int], epochs: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_bits_batch(seed, samples, epochs, Stream.TIMESTEP, 4)
