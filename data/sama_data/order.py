"""Which sample stands in which slot of a step: pure functions of a few integers.

Nothing here knows files or remembers where a run stopped: step k of any run with the same manifest and seed
draws the same samples, from whatever step it starts and on however many ranks it runs.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from sama_data.errors import DataError

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
# How many stand-ins for a bad sample are random, before every other sample is tried in turn.
RANDOM_ATTEMPTS = 16


def splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the SplitMix64 hash of each value, uint64 of the same shape.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    # Arrays wrap around in uint64 without a warning, as the hash wants.
    mixed = values + np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return mixed ^ (mixed >> np.uint64(31))


def hash_key(*parts: int) -> int:
    """Returns one 64-bit key of several integers; their order matters."""
    key = 0
    for part in parts:
        mixed = np.array([key ^ (part & _MASK)], dtype=np.uint64)
        key = int(splitmix64(mixed)[0])
    return key


def epoch_permutation(num_samples: int, seed: int, epoch: int, stream: int) -> NDArray[np.int64]:
    """Returns the order ``[num_samples]`` int64 in which an epoch visits the samples 0..num_samples-1.

    It sorts the hashes of the indices, so it depends on no random generator's version.
    """
    indices = np.arange(num_samples, dtype=np.uint64)
    hashes = splitmix64(indices ^ np.uint64(hash_key(seed, epoch, stream)))
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


class EpochOrder:
    """The endless sequence of one stream's samples: epoch after epoch, each in its own order.

    Draws are pure; the object keeps the orders of the latest epochs, because sorting millions of hashes takes
    about a second. Safe between threads.
    """

    _KEPT_EPOCHS = 2

    def __init__(self, num_samples: int, seed: int, stream: int) -> None:
        if num_samples < 1:
            raise DataError(f"stream {stream} has no samples to draw from")
        self._num_samples = num_samples
        self._seed = seed
        self._stream = stream
        self._lock = threading.Lock()
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def draws(self, step: int, per_step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns indices and epochs, both ``[per_step]`` int64, of a step's draws: see `step_draws`."""
        positions = step * per_step + np.arange(per_step, dtype=np.int64)
        epochs, places = np.divmod(positions, self._num_samples)
        indices = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1) if per_step else ():
            here = epochs == epoch
            indices[here] = self._permutation(epoch)[places[here]]
        return indices, epochs

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        with self._lock:
            if epoch not in self._permutations:
                while len(self._permutations) >= self._KEPT_EPOCHS:
                    del self._permutations[next(iter(self._permutations))]
                self._permutations[epoch] = epoch_permutation(self._num_samples, self._seed, epoch, self._stream)
            return self._permutations[epoch]


def step_draws(
    num_samples: int, per_step: int, seed: int, stream: int, step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns which samples a step draws from a stream, and in which epoch each of them stands.

    Position p = step * per_step + j of the endless sequence is place p % num_samples of epoch p //
    num_samples, so a step may span epochs, and every epoch visits every sample once.

    Args:
        num_samples: Samples of the stream, at least 1.
        per_step: Draws of a step, over all ranks.
        seed: The run's seed.
        stream: Tells streams apart that share a seed.
        step: The step, from 0.

    Returns:
        indices: ``[per_step]`` int64, in 0..num_samples-1.
        epochs: ``[per_step]`` int64.

    Raises:
        DataError: num_samples is 0.
    """
    return EpochOrder(num_samples, seed, stream).draws(step, per_step)


def replacement_index(num_samples: int, seed: int, epoch: int, index: int, attempt: int, stream: int) -> int:
    """Returns which sample stands in for sample `index` when it and the earlier attempts are bad.

    The first attempts jump at random, so that damaged neighbours are left behind; later ones walk on from the
    last jump, so that num_samples more attempts have seen every sample.
    """
    jumps = min(attempt, RANDOM_ATTEMPTS - 1)
    landed = hash_key(seed, epoch, index, jumps, stream) % num_samples
    return (landed + attempt - jumps) % num_samples
