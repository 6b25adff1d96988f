"""The rules that judge claims by comparing arms, or by shares of seeds: each describes itself, reads runs, and judges.

Those that judge single published figures are in published.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import Finding, NoVerdictError, Reading, Runs, Samples, Verdict
from bnexp.claims.prediction import CHANCE, detectable_mean
from bnexp.claims.values import NO_RUNS, Arm, Values, choices, in_unit
from bnexp.compare.arms import crossing, horizon
from bnexp.compare.statistics import (
    FEWEST_PAIRS,
    Estimate,
    matched,
    mean_interval,
    mean_test,
    pairing,
    restricted_times,
    wilson_interval,
)

Random = np.random.Generator
SIGNIFICANT = 0.05
TEST = (
    "the 95% bootstrap-t interval of the mean difference, seed by seed, excludes 0, and p < 0.05 after Holm's "
    "correction over the family"
)


def outcome(reproduced: bool, contradicted: bool, why: str) -> tuple[Verdict, str]:
    """Return the verdict, and `why` where it is inconclusive since neither of the two holds."""
    if reproduced or contradicted:
        return (Verdict.REPRODUCED if reproduced else Verdict.CONTRADICTED), ""
    return Verdict.INCONCLUSIVE, why


def too_few(measured: Estimate, unit: str = "") -> Finding | None:
    """Return the finding that there are too few seeds, or None where there are enough."""
    if measured.n >= FEWEST_PAIRS and measured.low is not None:
        return None
    return Finding(Verdict.INCONCLUSIVE, measured, unit, f"too few seeds: {measured.n}, a verdict takes {FEWEST_PAIRS}")


def numbers(samples: Samples, role: str) -> list[float]:
    """Return the values of a role. Raises NoVerdictError where there are none."""
    values = list(samples.get(role, {}).values())
    if not values:
        raise NoVerdictError(NO_RUNS)
    return values


def read_ours(values: Values, runs: Runs) -> Reading:
    """Return the values of "ours" alone."""
    return Reading({"ours": values.of(runs)}, choices(runs, values))


def pairs_of(samples: Samples) -> tuple[list[float], list[float]]:
    """Return the values of "ours" and "control" at their common seeds. Raises NoVerdictError without one."""
    ours, control = matched(samples["ours"], samples["control"])
    if not ours:
        raise NoVerdictError(NO_RUNS)
    return ours, control


def means_text(ours: list[float], control: list[float], unit: str) -> str:
    """Return both means as text and, of accuracies, how many seeds of each are at chance, if any."""
    text = f"{in_unit(float(np.mean(ours)), unit)} against {in_unit(float(np.mean(control)), unit)}"
    collapsed = [sum(value <= CHANCE for value in values) if unit == "%" else 0 for values in (ours, control)]
    return text + (f"; at chance {collapsed[0]} and {collapsed[1]} of {len(ours)} seeds" if any(collapsed) else "")


# ---- one arm against another


def better(samples: Samples, random: Random, unit: str, lower: bool) -> Finding:
    """Judge that the mean of "ours" is above that of "control", or with `lower` below it, pair by pair."""
    ours, control = pairs_of(samples)
    difference, p = mean_test(np.subtract(ours, control), random)
    if few := too_few(difference, unit):
        return few
    assert difference.low is not None
    assert difference.high is not None
    sides = difference.low > 0, difference.high < 0
    verdict, why = outcome(sides[lower], sides[not lower], "the difference may be either way")
    detail, gained = means_text(ours, control, unit), pairing(ours, control)
    if gained.correlation is not None:
        detail += f"; correlation of the pairs {gained.correlation:.2f}"
    return Finding(verdict, difference, unit, why, p, difference=True, detail=detail)


def detectable_against(samples: Samples, random: Random, tests: int, unit: str) -> str:
    """Say which mean difference in the other direction `better` would have called a contradiction."""
    size = detectable_mean(np.subtract(*pairs_of(samples)), random, tests)
    return f"{in_unit(size, points(unit))} the other way"


def points(unit: str) -> str:
    """Return the unit of a difference: points where values are in percent."""
    return "points" if unit == "%" else unit


@dataclass(frozen=True)
class Directional:
    """The rule that `ours` is higher, or with `lower` lower, than `control`, the values of another arm."""

    ours: Values
    control: Values
    lower: bool = False

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        side = "lower" if self.lower else "higher"
        return f"directional: {self.ours.label} is {side} than {self.control.label}; {TEST}"

    def read(self, runs: Runs) -> Reading:
        """Return the values of "ours" and "control"."""
        samples = {"ours": self.ours.of(runs), "control": self.control.of(runs)}
        return Reading(samples, choices(runs, self.ours, self.control))

    def find(self, samples: Samples, random: Random) -> Finding:
        """Return what `better` finds."""
        return better(samples, random, self.ours.unit, self.lower)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which difference in the other direction would have contradicted the claim."""
        return detectable_against(samples, random, tests, self.ours.unit)


