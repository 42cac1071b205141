"""Confidence intervals of mean losses, by resampling the losses of windows or of blocks of windows."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
FEWEST = 10  # values; the percentiles of fewer are far from the interval's ends
MOST_BLOCKS = 32
RESAMPLES, RESAMPLES_OF_FEW = 2000, 20_000  # of at most MOST_BLOCKS values, whose percentiles are far in the tail
AT_ONCE = 1 << 20  # indices drawn at once: 8 MB


def bootstrap_interval(
    values: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> tuple[float, float]:
    """Return the bootstrap interval that contains the true mean with a probability of about 95 %.

    Neighbouring windows of a text have similar losses. Resamples are therefore put together from runs of consecutive
    values, whose lengths are geometrically distributed around N^(1/3) and which continue at the start (the stationary
    bootstrap; Politis and Romano 1994, https://doi.org/10.1080/01621459.1994.10476870). The ends of the interval are
    percentiles of the resamples' means, widened as Student's t is wider than the normal distribution (Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789), with the number of runs as the number of observations: otherwise,
    intervals from 10 values would contain the mean in 85 % of the cases only.

    For the difference of two models, pass the differences of their losses on the same windows.

    Args:
        values: (N,) losses of windows or blocks in the order of the text, N >= 10.
        weights: (N,) number of tokens of each value; None if they are equal.
        seed: Seed of the resamples; the global random state is not used.
        resamples: Number of resamples; None for 2,000, or 20,000 if N <= 32.
    """
    count = len(values)
    assert count >= FEWEST
    weights = np.ones(count) if weights is None else weights
    if resamples is None:
        resamples = RESAMPLES_OF_FEW if count <= MOST_BLOCKS else RESAMPLES
    run_length = count ** (1 / 3)
    generator = np.random.default_rng(seed)
    positions = np.arange(count)
    means = []
    for first in range(0, resamples, max(1, AT_ONCE // count)):
        shape = (min(max(1, AT_ONCE // count), resamples - first), count)
        starts = generator.integers(count, size=shape)
        begins = generator.random(shape) < 1 / run_length
        begins[:, 0] = True
        begin = np.maximum.accumulate(np.where(begins, positions, 0), axis=1)  # position where the own run begins
        drawn = (np.take_along_axis(starts, begin, axis=1) + positions - begin) % count
        means.append((values * weights)[drawn].sum(1) / weights[drawn].sum(1))
    tail = _expanded_tail(count / run_length)
    low, high = np.quantile(np.concatenate(means), (tail, 1 - tail))
    return float(low), float(high)


def _expanded_tail(observations: float) -> float:
    """Return the probability below the interval: less than 2.5 %, so that its width is that of Student's t."""
    z, freedom = NormalDist().inv_cdf((1 + LEVEL) / 2), observations - 1
    # Quantile of t by its expansion in 1 / freedom (Abramowitz and Stegun 1964, 26.7.5).
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return NormalDist().cdf(-t * math.sqrt(observations / freedom))


def block_means(losses: list[float]) -> list[float]:
    """Return the means of at most 32 groups of consecutive windows; an empty list for fewer than 10 windows.

    The sizes of the groups differ by at most 1, because each mean counts equally.

    Args:
        losses: Mean loss of each window, in the order of the text.
    """
    if len(losses) < FEWEST:
        return []
    groups = np.array_split(np.array(losses), min(MOST_BLOCKS, len(losses)))
    return [float(group.mean()) for group in groups]
