"""Bootstrap intervals contain the true mean as often as they say; blocks are means of nearly equally many windows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt_lightning.evaluation.intervals import block_means, bootstrap_interval

Values = NDArray[np.float64]
SIMULATIONS = 300
NOISE = 3 * math.sqrt(0.95 * 0.05 / SIMULATIONS)  # three standard deviations of the binomial share


def gamma(generator: np.random.Generator, count: int) -> Values:
    """Skewed, as losses are; mean 6."""
    return generator.gamma(12, 0.5, count)


def correlated(generator: np.random.Generator, count: int) -> Values:
    """Neighbours correlate by 0.3; mean 0."""
    noise = generator.normal(size=count + 50)
    for place in range(1, len(noise)):
        noise[place] += 0.3 * noise[place - 1]
    return noise[50:]


@pytest.mark.parametrize(
    ("draw", "count", "mean", "least"),
    [
        (gamma, 10, 6.0, 0.95 - NOISE),
        (gamma, 32, 6.0, 0.95 - NOISE),
        (gamma, 100, 6.0, 0.95 - NOISE),
        (correlated, 100, 0.0, 0.91 - NOISE),  # 0.86 with resamples of single values
    ],
)
def test_the_interval_contains_the_true_mean_in_95_of_100_cases(
    draw: Callable[[np.random.Generator, int], Values], count: int, mean: float, least: float
) -> None:
    samples = [draw(np.random.default_rng(seed), count) for seed in range(SIMULATIONS)]

    intervals = [bootstrap_interval(values, resamples=500) for values in samples]

    share = np.mean([low <= mean <= high for low, high in intervals])
    assert least <= share <= 0.95 + NOISE


def test_the_width_is_that_of_the_normal_distribution_for_many_values() -> None:
    generator = np.random.default_rng(0)
    values, weights = generator.normal(5, 2, 3000), generator.integers(1, 9, 3000).astype(float)

    for weight in (np.ones(3000), weights):
        low, high = bootstrap_interval(values, weight)
        error = 2 * math.sqrt((weight**2).sum()) / weight.sum()
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
        assert (low + high) / 2 == pytest.approx(np.average(values, weights=weight), abs=0.1 * error)


@given(st.lists(st.floats(-9, 9), min_size=10, max_size=40), st.floats(0.1, 5), st.floats(-5, 5))
def test_the_interval_follows_scale_and_shift(values: list[float], scale: float, shift: float) -> None:
    low, high = bootstrap_interval(np.array(values), resamples=200)

    moved = bootstrap_interval(scale * np.array(values) + shift, np.full(len(values), 7.0), resamples=200)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-9)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_interval_depends_on_its_seed_and_on_no_other() -> None:
    values = np.arange(20.0)
    np.random.seed(1)  # the global generator, which must not be used
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]

    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0) != bootstrap_interval(values, seed=1)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("count", "resamples"), [(10, 20_000), (32, 20_000), (33, 2000)])
def test_few_values_are_resampled_more_often(count: int, resamples: int) -> None:
    values = np.random.default_rng(2).gamma(12, 0.5, count)

    assert bootstrap_interval(values) == bootstrap_interval(values, resamples=resamples)
    assert bootstrap_interval(values) != bootstrap_interval(values, resamples=resamples - 1)


@given(st.lists(st.floats(0, 20), min_size=10, max_size=200))
def test_the_sizes_of_blocks_differ_by_at_most_one(losses: list[float]) -> None:
    blocks = block_means(losses)

    count = min(32, len(losses))
    larger = len(losses) % count
    sizes = [len(losses) // count + (place < larger) for place in range(count)]
    remaining = iter(losses)
    assert blocks == pytest.approx([sum(next(remaining) for _ in range(size)) / size for size in sizes])


def test_few_windows_have_no_blocks() -> None:
    assert block_means([1.0] * 9) == []
    assert block_means([1.0] * 10) == [1.0] * 10
