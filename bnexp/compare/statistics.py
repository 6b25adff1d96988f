"""Statistics over seeds: arrays in, numbers out.

`compare_values` and `compare_curves` compare arms given as plain dictionaries; the other functions are their parts.
Equal inputs give equal outputs: random numbers come from a generator that is passed in, or has a fixed seed.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
BATCH = 2**21  # values that are resampled at once: 16 MiB
ROUNDING = 1e-12  # accuracies that differ by less are equal
FEWEST_PAIRS = 6  # fewest of a test: n equal signs have the two-sided p-value 2 / 2ⁿ: for 5, 0.0625
FLAT = 0.01  # largest share of resamples without spread

Key = TypeVar("Key", bound=Hashable)
Array = NDArray[np.float64]
Random = np.random.Generator
BySeed = Mapping[int, float]  # seed → value
Times = Mapping[int, float | None]  # seed → time to a target, None where it was never reached
AccuracyByStep = Mapping[int, float] | Mapping[float, float]  # step (or second) → accuracy, in increasing order
CurveBySeed = Mapping[int, AccuracyByStep]


@dataclass(frozen=True)
class Estimate:
    """A mean or share of `n` values with its interval, of 95% unless stated; `low` and `high` are None without one."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def within(self, least: float, most: float) -> "Estimate":
        """Return the estimate with its interval, if any, cut to the possible values, from `least` to `most`."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))


# ---- means and shares


def mean_interval(values: ArrayLike, random: Random) -> Estimate:
    """Return the mean of `values` (n,) with its 95% confidence interval, that of `mean_test`."""
    return mean_test(values, random)[0]


def mean_test(values: ArrayLike, random: Random) -> tuple[Estimate, float | None]:
    """Return the mean of `values` (n,) with its 95% interval, and the two-sided p-value of a mean of 0.

    Both are of the bootstrap-t (Efron & Tibshirani 1993, §12.5): p < 0.05 where the interval excludes 0. With 10
    values, normal or log-normal with σ = 0.5, the interval holds the mean in 94 to 96% of cases. It is Student's t
    below 6 values and where `resampled_t` has none. p is None below 6 values, whose distribution can't be seen. Equal
    values have an interval of width 0 and the p-value of n equal signs; a single value has no interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, n = float(sample.mean()), len(sample)
    if n < 2:
        return Estimate(mean, None, None, n), None
    if np.allclose(sample, mean, rtol=0, atol=ROUNDING):
        p = 1.0 if abs(mean) < ROUNDING else smallest_p(n)
        return Estimate(mean, mean, mean, n), p if n >= FEWEST_PAIRS else None
    error = float(sample.std(ddof=1)) / math.sqrt(n)
    resampled = resampled_t(sample, random) if n >= FEWEST_PAIRS else None
    if resampled is None:
        half, p = t_quantile(n) * error, float(2 * stats.t.sf(abs(mean / error), n - 1))
        return Estimate(mean, mean - half, mean + half, n), p if n >= FEWEST_PAIRS else None
    low, high = np.quantile(resampled, [(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2])
    tail = min(np.sum(resampled <= mean / error), np.sum(resampled >= mean / error))
    p = min(1.0, 2 * (1 + int(tail)) / (1 + len(resampled)))
    return Estimate(mean, float(mean - low * error), float(mean - high * error), n), p


def resampled_t(sample: Array, random: Random) -> Array | None:
    """Return t = (mean* - mean) / standard error* of bootstrap resamples of `sample` (n,), those with a spread.

    Return None where more than 1 resample in 100 has no spread, as of values on a grid that are nearly all equal.
    """
    found = []
    for rows in np.array_split(np.arange(RESAMPLES), 1 + RESAMPLES * len(sample) // BATCH):
        drawn = sample[random.integers(len(sample), size=(len(rows), len(sample)))]
        error = drawn.std(axis=1, ddof=1) / math.sqrt(len(sample))
        spread = error > ROUNDING
        found.append((drawn.mean(axis=1) - sample.mean())[spread] / error[spread])
    t = np.concatenate(found)
    return t if len(t) >= (1 - FLAT) * RESAMPLES else None


def t_quantile(n: int) -> float:
    """Return the 97.5% quantile of Student's t distribution with n - 1 degrees of freedom."""
    return float(stats.t.isf((1 - CONFIDENCE) / 2, n - 1))


def interquartile_mean(values: ArrayLike) -> float:
    """Return the mean of the middle half of the sorted `values` (n,); a value across the edge of a quarter counts in
    part.

    From 4 values on, a single collapsed seed has no weight in it. Source: Agarwal et al. 2021, §4.3.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.diff(np.clip(edges, 0.25, 0.75))
    return float(weights @ ordered / weights.sum())


def wilson_interval(successes: int, n: int) -> Estimate:
    """Return the share successes / n with its 95% interval (Wilson 1927), whose width is above 0 also for 0 and n."""
    interval = stats.binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


# ---- paired differences


def smallest_p(pairs: int) -> float:
    """Return the p-value of pairs whose differences all have one sign: 2 / 2^pairs."""
    return float(2 / 2**pairs)


def holm(p_values: Mapping[Key, float | None]) -> dict[Key, float]:
    """Return the p-values adjusted for the number of tests (Holm 1979); keys whose value is None are left out.

    If those below 0.05 are called significant, the chance that any of them is a false positive is at most 5%.
    """
    tested = {key: p for key, p in p_values.items() if p is not None}
    adjusted, running = dict(tested), 0.0
    for rank, (key, p) in enumerate(sorted(tested.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[key] = running
    return adjusted


@dataclass(frozen=True)
class Pairing:
    """The gain from pairing: the correlation of two arms' values, and var(difference) / (var(ours) + var(control)).

    Both are None for fewer than 3 pairs, and where an arm's values are all equal.
    """

    correlation: float | None
    variance_ratio: float | None


def pairing(ours: ArrayLike, control: ArrayLike) -> Pairing:
    """Return the gain from pairing the values of two arms, both (n,) in the order of the seeds."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(control, dtype=np.float64)
    if len(a) < 3 or min(a.std(), b.std()) < ROUNDING:
        return Pairing(None, None)
    unpaired = a.var(ddof=1) + b.var(ddof=1)
    return Pairing(float(np.corrcoef(a, b)[0, 1]), float((a - b).var(ddof=1) / unpaired))


def matched(ours: BySeed, control: BySeed) -> tuple[list[float], list[float]]:
    """Return the values of both arms at the seeds that both have, in the order of `ours`."""
    seeds = [seed for seed in ours if seed in control]
    return [ours[seed] for seed in seeds], [control[seed] for seed in seeds]


@dataclass(frozen=True)
class ArmStatistics:
    """The statistics of an arm's values, alone and paired with the control's by seed.

    All are None for an arm without values; the paired ones also for the control itself and without a common seed, the
    p-values also with fewer than 6 common seeds.
    """

    mean: Estimate | None
    interquartile_mean: float | None
    difference: Estimate | None  # this arm minus the control, over the common seeds
    pairing: Pairing | None
    p: float | None
    p_holm: float | None = None  # p after Holm's correction over all arms that are compared


def compare_values(arms: Mapping[str, BySeed], control: str) -> dict[str, ArmStatistics]:
    """Compare all arms, {arm: {seed: value}}, with the arm `control`. Raises KeyError where it is not one of them."""
    results = {
        name: compare_arm(values, {} if name == control else arms[control], np.random.default_rng(0))
        for name, values in arms.items()
    }
    adjusted = holm({name: result.p for name, result in results.items()})
    return {name: replace(result, p_holm=adjusted.get(name)) for name, result in results.items()}


def compare_arm(values: BySeed, control: BySeed, random: Random) -> ArmStatistics:
    """Compare an arm's values with the control's by seed, without p_holm; `control` is empty for the control itself."""
    numbers, pairs = list(values.values()), matched(values, control)
    mean = mean_interval(numbers, random) if numbers else None
    difference, p = paired_difference(*pairs, random)
    middle = interquartile_mean(numbers) if numbers else None
    return ArmStatistics(mean, middle, difference, pairing(*pairs) if pairs[0] else None, p)


def paired_difference(ours: list[float], control: list[float], random: Random) -> tuple[Estimate | None, float | None]:
    """Return the mean of `ours` - `control`, both (n,), None for n = 0, and its p-value, None for n < 6."""
    return mean_test(np.subtract(ours, control), random) if ours else (None, None)


# ---- time to an accuracy, which runs may never reach


def first_crossing(curve: AccuracyByStep, target: float) -> float | None:
    """Return the first step (or second) of `curve` with an accuracy of at least `target`; None without one."""
    return next((step for step, accuracy in curve.items() if accuracy >= target), None)


@dataclass(frozen=True)
class Survival:
    """A Kaplan-Meier curve, a step function: from times[i] on, shares[i] of the runs have not reached the target.

    It begins with share 1 at time 0.
    """

    times: list[float]
    shares: list[float]


def kaplan_meier(times: list[float | None], ends: list[float]) -> Survival:
    """Return the Kaplan-Meier curve of `times` to a target, None for a run that never reached it (Kaplan & Meier 1958).

    `ends`, in the same order, says until when each run was observed; a run whose time is None is censored there.
    """
    reached = [time for time in times if time is not None]
    censored = [end for time, end in zip(times, ends, strict=True) if time is None]
    curve = stats.ecdf(stats.CensoredData(uncensored=reached, right=censored)).sf
    return Survival([0.0, *map(float, curve.quantiles)], [1.0, *map(float, curve.probabilities)])


def restricted_times(times: Times, horizon: float) -> dict[int, float]:
    """Return seed → min(time, horizon), which is the horizon for a run that never reaches the target.

    Where no run is censored before the horizon, their mean is the area under the Kaplan-Meier curve up to it: the
    restricted mean time (Royston & Parmar 2013).
    """
    return {seed: horizon if time is None else min(time, horizon) for seed, time in times.items()}


@dataclass(frozen=True)
class TimeTo:
    """The median time to a target over `n` runs, `reached` of which reached it; None (never) where at most half did."""

    median: float | None
    reached: int
    n: int


def time_to(times: list[float | None]) -> TimeTo:
    """Return the median of `times`, in which None, for a run that never reached the target, counts as infinite."""
    if not times:
        return TimeTo(None, 0, 0)
    median = float(np.median([math.inf if time is None else time for time in times]))
    return TimeTo(None if math.isinf(median) else median, len(times) - times.count(None), len(times))


@dataclass(frozen=True)
class TimeResult:
    """The time that an arm takes to the accuracy `target`, in `unit`: "steps" or "seconds" of training.

    `times` has the median. `horizon` is a time until which all compared runs count as observed, None without runs.
    `restricted` is the mean of min(time, horizon), `difference` the mean of this arm's minus the control's by seed, and
    `p` its p-value. `restricted` and `survival` are None for an arm without runs; `difference` and `p` also
    for the control itself and without a common seed, `p` also with fewer than 6.
    """

    target: float
    unit: str
    horizon: float | None
    times: TimeTo
    restricted: Estimate | None
    difference: Estimate | None
    p: float | None
    survival: Survival | None


def compare_curves(
    arms: Mapping[str, CurveBySeed], control: str, target: float, unit: str = "steps"
) -> dict[str, TimeResult]:
    """Compare how soon all arms, {arm: {seed: {step: accuracy}}}, reach the accuracy `target`, with the arm `control`.

    A run is observed up to its curve's last step; the earliest of these is the horizon. `unit` names what a step is.
    Raises KeyError where `control` is not one of the arms.
    """
    ends = {arm: {seed: max(curve) for seed, curve in curves.items()} for arm, curves in arms.items()}
    times: dict[str, Times] = {
        arm: {seed: first_crossing(curve, target) for seed, curve in curves.items()} for arm, curves in arms.items()
    }
    horizon = min((end for arm in ends.values() for end in arm.values()), default=None)
    results = {}
    for arm in arms:
        others: Times = {} if arm == control else times[control]
        results[arm] = compare_times((target, unit), times[arm], ends[arm], others, horizon, np.random.default_rng(0))
    return results


def compare_times(
    goal: tuple[float, str], times: Times, ends: BySeed, control: Times, horizon: float | None, random: Random
) -> TimeResult:
    """Compare an arm's times with the control's by seed; `control` is empty for the control itself.

    `goal` is (target accuracy, unit of the times); `ends` says until when each run was observed.
    """
    ours, others = ({} if horizon is None else restricted_times(group, horizon) for group in (times, control))
    restricted = mean_interval(list(ours.values()), random).within(0, horizon or 0) if ours else None
    difference, p = paired_difference(*matched(ours, others), random)
    reached = list(times.values())
    survival = kaplan_meier(reached, list(ends.values())) if reached else None
    return TimeResult(*goal, horizon, time_to(reached), restricted, difference, p, survival)


def curve_band(curves: CurveBySeed) -> tuple[Array, Array, Array, Array]:
    """Return the steps of all the curves, and the mean, lowest and highest accuracy at each step; all (steps,).

    A curve has its previous value at a step that it lacks: one that ends early keeps its last. All must begin at the
    same step.
    """
    steps = sorted({step for curve in curves.values() for step in curve})
    values = np.empty((len(curves), len(steps)))
    for row, curve in zip(values, curves.values(), strict=True):
        known = sorted(curve)
        row[:] = [curve[known[place]] for place in np.searchsorted(known, steps, side="right") - 1]
    return np.array(steps, dtype=np.float64), values.mean(0), values.min(0), values.max(0)
