"""The rules that judge claims: each describes itself, measures runs, and gives the verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import Evidence, NoVerdictError, Runs, Verdict
from bnexp.claims.values import NO_RUNS, Arm, Values, choices, mean_text, named
from bnexp.compare.arms import compare_run_times, crossing, horizon
from bnexp.compare.statistics import (
    FEWEST_PAIRS,
    Estimate,
    matched,
    mean_interval,
    pairing,
    prediction_interval,
    restricted_times,
    sign_flip_p,
    time_to,
    wilson_interval,
)
from bnexp.runs.record import RunRecord

SIGNIFICANT = 0.05
FEWEST = 3  # fewest seeds of an interval or a range
WIDEST = 0.5  # a wider prediction interval holds both a trained network's accuracy and chance
TEST = (
    "sign-flip permutation of the differences, seed by seed, Holm over the claims of the source, p < 0.05, and the 95% "
    "interval of the mean difference excludes 0"
)
Judgement = tuple[Verdict, str]


def both(runs: Runs, ours: Values, control: Values | float) -> tuple[list[float], list[float]]:
    """Return the values of `ours` and of `control` at their common seeds; a number stands for every seed's value.

    Raises NoVerdictError where no seed is common.
    """
    values = ours.of(runs)
    pairs = matched(values, control.of(runs) if isinstance(control, Values) else dict.fromkeys(values, control))
    if not pairs[0]:
        raise NoVerdictError(NO_RUNS)
    return pairs


def number_of(control: Values | float) -> float:
    """Return a control that is a published number, or 0 where it is another arm.

    This is added again to a difference from the control where a reader is shown it.
    """
    return 0.0 if isinstance(control, Values) else control


def of_difference(
    difference: Estimate, ours: Values, control: Values | float, detail: str, p: float | None = None
) -> Evidence:
    """Return the evidence of a mean paired difference, `ours` minus `control`, with the p-value of its test, if any."""
    return Evidence(difference, ours.scale, ours.unit, p, isinstance(control, Values), number_of(control), detail)


@dataclass(frozen=True)
class Directional:
    """The rule that `ours` is higher, or with `lower` lower, than `control`: another arm, or a published number."""

    ours: Values
    control: Values | float
    lower: bool = False

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"directional: {self.ours.label} is {'lower' if self.lower else 'higher'} than "
            f"{named(self.control, self.ours)}; {TEST}"
        )

    @property
    def zero(self) -> float:
        """The value that a reader is shown for a difference of zero: 0, or the published number in its unit."""
        return self.ours.scale * number_of(self.control)

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the mean paired difference and its p-value. Raises NoVerdictError without a common seed."""
        ours, control = both(runs, self.ours, self.control)
        differences = np.subtract(ours, control)
        detail = f"{mean_text(ours, self.ours)} against {mean_text(control, self.ours)}"
        gained = pairing(ours, control)
        if gained.correlation is not None:
            detail += f"; correlation of the pairs {gained.correlation:.2f}"
        detail += choices(runs, self.ours, self.control)
        difference, p = mean_interval(differences, random), sign_flip_p(differences, random)
        return of_difference(difference, self.ours, self.control, detail, p)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return the verdict and reason of `directional`."""
        return directional(evidence.measured, p, self.lower)


def directional(difference: Estimate, p: float | None, lower: bool) -> Judgement:
    """Judge a mean paired difference that a claim says is above 0, or with `lower` below 0; `p` is corrected (Holm).

    The verdict is inconclusive for fewer than 6 pairs, an interval that includes 0, or p ≥ 0.05.
    """
    if difference.n < FEWEST_PAIRS or p is None or difference.low is None or difference.high is None:
        return Verdict.INCONCLUSIVE, f"too few seeds: {difference.n} pairs, significance takes {FEWEST_PAIRS}"
    if difference.low <= 0 <= difference.high:
        return Verdict.INCONCLUSIVE, "the difference may be either way"
    if p >= SIGNIFICANT:
        return Verdict.INCONCLUSIVE, f"too few seeds for as many claims: p = {p:.2g} after Holm's correction"
    return (Verdict.REPRODUCED if (difference.mean < 0) == lower else Verdict.CONTRADICTED), ""


@dataclass(frozen=True)
class Numeric:
    """The rule that our runs agree with the `published` value of a single run, with an absolute `tolerance`."""

    ours: Values
    published: float
    tolerance: float

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"numeric: the published figure lies in the 95% prediction interval of one run of ours ({self.ours.label}),"
            f" or within {self.ours.scale * self.tolerance:g}{self.ours.unit} of our mean; inconclusive where the "
            f"interval is wider than {self.ours.scale * WIDEST:g}{self.ours.unit}"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the mean over seeds with the 95% prediction interval of one more run; NaN without runs."""
        return Evidence(prediction_interval(list(self.ours.of(runs).values())), self.ours.scale, self.ours.unit)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return reproduced where the published value is in the interval or within the tolerance of the mean.

        Otherwise the verdict is contradicted; but it is inconclusive for fewer than 3 seeds and, outside of the
        tolerance, for an interval wider than 0.5.
        """
        interval = evidence.measured
        if interval.n < FEWEST or interval.low is None or interval.high is None:
            return Verdict.INCONCLUSIVE, f"too few seeds: {interval.n}, an interval takes {FEWEST}"
        if abs(interval.mean - self.published) <= self.tolerance:
            return Verdict.REPRODUCED, ""
        if interval.high - interval.low > WIDEST:
            return Verdict.INCONCLUSIVE, "some seeds train and some do not: the interval holds everything"
        return (Verdict.REPRODUCED if interval.low <= self.published <= interval.high else Verdict.CONTRADICTED), ""


@dataclass(frozen=True)
class TimeToAccuracy:
    """The rule that an arm passes the validation accuracy `target` between the published steps `low` and `high`."""

    target: float
    arm: Arm
    low: float
    high: float

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"time to accuracy: {self.target:.0%} of validation accuracy is passed between the published steps "
            f"{self.low:,g} and {self.high:,g}, and this overlaps the range of our runs ({self.arm.label}; evaluations "
            "included on both sides, a run that never gets there counts as never)"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the mean over runs of min(step at which the target is reached, horizon).

        The horizon is a step until which all runs count as observed. The interval runs from the evaluation before the
        earliest run's step (the horizon where no run reaches the target) to the latest run's step (infinity where a run
        never reaches it). Raises NoVerdictError without runs.
        """
        arm_runs = self.arm.pick(runs)
        if not arm_runs:
            raise NoVerdictError(NO_RUNS)
        times = {run.seed: crossing(run, self.target) for run in arm_runs}
        until, never = horizon(arm_runs, "steps"), list(times.values()).count(None)
        between = [(before(run, time), time) for run in arm_runs if (time := times[run.seed]) is not None]
        earliest = min((first for first, _ in between), default=until)
        latest = math.inf if never else max(time for _, time in between)
        median = time_to(list(times.values())).median
        detail = (
            f"{len(arm_runs) - never} of {len(arm_runs)} get there, median step "
            f"{f'{median:,.0f}' if median else 'never'}; restricted mean of {until:,.0f} steps"
        )
        mean = float(np.mean(list(restricted_times(times, until).values())))
        return Evidence(Estimate(mean, earliest, latest, len(arm_runs)), unit="steps", detail=detail)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return reproduced where the range of the runs overlaps the published one, else contradicted.

        The verdict is inconclusive for fewer than 3 runs.
        """
        interval = evidence.measured
        assert interval.low is not None
        assert interval.high is not None
        if interval.n < FEWEST:
            return Verdict.INCONCLUSIVE, f"too few seeds: {interval.n}, a range takes {FEWEST}"
        overlap = interval.low < self.high and self.low <= interval.high  # the crossing comes after interval.low
        return (Verdict.REPRODUCED if overlap else Verdict.CONTRADICTED), ""


def before(run: RunRecord, step: float) -> float:
    """Return the step of the last evaluation before `step`, or 0; the accuracy was reached between the two."""
    return float(max((known for known in run.validation if known < step), default=0))


@dataclass(frozen=True)
class Sooner:
    """The rule that `ours` reaches the validation accuracy `target` sooner than `control`, in seconds or in `steps`."""

    target: float
    ours: Arm
    control: Arm
    steps: bool = False
    zero = 0.0

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"directional: restricted mean of the {'steps' if self.steps else 'seconds of training'} to "
            f"{self.target:.0%} of validation accuracy is lower for {self.ours.label} than for {self.control.label}, a "
            f"run that never gets there counting the horizon; {TEST}"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the mean paired difference of min(time, horizon) and its p-value; NaN without a common seed.

        Until the horizon all runs count as observed. Raises NoVerdictError where an arm has no runs.
        """
        ours, control, unit = self.ours.pick(runs), self.control.pick(runs), "steps" if self.steps else "seconds"
        if not (ours and control):
            raise NoVerdictError(NO_RUNS)
        panel = [*ours, *control]
        times = [compare_run_times((self.target, unit), arm, control, panel, random) for arm in (ours, control)]
        reached = " against ".join(
            f"{time.restricted.mean:,.4g} {unit} ({time.times.reached} of {time.times.n} there)"
            for time in times
            if time.restricted
        )
        difference = times[0].difference or Estimate(math.nan, None, None, 0)
        detail = f"{reached}; horizon {horizon(panel, unit):,.4g} {unit}{choices(runs, self.ours, self.control)}"
        return Evidence(difference, unit=unit, p=times[0].p, difference=True, detail=detail)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return the verdict and reason of `directional`, where lower is sooner."""
        return directional(evidence.measured, p, lower=True)


@dataclass(frozen=True)
class Share:
    """The rule about the share of seeds whose value is at least `threshold`.

    `most`: True says that it is above one half, False below, None that some seeds reach the threshold and some do not.
    With a `control`, the claim is inconclusive unless more than half of the control's seeds reach it.
    """

    values: Values
    threshold: float
    most: bool | None
    control: Values | None = None

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        event = f"{self.values.label} reaches {self.values.scale * self.threshold:g}{self.values.unit}"
        if self.most is None:
            return (
                f"rate: the share of seeds for which {event}, with its Wilson interval; reproduced where both outcomes "
                f"are seen, contradicted where one alone is, in {FEWEST_PAIRS} seeds or more, and the interval leaves "
                "out one half"
            )
        side = "above" if self.most else "below"
        given = f", where most of {self.control.label} does" if self.control else ""
        return (
            f"rate: the share of seeds for which {event} has its Wilson interval {side} one half{given}, in "
            f"{FEWEST_PAIRS} seeds or more"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the share of seeds with its Wilson interval. Raises NoVerdictError without values."""
        values = self.values.of(runs).values()
        reached = sum(value >= self.threshold for value in values)
        if not values:
            raise NoVerdictError(NO_RUNS)
        detail = f"{reached} of {len(values)} seeds{choices(runs, self.values)}"
        return Evidence(wilson_interval(reached, len(values)), 100, "%", detail=detail, problem=self.problem(runs))

    def problem(self, runs: Runs) -> str | None:
        """Return why no verdict can be given, that too few of the control's seeds reach the threshold, or None."""
        if self.control is None:
            return None
        reached = [value >= self.threshold for value in self.control.of(runs).values()]
        if sum(reached) > len(reached) / 2:
            return None
        return f"the control doesn't get there either: {sum(reached)} of {len(reached)} seeds of {self.control.label}"

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return reproduced where `most` is None and both outcomes occur; else compare the interval with one half.

        The verdict is then inconclusive for fewer than 6 seeds or an interval that includes one half, reproduced where
        the interval lies on the side that `most` says, and contradicted otherwise.
        """
        share = evidence.measured
        assert share.low is not None
        assert share.high is not None
        if self.most is None and 0 < share.mean < 1:
            return Verdict.REPRODUCED, ""
        if share.n < FEWEST_PAIRS:
            return Verdict.INCONCLUSIVE, f"too few seeds: {share.n}, a rate takes {FEWEST_PAIRS}"
        if share.low <= 0.5 <= share.high:
            return Verdict.INCONCLUSIVE, "the interval holds one half"
        return (Verdict.REPRODUCED if self.most is (share.low > 0.5) else Verdict.CONTRADICTED), ""


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
        bound = f"{self.ours.scale * self.margin:g}{self.ours.unit}"
        limits = f"above -{bound}" if self.one_sided else f"inside ±{bound}"
        return (
            f"equivalence: the 95% interval of the mean difference, {self.ours.label} minus "
            f"{named(self.control, self.ours)}, lies {limits}; contradicted where it lies wholly outside"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return the mean paired difference with its interval. Raises NoVerdictError without a common seed."""
        ours, control = both(runs, self.ours, self.control)
        detail = f"{mean_text(ours, self.ours)} against {mean_text(control, self.ours)}"
        detail += choices(runs, self.ours, self.control)
        return of_difference(mean_interval(np.subtract(ours, control), random), self.ours, self.control, detail)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return reproduced where the interval lies inside the margin, contradicted where it lies wholly outside.

        The verdict is inconclusive otherwise, and for fewer than 6 pairs.
        """
        interval = evidence.measured
        if interval.n < FEWEST_PAIRS or interval.low is None or interval.high is None:
            return Verdict.INCONCLUSIVE, f"too few seeds: {interval.n}, an equivalence takes {FEWEST_PAIRS}"
        if interval.low > -self.margin and (self.one_sided or interval.high < self.margin):
            return Verdict.REPRODUCED, ""
        outside = interval.high < -self.margin or (interval.low > self.margin and not self.one_sided)
        return (Verdict.CONTRADICTED, "") if outside else (Verdict.INCONCLUSIVE, "the interval spans the margin")


@dataclass(frozen=True)
class Exact:
    """The rule that an identity holds: `error` computes its largest error, which is at most `tolerance`."""

    error: Callable[[], float]
    tolerance: float = 1e-10

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return f"exact: both sides computed in float64 differ by at most {self.tolerance:g}"

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Compute the identity's largest error by `error`; `runs` and `random` are not used."""
        return Evidence(Estimate(self.error(), None, None, 1), detail="largest difference of any element")

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        """Return reproduced where the error is at most the tolerance, else contradicted."""
        return (Verdict.REPRODUCED if evidence.measured.mean <= self.tolerance else Verdict.CONTRADICTED), ""
