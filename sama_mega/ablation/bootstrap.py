"""Intervals of means over clips, by a bootstrap that resamples clips within their kind.

Variants are compared clip by clip: the same held-out clips, the same seeds, so that what is hard about a clip cancels.
Seeds are averaged first: an interval says how much a mean depends on which clips were held out, not on the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over clips and seeds.

    Attributes:
        mean: Of all of them.
        low: Lower end of the interval.
        high: Upper end.
        by_seed: Mean over clips of each seed.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0

    @property
    def seeds_agree(self) -> bool:
        """Whether the means of all seeds have one sign."""
        return min(self.by_seed) > 0 or max(self.by_seed) < 0


def mean_interval(
    scores: ArrayLike, kinds: Sequence[str], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of scores and its bootstrap interval (percentiles).

    Every kind keeps its number of clips in every resample: which kinds there are was chosen, not drawn.

    Args:
        scores: ``[seeds, clips]``; NaN where a clip has no such score, which then has none for any seed.
        kinds: ``[clips]``, the kind of each clip.
        level: Share of resamples whose mean lies inside.
        resamples: How many.
        seed: Of the resampling.

    Raises:
        ValueError: Shapes do not fit, no clip has a score, or a clip has one for some seeds only.
    """
    table = np.asarray(scores, np.float64)
    if table.ndim != 2 or table.shape[1] != len(kinds):
        raise ValueError(f"scores {table.shape} must be [seeds, clips] of {len(kinds)} clips")
    missing = np.isnan(table)
    if (missing.any(axis=0) != missing.all(axis=0)).any():
        raise ValueError("a clip has a score for some seeds only")
    counted = ~missing.any(axis=0)
    if not counted.any():
        raise ValueError("no clip has a score")
    table, kept = table[:, counted], np.asarray(kinds)[counted]
    means = _resampled_means(table.mean(axis=0), kept, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(table.mean()), float(low), float(high), tuple(table.mean(axis=1).tolist()))


def paired_interval(
    ours: ArrayLike,
    baseline: ArrayLike,
    kinds: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean difference ``ours - baseline`` and its interval, clip by clip and seed by seed.

    Args:
        ours: ``[seeds, clips]``.
        baseline: Same shape, the same clips and seeds.
        kinds: ``[clips]``, the kind of each clip.
        level: See `mean_interval`.
        resamples: See `mean_interval`.
        seed: See `mean_interval`.

    Raises:
        ValueError: See `mean_interval`.
    """
    first, second = np.asarray(ours, np.float64), np.asarray(baseline, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"scores {first.shape} and {second.shape} are not of the same clips and seeds")
    return mean_interval(first - second, kinds, level=level, resamples=resamples, seed=seed)


def _resampled_means(
    values: NDArray[np.float64], kinds: NDArray[np.str_], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means ``[resamples]`` over as many clips of each kind as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(resamples)
    for kind in np.unique(kinds):
        own = values[kinds == kind]
        sums += own[rng.integers(0, len(own), (resamples, len(own)))].sum(axis=1)
    return sums / len(values)
