"""Intervals, paired permutation tests, time to accuracy."""

import numpy as np
import pytest

from bnexp.stats import TimeTo, mean_interval, sign_flip_p, time_to


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_value_has_no_interval() -> None:
    estimate = mean_interval([0.7], random())
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.7, None, None, 1)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_values_have_an_interval_of_width_zero(n: int) -> None:
    estimate = mean_interval([0.5] * n, random())
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, n)


def test_two_values_span_their_interval() -> None:
    """A resample is both values the first or both the second with probability 1/4 each: the bounds are the values."""
    estimate = mean_interval([0.4, 0.8], random())
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.6, 0.4, 0.8))


@pytest.mark.parametrize("values", [[0.9, 0.9, 0.91], [0.1, 0.9, 0.9, 0.9], [1.0, 1.0, 1.0, 1.0, 1e-9], [3, 1, 2]])
def test_few_values_have_finite_bounds_around_the_mean(values: list[float]) -> None:
    estimate = mean_interval(values, random())
    assert estimate.low is not None
    assert estimate.high is not None
    rounding = 1e-12
    assert min(values) - rounding <= estimate.low <= estimate.mean <= estimate.high <= max(values) + rounding


def test_values_that_differ_by_rounding_have_an_interval_of_width_zero() -> None:
    """As paired differences of accuracies do: 0.95 - 0.93 is not 0.94 - 0.92."""
    estimate = mean_interval([0.9, 0.9, 0.9, np.nextafter(0.9, 1)], random())
    assert (estimate.low, estimate.high) == pytest.approx((0.9, 0.9))


def test_interval_of_a_large_normal_sample_is_the_textbook_one() -> None:
    sample = np.random.default_rng(1).normal(2, 3, 400)
    estimate = mean_interval(sample, random())
    half = 1.96 * sample.std(ddof=1) / np.sqrt(400)
    assert estimate.low == pytest.approx(sample.mean() - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(sample.mean() + half, abs=0.1 * half)


def test_coverage() -> None:
    """95% intervals of 20 normal values hold the true mean about 95 times in 100, a little less for a bootstrap."""
    samples = np.random.default_rng(2).normal(1, 1, (120, 20))
    held = 0
    for sample in samples:
        estimate = mean_interval(sample, random())
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= 1 <= estimate.high
    assert 0.87 <= held / len(samples) <= 0.99


def test_interval_follows_from_the_generator() -> None:
    values = [0.1, 0.5, 0.2, 0.8]
    assert mean_interval(values, random()) == mean_interval(values, random())


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_differences_of_one_sign_have_the_smallest_p(n: int, sign: int) -> None:
    differences = sign * np.arange(1.0, n + 1)
    assert sign_flip_p(differences, random()) == pytest.approx(2 / 2**n)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([3, 2, -1], 4 / 8),  # sums 6, 4 | 2, 0, 0, -2, -4, -6: two are at least 4
        ([4, 2, -1], 4 / 8),  # 7, 5 | 3, 1, …
        ([1, 2, 3, -0.5], 4 / 16),  # 6.5, 5.5 | 4.5, …
        ([5, 4, 3, 2, -1], 4 / 32),  # 15, 13 | 11, …
        ([1, 2, -3], 1.0),  # 0
        ([0, 0, 0, 0], 1.0),
    ],
)
def test_sign_flip_p_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences, random()) == pytest.approx(p)


def test_one_pair_has_no_p() -> None:
    assert sign_flip_p([1.0], random()) is None


def test_p_from_draws_agrees_with_the_exact_one() -> None:
    """Of 20 pairs there are 2²⁰ flips, of which 9,999 are drawn; a normal approximation is close at 20 pairs."""
    differences = np.random.default_rng(3).normal(0.3, 1, 20)
    z = differences.sum() / np.sqrt((differences**2).sum())
    p = sign_flip_p(differences, random())
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (200_000, 20))
    reference = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert 0.5 < abs(z) < 3
    assert p == pytest.approx(reference, abs=0.02)


@pytest.mark.parametrize(
    ("steps", "median", "reached"),
    [
        ([100], 100, 1),
        ([None], None, 0),
        ([None, None, None], None, 0),
        ([30, 10, 20], 20, 3),
        ([10, 40, 20, 30], 25, 4),
        ([10, None, 20], 20, 2),
        ([None, 10, None], None, 1),
        ([10, 20, 30, None], 25, 3),
        ([10, 20, None, None], None, 2),
        ([0, 0, None], 0, 2),
    ],
)
def test_time_to(steps: list[int | None], median: float | None, reached: int) -> None:
    assert time_to(steps) == TimeTo(median, reached, len(steps))
