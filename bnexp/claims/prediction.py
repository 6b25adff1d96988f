"""Statistics of claims: the interval of one more run, comparisons of two samples, and what could have been detected.

Arrays in, numbers out. Accuracies are in percent.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from bnexp.compare.statistics import CONFIDENCE, ROUNDING, Estimate, t_quantile

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

CHANCE = 15.0  # percent: a constant answer is right for 8.9 to 11.5% of MNIST's images, depending on the class
SMALLEST = 0.01  # percent: an accuracy of 0 or 100% is taken as this far from it, one image of 10,000
OFTEN = 0.8  # of the cases in which a deviation that is called detectable is detected
DRAWS = 1000  # resamples of these cases


# ---- one more run


@dataclass(frozen=True)
class Scale:
    """A transformation that makes values nearly normal, and its inverse."""

    forward: Function
    backward: Function


def logit(percent: Array) -> Array:
    """Return log(p / (1 - p)) of percentages, those of 0 and 100% taken as SMALLEST away from it."""
    odds: Array = special.logit(np.clip(percent, SMALLEST, 100 - SMALLEST) / 100)
    return odds


def percent_of(odds: Array) -> Array:
    """Return the percentages whose `logit` is `odds`."""
    percent: Array = 100 * special.expit(odds)
    return percent


def same(values: Array) -> Array:
    """Return the values as they are."""
    return values


PLAIN, LOG, LOGIT = Scale(same, same), Scale(np.log, np.exp), Scale(logit, percent_of)


def prediction_interval(values: ArrayLike, scale: Scale = PLAIN) -> Estimate:
    """Return the mean of `values` (n,), and the interval in which one more value falls in 95% of cases.

    On the transformed scale it is mean ± t · s · √(1 + 1/n), which assumes normal values there. A single value has no
    interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if n < 2:
        return Estimate(float(sample.mean()), None, None, n)
    ends = prediction_ends(sample[None], scale)[0]
    return Estimate(float(sample.mean()), float(ends[0]), float(ends[1]), n)


def prediction_ends(samples: Array, scale: Scale) -> Array:
    """Return the ends (rows, 2) of the prediction interval of each of `samples` (rows, n)."""
    moved = scale.forward(samples)
    n = samples.shape[1]
    half = t_quantile(n) * moved.std(axis=1, ddof=1) * math.sqrt(1 + 1 / n)
    return scale.backward(np.stack([moved.mean(axis=1) - half, moved.mean(axis=1) + half], axis=1))


def trained(accuracies: ArrayLike) -> Array:
    """Return those of accuracies (n,), in percent, that are above CHANCE: of the runs that did not collapse."""
    sample = np.asarray(accuracies, dtype=np.float64)
    return sample[sample > CHANCE]


def time_interval(times: Sequence[float], before: Sequence[float], ends: Sequence[float]) -> Estimate:
    """Return the median and the 95% prediction interval of the time to an accuracy, which runs may never reach.

    A run passes the accuracy between the evaluation at `before` and that at `times`; the middle is taken, or, where
    `times` is infinite, it is censored at `ends`. The logarithm of the time is taken as normal, and fitted by maximum
    likelihood; the interval is that of Student's t with as many degrees of freedom as runs that get there, minus 1, and
    its spread is at least that of a time anywhere between two evaluations. Fewer than 3 of these runs, or fewer than
    half of all, have no interval.
    """
    between = [(max(a, 1.0), b) for a, b in zip(before, times, strict=True) if math.isfinite(b)]
    reached = np.log([(a + b) / 2 for a, b in between])
    censored = np.log([end for end, time in zip(ends, times, strict=True) if not math.isfinite(time)])
    n, found = len(times), len(reached)
    if found < 3 or found < n / 2:
        return Estimate(math.inf, None, None, n)
    if len(censored):
        centre, spread = stats.norm.fit(stats.CensoredData(uncensored=reached, right=censored))
        spread *= math.sqrt(n / (n - 1))
    else:
        centre, spread = reached.mean(), reached.std(ddof=1)
    resolution = np.mean([math.log(b / a) for a, b in between]) / math.sqrt(12)
    half = t_quantile(found) * max(spread, resolution) * math.sqrt(1 + 1 / found)
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


# ---- two samples


def mean_difference(ours: ArrayLike, theirs: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of `ours` (n,) minus that of `theirs` (m,), with its interval (Welch 1947)."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    mean, n = float(a.mean() - b.mean()), len(a)
    if min(n, len(b)) < 2:
        return Estimate(mean, None, None, n)
    if max(a.std(), b.std()) < ROUNDING:
        return Estimate(mean, mean, mean, n)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    return Estimate(mean, float(interval.low), float(interval.high), n)


def too_few_inside(inside: int, n: int) -> bool:
    """Return whether fewer of n values are inside of a 95% interval than chance allows, at a level of 1%."""
    return bool(stats.binomtest(inside, n, CONFIDENCE, alternative="less").pvalue < 0.01)


def shares_differ(ours: tuple[int, int], theirs: tuple[int, int]) -> bool:
    """Return whether two shares, each as (successes, n), differ by Fisher's exact test at 5%."""
    table = np.array([[successes, n - successes] for successes, n in (ours, theirs)])
    return bool(stats.fisher_exact(table).pvalue < 1 - CONFIDENCE)


# ---- what could have been detected


def resamples(sample: Array, random: np.random.Generator) -> Array:
    """Return bootstrap resamples (DRAWS, n) of `sample` (n,), spread as its values are: by √(n / (n - 1)) more."""
    n, mean = len(sample), sample.mean()
    drawn: Array = mean + (sample[random.integers(n, size=(DRAWS, n))] - mean) * math.sqrt(n / max(1, n - 1))
    return drawn


def detectable_mean(values: ArrayLike, random: np.random.Generator, tests: int = 1) -> float:
    """Return how far beyond a limit the true mean has to be for its interval to lie beyond it too, in 8 of 10 cases.

    The interval is Student's t, its level corrected for a number of tests (Bonferroni); `values` (n,) give the spread.
    """
    sample = np.asarray(values, dtype=np.float64)
    drawn, n = resamples(sample, random), len(sample)
    half = stats.t.isf((1 - CONFIDENCE) / 2 / tests, n - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(n)
    return float(np.quantile(half + sample.mean() - drawn.mean(axis=1), OFTEN))


def detectable_difference(ours: ArrayLike, theirs: ArrayLike, random: np.random.Generator) -> float:
    """Return how far beyond a limit the difference of two means has to be to be detected, as in `detectable_mean`."""
    samples = [np.asarray(values, dtype=np.float64) for values in (ours, theirs)]
    a, b = (resamples(sample, random) for sample in samples)
    errors = [sample.var(axis=1, ddof=1) / sample.shape[1] for sample in (a, b)]
    half = t_quantile(min(a.shape[1], b.shape[1])) * np.sqrt(errors[0] + errors[1])
    noise = (a.mean(axis=1) - samples[0].mean()) - (b.mean(axis=1) - samples[1].mean())
    return float(np.quantile(half - noise, OFTEN))


def detectable_run(values: ArrayLike, random: np.random.Generator, scale: Scale) -> float:
    """Return how far from the mean a published run has to be to lie outside the prediction interval, in 8 of 10 cases.

    The interval is that of resamples of `values` (n,).
    """
    drawn = resamples(np.asarray(values, dtype=np.float64), random)
    ends = prediction_ends(drawn, scale)
    return float(np.quantile(np.abs(ends - drawn.mean(axis=1, keepdims=True)).max(axis=1), OFTEN))
