"""Arrays in, numbers out: intervals, paired differences, time to accuracy.

Every function that draws takes its generator, so equal input gives equal output.
"""

import math
from dataclasses import dataclass

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
    """Mean over seeds with its BCa bootstrap interval (Efron 1987), its level expanded for small samples (Hesterberg
    2015, §3.3): at 10 values the plain one covers the mean of a normal distribution in 91% of cases, this one in 95%.
    Below 6 values Student's t: means of resampled values cannot leave the range of these, which covers too seldom.

    One value has no interval; equal values have one of width 0, where the bootstrap's correction is 0 / 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return Estimate(mean, None, None, n)
    if np.allclose(sample, mean, rtol=0, atol=ROUNDING):
        return Estimate(mean, mean, mean, n)
    if n < FEWEST_PAIRS:
        half = float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
        return Estimate(mean, mean - half, mean + half, n)
    tail = stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf((1 - CONFIDENCE) / 2, n - 1))
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, confidence_level=1 - 2 * tail, method="BCa", rng=random
    )
    return Estimate(mean, float(found.confidence_interval.low), float(found.confidence_interval.high), n)


def interquartile_mean(values: ArrayLike) -> float:
    """IQM: mean of the middle half, a quarter of the values left out at each end, fractions of a value by weight
    (Agarwal et al. 2021, §4.3). A collapsed seed doesn't move it.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.diff(np.clip(edges, 0.25, 0.75))
    return float(weights @ ordered / weights.sum())


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


def holm(p_values: list[float]) -> list[float]:
    """p adjusted for as many tests as there are values (Holm 1979), in their order: below 0.05 for some of them, the
    chance of a false one among those is below 5%.
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted


@dataclass(frozen=True)
class Pairing:
    """What pairing gained: the correlation of the pairs, and the variance of the mean difference as a multiple of
    what as many unpaired runs would give. None where an arm doesn't vary.
    """

    correlation: float | None
    variance_ratio: float | None


def pairing(ours: ArrayLike, control: ArrayLike) -> Pairing:
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if len(a) < 3 or min(a.std(), b.std()) < ROUNDING:
        return Pairing(None, None)
    unpaired = a.var(ddof=1) + b.var(ddof=1)
    return Pairing(float(np.corrcoef(a, b)[0, 1]), float((a - b).var(ddof=1) / unpaired))


def prediction_interval(values: ArrayLike) -> Estimate:
    """Mean, and where one more run falls in 95% of cases: mean ± t · s · √(1 + 1/n), for normal values; without
    bounds below two values.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return Estimate(mean, None, None, n)
    half = float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1) * sample.std(ddof=1) * math.sqrt(1 + 1 / n))
    return Estimate(mean, mean - half, mean + half, n)


def wilson_interval(successes: int, n: int) -> Estimate:
    """A share with its 95% interval (Wilson 1927), which stays within [0, 1] and has a width at 0 and n too."""
    found = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(found.low), float(found.high), n)


@dataclass(frozen=True)
class Survival:
    """Kaplan-Meier curve: the share that has not got there after `times`, from (0, 1) on, a step function."""

    times: list[float]
    shares: list[float]


def kaplan_meier(times: list[float | None], ends: list[float]) -> Survival:
    """Kaplan & Meier 1958. `ends`: until when each run was watched; one whose time is None is censored there."""
    reached = [time for time in times if time is not None]
    censored = [end for time, end in zip(times, ends, strict=True) if time is None]
    curve = stats.ecdf(stats.CensoredData(uncensored=reached, right=censored)).sf
    return Survival([0.0, *map(float, curve.quantiles)], [1.0, *map(float, curve.probabilities)])


def restricted_times(times: list[float | None], horizon: float) -> list[float]:
    """min(time, horizon) of each run, none of which may be censored before the horizon: so their mean is the area under
    the Kaplan-Meier curve up to it, the restricted mean time (Royston & Parmar 2013).
    """
    return [horizon if time is None else min(time, horizon) for time in times]


@dataclass(frozen=True)
class TimeTo:
    """Steps or seconds to a target: the median over all seeds, where those that never got there count as never (None:
    the median is one of them), and how many got there.
    """

    median: float | None
    reached: int
    n: int


def time_to(found: list[float | None]) -> TimeTo:
    """Median of right-censored times: half of the runs got there before; None where half of them or more never did."""
    if not found:
        return TimeTo(None, 0, 0)
    times = np.array([np.inf if time is None else time for time in found])
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
