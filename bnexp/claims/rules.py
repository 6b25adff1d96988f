"""How a claim is judged. Each rule says in words what it does, measures, and gives the verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from bnexp.claims.claim import Evidence, NoVerdictError, Runs, Verdict
from bnexp.claims.values import Arm, Values
from bnexp.comparison import compare_times, crossing, horizon, matched
from bnexp.runs import RunRecord
from bnexp.stats import (
    FEWEST_PAIRS,
    Estimate,
    mean_interval,
    pairing,
    prediction_interval,
    restricted_times,
    sign_flip_p,
    time_to,
    wilson_interval,
)

SIGNIFICANT = 0.05
FEWEST = 3  # values of an interval or a range
WIDEST = 0.5  # of a prediction interval of accuracies: beyond it, it holds both a trained network's and chance
TEST = (
    "sign-flip permutation of the differences, seed by seed, Holm over the claims of the source, p < 0.05, and the 95% "
    "interval of the mean difference excludes 0"
)
Judgement = tuple[Verdict, str]


class Against(TypedDict, total=False):
    difference: bool
    shift: float


def both(runs: Runs, ours: Values, control: Values | float) -> tuple[list[float], list[float]]:
    own = ours.of(runs)
    found = matched(own, control.of(runs) if isinstance(control, Values) else dict.fromkeys(own, control))
    if not found[0]:
        raise NoVerdictError("an arm has no complete runs")
    return found


def against(control: Values | float) -> Against:
    """How the reader is to see a difference: from another arm as such, from a number as what was measured."""
    return {"difference": True} if isinstance(control, Values) else {"shift": control}


def named(control: Values | float, beside: Values) -> str:
    """A number as the reader sees the values beside it."""
    return control.words if isinstance(control, Values) else f"{beside.scale * control:,.6g}{beside.unit}"


@dataclass(frozen=True)
class Directional:
    """One arm is higher (or `lower`) than the other, or than a published number."""

    ours: Values
    control: Values | float
    lower: bool = False

    @property
    def words(self) -> str:
        return (
            f"directional: {self.ours.words} is {'lower' if self.lower else 'higher'} than "
            f"{named(self.control, self.ours)}; {TEST}"
        )

    @property
    def zero(self) -> float:
        """What the reader sees where there is no difference."""
        return 0.0 if isinstance(self.control, Values) else self.ours.scale * self.control

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        ours, control = both(runs, self.ours, self.control)
        differences = np.subtract(ours, control)
        detail = f"{shown(ours, self.ours)} against {shown(control, self.ours)}"
        gained = pairing(ours, control)
        if gained.correlation is not None:
            detail += f"; correlation of the pairs {gained.correlation:.2f}"
        detail += told(runs, self.ours, self.control)
        return Evidence(
            mean_interval(differences, random),
            self.ours.scale,
            self.ours.unit,
            sign_flip_p(differences, random),
            detail=detail,
            **against(self.control),
        )

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        return directional(evidence.measured, p, self.lower)


def directional(found: Estimate, p: float | None, lower: bool) -> Judgement:
    if found.n < FEWEST_PAIRS or p is None or found.low is None or found.high is None:
        return Verdict.INCONCLUSIVE, f"too few seeds: {found.n} pairs, significance takes {FEWEST_PAIRS}"
    if found.low <= 0 <= found.high:
        return Verdict.INCONCLUSIVE, "the difference may be either way"
    if p >= SIGNIFICANT:
        return Verdict.INCONCLUSIVE, f"too few seeds for as many claims: p = {p:.2g} after Holm's correction"
    return (Verdict.REPRODUCED if (found.mean < 0) == lower else Verdict.CONTRADICTED), ""


def told(runs: Runs, *sides: Values | Arm | float) -> str:
    """What was chosen on the way, once."""
    found = dict.fromkeys(side.tell(runs) for side in sides if not isinstance(side, float | int))
    return "".join(f"; {words}" for words in found if words)


def shown(values: list[float], of: Values) -> str:
    return f"{of.scale * float(np.mean(values)):.4g}{of.unit and ' ' * (of.unit != '%')}{of.unit}"


@dataclass(frozen=True)
class Numeric:
    """A single published run."""

    ours: Values
    published: float
    tolerance: float

    @property
    def words(self) -> str:
        return (
            f"numeric: the published figure lies in the 95% prediction interval of one run of ours ({self.ours.words}),"
            f" or within {self.ours.scale * self.tolerance:g}{self.ours.unit} of our mean; inconclusive where the "
            f"interval is wider than {self.ours.scale * WIDEST:g}{self.ours.unit}"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        return Evidence(prediction_interval(list(self.ours.of(runs).values())), self.ours.scale, self.ours.unit)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        found = evidence.measured
        if found.n < FEWEST or found.low is None or found.high is None:
            return Verdict.INCONCLUSIVE, f"too few seeds: {found.n}, an interval takes {FEWEST}"
        if abs(found.mean - self.published) <= self.tolerance:
            return Verdict.REPRODUCED, ""
        if found.high - found.low > WIDEST:
            return Verdict.INCONCLUSIVE, "some seeds train and some do not: the interval holds everything"
        return (Verdict.REPRODUCED if found.low <= self.published <= found.high else Verdict.CONTRADICTED), ""


@dataclass(frozen=True)
class TimeToAccuracy:
    """A published crossing, between steps `low` and `high`."""

    target: float
    arm: Arm
    low: float
    high: float

    @property
    def words(self) -> str:
        return (
            f"time to accuracy: {self.target:.0%} of validation accuracy is passed between the published steps "
            f"{self.low:,g} and {self.high:,g}, and this overlaps the range of our runs ({self.arm.words}; evaluations "
            "included on both sides, a run that never gets there counts as never)"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        own = self.arm.pick(runs)
        if not own:
            raise NoVerdictError("an arm has no complete runs")
        times = {run.seed: crossing(run, self.target) for run in own}
        until, never = horizon(own, "steps"), list(times.values()).count(None)
        between = [(before(run, time), time) for run in own if (time := times[run.seed]) is not None]
        earliest = min((first for first, _ in between), default=until)
        latest = math.inf if never else max(time for _, time in between)
        median = time_to(list(times.values())).median
        detail = (
            f"{len(own) - never} of {len(own)} get there, median step {f'{median:,.0f}' if median else 'never'}; "
            f"restricted mean of {until:,.0f} steps"
        )
        mean = float(np.mean(restricted_times(list(times.values()), until)))
        return Evidence(Estimate(mean, earliest, latest, len(own)), unit="steps", detail=detail)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        found = evidence.measured
        assert found.low is not None
        assert found.high is not None
        if found.n < FEWEST:
            return Verdict.INCONCLUSIVE, f"too few seeds: {found.n}, a range takes {FEWEST}"
        overlap = found.low < self.high and self.low <= found.high  # it comes after the evaluation before
        return (Verdict.REPRODUCED if overlap else Verdict.CONTRADICTED), ""


def before(run: RunRecord, step: float) -> float:
    """The evaluation before: the crossing lies between."""
    return float(max((known for known in run.validation if known < step), default=0))


@dataclass(frozen=True)
class Sooner:
    """An arm reaches an accuracy in fewer seconds of training (or in fewer `steps`)."""

    target: float
    ours: Arm
    control: Arm
    steps: bool = False
    zero = 0.0

    @property
    def words(self) -> str:
        return (
            f"directional: restricted mean of the {'steps' if self.steps else 'seconds of training'} to "
            f"{self.target:.0%} of validation accuracy is lower for {self.ours.words} than for {self.control.words}, a "
            f"run that never gets there counting the horizon; {TEST}"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        ours, control, unit = self.ours.pick(runs), self.control.pick(runs), "steps" if self.steps else "seconds"
        if not (ours and control):
            raise NoVerdictError("an arm has no complete runs")
        panel = [*ours, *control]
        own, base = (compare_times(arm, control, panel, self.target, unit, random) for arm in (ours, control))
        reached = " against ".join(
            f"{found.restricted.mean:,.4g} {unit} ({found.times.reached} of {found.times.n} there)"
            for found in (own, base)
            if found.restricted
        )
        difference = own.difference or Estimate(math.nan, None, None, 0)
        detail = f"{reached}; horizon {horizon(panel, unit):,.4g} {unit}{told(runs, self.ours, self.control)}"
        return Evidence(difference, unit=unit, p=own.p, difference=True, detail=detail)

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        return directional(evidence.measured, p, lower=True)


@dataclass(frozen=True)
class Share:
    """The share of seeds whose value reaches a threshold: `most` of them, few, or (None) some and not others. Few says
    something only where most of a `control`'s do reach it.
    """

    values: Values
    threshold: float
    most: bool | None
    control: Values | None = None

    @property
    def words(self) -> str:
        event = f"{self.values.words} reaches {self.values.scale * self.threshold:g}{self.values.unit}"
        if self.most is None:
            return (
                f"rate: the share of seeds for which {event}, with its Wilson interval; reproduced where both outcomes "
                f"are seen, contradicted where one alone is, in {FEWEST_PAIRS} seeds or more, and the interval leaves "
                "out one half"
            )
        side = "above" if self.most else "below"
        given = f", where most of {self.control.words} does" if self.control else ""
        return (
            f"rate: the share of seeds for which {event} has its Wilson interval {side} one half{given}, in "
            f"{FEWEST_PAIRS} seeds or more"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        values = self.values.of(runs).values()
        reached = sum(value >= self.threshold for value in values)
        if not values:
            raise NoVerdictError("an arm has no complete runs")
        detail = f"{reached} of {len(values)} seeds{told(runs, self.values)}"
        return Evidence(wilson_interval(reached, len(values)), 100, "%", detail=detail, problem=self.problem(runs))

    def problem(self, runs: Runs) -> str | None:
        if self.control is None:
            return None
        reached = [value >= self.threshold for value in self.control.of(runs).values()]
        if sum(reached) > len(reached) / 2:
            return None
        return f"the control doesn't get there either: {sum(reached)} of {len(reached)} seeds of {self.control.words}"

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
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
    """As the other arm, or as a published number, within a margin; `one_sided`: not worse by more than that."""

    ours: Values
    control: Values | float
    margin: float
    one_sided: bool = False

    @property
    def words(self) -> str:
        bound = f"{self.ours.scale * self.margin:g}{self.ours.unit}"
        limits = f"above -{bound}" if self.one_sided else f"inside ±{bound}"
        return (
            f"equivalence: the 95% interval of the mean difference, {self.ours.words} minus "
            f"{named(self.control, self.ours)}, lies {limits}; contradicted where it lies wholly outside"
        )

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        ours, control = both(runs, self.ours, self.control)
        detail = f"{shown(ours, self.ours)} against {shown(control, self.ours)}{told(runs, self.ours, self.control)}"
        found = mean_interval(np.subtract(ours, control), random)
        return Evidence(found, self.ours.scale, self.ours.unit, detail=detail, **against(self.control))

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        found = evidence.measured
        if found.n < FEWEST_PAIRS or found.low is None or found.high is None:
            return Verdict.INCONCLUSIVE, f"too few seeds: {found.n}, an equivalence takes {FEWEST_PAIRS}"
        if found.low > -self.margin and (self.one_sided or found.high < self.margin):
            return Verdict.REPRODUCED, ""
        outside = found.high < -self.margin or (found.low > self.margin and not self.one_sided)
        return (Verdict.CONTRADICTED, "") if outside else (Verdict.INCONCLUSIVE, "the interval spans the margin")


@dataclass(frozen=True)
class Exact:
    """An identity: the largest error over its elements, in float64."""

    error: Callable[[], float]
    tolerance: float = 1e-10

    @property
    def words(self) -> str:
        return f"exact: both sides computed in float64 differ by at most {self.tolerance:g}"

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        return Evidence(Estimate(self.error(), None, None, 1), detail="largest difference of any element")

    def judge(self, evidence: Evidence, p: float | None) -> Judgement:
        return (Verdict.REPRODUCED if evidence.measured.mean <= self.tolerance else Verdict.CONTRADICTED), ""