@dataclass(frozen=True)
class Sooner:
    """The rule that `ours` reaches the validation accuracy `target` sooner than `control`, in seconds or in `steps`."""

    target: float
    ours: Arm
    control: Arm
    steps: bool = False

    @property
    def unit(self) -> str:
        """The unit of the times."""
        return "steps" if self.steps else "seconds"

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"directional: restricted mean of the {'steps' if self.steps else 'seconds of training'} to "
            f"{self.target:.0%} of validation accuracy is lower for {self.ours.label} than for {self.control.label}, a "
            f"run that never gets there counting the horizon; {TEST}"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the times of both arms, min(time, horizon), where the horizon is until when all runs were observed."""
        arms = [self.ours.pick(runs), self.control.pick(runs)]
        if not all(arms):
            raise NoVerdictError(NO_RUNS)
        end = horizon([*arms[0], *arms[1]], self.unit)
        times = [{run.seed: crossing(run, self.target, self.unit) for run in arm} for arm in arms]
        samples = {name: restricted_times(arm, end) for name, arm in zip(("ours", "control"), times, strict=True)}
        counts = [f"{len(arm) - list(arm.values()).count(None)} of {len(arm)}" for arm in times]
        remark = f"{counts[0]} against {counts[1]} get there, horizon {end:,.4g} {self.unit}"
        chosen = choices(runs, self.ours, self.control)
        return Reading(samples, f"{remark}; {chosen}" if chosen else remark)

    def find(self, samples: Samples, random: Random) -> Finding:
        """Return what `better` finds, where lower is sooner."""
        return better(samples, random, self.unit, lower=True)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which difference in the other direction would have contradicted the claim."""
        return detectable_against(samples, random, tests, self.unit)


