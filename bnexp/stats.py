"""Arrays in, numbers out: intervals, paired differences, time to accuracy.

Every function that draws takes its generator, so equal input gives equal output.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
ROUNDING = 1e-12  # accuracies that differ by less are equal
FEWEST_PAIRS = 6  # the smallest two-sided sign-flip p at n pairs is 2 / 2ⁿ: 0.0625 at 5


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval; without one (None) where a single value was seen."""

    mean: float
    low: float | None
    high: float | None
    n: int


def mean_interval(values: ArrayLike, random: np.random.Generator) -> Estimate:
    """Mean over seeds with its BCa bootstrap interval (Efron 1987).

    One value has no interval; equal values have one of width 0, where the bootstrap's correction is 0 / 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Estimate(mean, None, None, len(sample))
    if np.allclose(sample, mean, rtol=0, atol=ROUNDING):
        return Estimate(mean, mean, mean, len(sample))
    method: Literal["BCa", "percentile"] = (
        "BCa" if len(sample) > 2 else "percentile"
    )  # the acceleration needs three values
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method=method, rng=random
    )
    return Estimate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), len(sample))


def sign_flip_p(differences: ArrayLike, random: np.random.Generator) -> float | None:
    """Two-sided p of paired differences under random signs: exact up to 2¹³ flips, else from 9,999 draws.

    None with fewer than two pairs, where nothing can be flipped.
    """
    sample = np.asarray(differences, dtype=np.float64)
    if len(sample) < 2:
        return None
    found = stats.permutation_test(
        (sample,), np.mean, permutation_type="samples", n_resamples=RESAMPLES, rng=random, vectorized=True
    )
    return float(found.pvalue)


@dataclass(frozen=True)
class TimeTo:
    """Steps to a target: the median over all seeds, where those that never got there count as never (None: the
    median is one of them), and how many got there.
    """

    median: float | None
    reached: int
    n: int


def time_to(steps: list[int | None]) -> TimeTo:
    """Median of right-censored times: half of the runs got there no later."""
    times = np.array([np.inf if step is None else step for step in steps])
    ordered = np.sort(times)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    median = None if np.isinf(high) else float((low + high) / 2)
    return TimeTo(median, int(np.isfinite(times).sum()), len(times))


@dataclass(frozen=True)
class Spread:
    """A value a round, their median, and its interval: `interval_words` says which."""

    median: float
    low: float
    high: float
    rounds: list[float]

    def words(self, digits: int) -> str:
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def spread(values: list[float]) -> Spread:
    ordered, rank = sorted(values), interval_rank(len(values))
    return Spread(float(np.median(ordered)), ordered[rank], ordered[-1 - rank], values)


def interval_rank(n: int) -> int:
    """How many of n values to leave out at each end, so that the interval covers the median in at least 95% of cases.
    0 also below 6 values, where all of them together cover it less often.
    """
    return max((rank for rank in range(n // 2) if coverage(n, rank) >= CONFIDENCE), default=0)


def coverage(n: int, rank: int) -> float:
    """Probability that n independent values, `rank` left out at each end, cover the median of their distribution."""
    return 1 - 2 * sum(math.comb(n, k) for k in range(rank + 1)) * 0.5**n


def interval_words(n: int) -> str:
    rank = interval_rank(n)
    if coverage(n, rank) < CONFIDENCE:
        return f"median of {n} rounds [lowest, highest]; an interval of 95% takes 6 rounds"
    values = "lowest and highest" if not rank else f"values {rank + 1} and {n - rank} in order"
    return f"median of {n} rounds [its {coverage(n, rank):.1%} interval by order statistics: {values}]"