@dataclass(frozen=True)
class Equivalent:
    """The rule that `ours` differs by less than `margin` from `control`, another arm or a published number.

    With `one_sided`, it may be higher by any amount.
    """

    ours: Values
    control: Values | float
    margin: float
    one_sided: bool = False

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        bound, unit = in_unit(self.margin, points(self.ours.unit)), self.ours.unit
        limits = f"above -{bound}" if self.one_sided else f"inside ±{bound}"
        named = self.control.label if isinstance(self.control, Values) else in_unit(self.control, unit)
        return (
            f"equivalence: the 95% bootstrap-t interval of the mean difference, {self.ours.label} minus {named}, lies "
            f"{limits}; contradicted where it lies wholly outside"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the values of "ours" and, where it is an arm, "control"."""
        samples = {"ours": self.ours.of(runs)}
        if isinstance(self.control, Values):
            samples["control"] = self.control.of(runs)
        return Reading(samples, choices(runs, self.ours, self.control))

    def errors(self, samples: Samples) -> list[float]:
        """Return the differences from the control, seed by seed."""
        if isinstance(self.control, Values):
            return [ours - control for ours, control in zip(*pairs_of(samples), strict=True)]
        return [value - self.control for value in numbers(samples, "ours")]

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by where the interval of the mean difference lies."""
        error, unit = mean_interval(self.errors(samples), random), self.ours.unit
        if few := too_few(error, unit):
            return few
        assert error.low is not None
        assert error.high is not None
        inside = error.low > -self.margin and (self.one_sided or error.high < self.margin)
        outside = error.high < -self.margin or (error.low > self.margin and not self.one_sided)
        verdict, why = outcome(inside, outside, "the interval spans the margin")
        if not isinstance(self.control, Values):
            shown = Estimate(error.mean + self.control, error.low + self.control, error.high + self.control, error.n)
            return Finding(verdict, shown, unit, why)
        detail = means_text(*pairs_of(samples), unit)
        return Finding(verdict, error, unit, why, difference=True, detail=detail)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which difference would have contradicted the claim."""
        size = self.margin + detectable_mean(self.errors(samples), random)
        return f"{in_unit(size, points(self.ours.unit))}{' less' if self.one_sided else ''}"


# ---- shares of seeds


@dataclass(frozen=True)
class Share:
    """The rule that of most seeds, or with `most` False of less than half, the value is at least `threshold`.

    With a `control`, the claim is inconclusive unless more than half of the control's seeds reach it.
    """

    values: Values
    threshold: float
    most: bool = True
    control: Values | None = None

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        given = f", where most of {self.control.label} does" if self.control else ""
        return (
            f"rate: the share of seeds for which {self.values.label} reaches "
            f"{in_unit(self.threshold, self.values.unit)} has its Wilson interval {'above' if self.most else 'below'} "
            f"one half{given}"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the values of "ours" and, if there is one, "control"."""
        samples = {"ours": self.values.of(runs)} | ({"control": self.control.of(runs)} if self.control else {})
        return Reading(samples, choices(runs, self.values))

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by where the Wilson interval lies."""
        reached = [value >= self.threshold for value in numbers(samples, "ours")]
        share = wilson_interval(sum(reached), len(reached))
        detail = f"{sum(reached)} of {len(reached)} seeds"
        verdict, why = share_verdict(share, self.most)
        if self.control is not None:
            there = [value >= self.threshold for value in numbers(samples, "control")]
            if sum(there) <= len(there) / 2:
                verdict = Verdict.INCONCLUSIVE
                why = f"the control doesn't get there either: {sum(there)} of {len(there)} seeds"
        return Finding(verdict, in_percent(share), "%", why, detail=detail)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which number of seeds would have contradicted the claim."""
        return contradicting_count(len(samples["ours"]), self.most)


def share_verdict(share: Estimate, most: bool) -> tuple[Verdict, str]:
    """Judge that a share is above one half, or with `most` False below, by its interval; also return why not."""
    assert share.low is not None
    assert share.high is not None
    if share.n < FEWEST_PAIRS:
        return Verdict.INCONCLUSIVE, f"too few seeds: {share.n}, a verdict takes {FEWEST_PAIRS}"
    sides = share.high < 0.5, share.low > 0.5
    return outcome(sides[most], sides[not most], "the interval holds one half")


def in_percent(share: Estimate) -> Estimate:
    """Return a share and its interval in percent."""
    assert share.low is not None
    assert share.high is not None
    return Estimate(100 * share.mean, 100 * share.low, 100 * share.high, share.n)


def contradicting_count(n: int, most: bool) -> str:
    """Say how many of n seeds would have contradicted that most reach a threshold, or with `most` False that few do."""
    counts = [k for k in range(n + 1) if share_verdict(wilson_interval(k, n), most)[0] is Verdict.CONTRADICTED]
    if not counts:
        return ""
    return f"{max(counts)} or fewer of {n} seeds" if most else f"{min(counts)} or more of {n} seeds"


# ---- identities


@dataclass(frozen=True)
class Exact:
    """The rule that an identity holds: `error` computes its largest error, or what `named` says, at most `tolerance`.

    It involves no runs and no chance, so claims of it are no evidence, and are listed apart.
    """

    error: Callable[[], float]
    tolerance: float = 1e-10
    named: str = "the largest error, computed in float64,"

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return f"exact: {self.named} is at most {self.tolerance:g}"

    def read(self, runs: Runs) -> Reading:
        """Compute the identity's largest error; `runs` are not used."""
        return Reading({"error": {0: self.error()}})

    def find(self, samples: Samples, random: Random) -> Finding:
        """Return reproduced where the error is at most the tolerance, else contradicted."""
        error = samples["error"][0]
        verdict = Verdict.REPRODUCED if error <= self.tolerance else Verdict.CONTRADICTED
        return Finding(verdict, Estimate(error, None, None, 1))

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which value would have contradicted the identity."""
        return f"a value above {self.tolerance:g}"
