"""The rules that compare our runs with published figures: of single runs, of reruns by others, of times."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import Finding, NoVerdictError, Reading, Runs, Samples, Verdict
from bnexp.claims.prediction import (
    CHANCE,
    LOGIT,
    Scale,
    detectable_difference,
    detectable_run,
    mean_difference,
    prediction_interval,
    shares_differ,
    time_interval,
    too_few_inside,
    trained,
)
from bnexp.claims.rules import (
    contradicting_count,
    in_percent,
    numbers,
    outcome,
    points,
    read_ours,
    share_verdict,
    too_few,
)
from bnexp.claims.values import NO_RUNS, Arm, Values, in_unit
from bnexp.compare.arms import crossing
from bnexp.compare.statistics import Estimate, time_to, wilson_interval
from bnexp.runs.record import RunRecord

Random = np.random.Generator
WIDEST = 4.0  # largest factor between the ends of an interval of times by which a claim is judged


def holds(interval: Estimate, value: float) -> bool:
    """Return whether an interval holds a value."""
    return interval.low is not None and interval.high is not None and interval.low <= value <= interval.high


def width(interval: Estimate) -> float:
    """Return the width of an interval; infinity without one."""
    return math.inf if interval.low is None or interval.high is None else interval.high - interval.low


@dataclass(frozen=True)
class PublishedRun:
    """The rule that a `published` value of a single run agrees with ours.

    The interval of one more run of ours may be at most as wide as `limit`, and may not hold the figure `other`, that of
    the other arm, if the two differ by more. It is taken on `scale`; on that of accuracies, LOGIT, over the runs that
    train, and the share of these is shown.
    """

    ours: Values
    published: float
    limit: float
    other: float | None = None
    scale: Scale = LOGIT

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        bound = in_unit(self.limit, points(self.ours.unit))
        return (
            f"a published run: it lies in the 95% prediction interval of one run of ours ({self.ours.label}); "
            f"inconclusive where the interval is wider than {bound}, or holds the other arm's published figure"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the values of "ours"."""
        return read_ours(self.ours, runs)

    def kept(self, samples: Samples) -> list[float]:
        """Return our values, of accuracies those of the runs that train. Raises NoVerdictError where there are none."""
        values = numbers(samples, "ours")
        kept = list(map(float, trained(values))) if self.scale is LOGIT else values
        if not kept:
            raise NoVerdictError("none of the runs trains")
        return kept

    def problem(self, interval: Estimate) -> str:
        """Return why the prediction interval decides nothing, or ""."""
        if width(interval) > self.limit:
            return f"the interval of one run is wider than {in_unit(self.limit, points(self.ours.unit))}"
        apart = self.other is not None and abs(self.other - self.published) > self.limit
        if apart and self.other is not None and holds(interval, self.other):
            return "the interval would take the other arm's figure, too"
        return ""

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by whether the prediction interval holds the published value."""
        kept, n = self.kept(samples), len(numbers(samples, "ours"))
        interval = prediction_interval(kept, self.scale)
        if few := too_few(interval, self.ours.unit):
            return few
        inside = holds(interval, self.published)
        problem = self.problem(interval)
        verdict, why = outcome(inside and not problem, not inside and not problem, problem)
        return Finding(verdict, interval, self.ours.unit, why, detail=collapse_text(len(kept), n))

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say how far from our mean a published run would have contradicted the claim."""
        return in_unit(detectable_run(self.kept(samples), random, self.scale), points(self.ours.unit))


def collapse_text(kept: int, n: int) -> str:
    """Return as text which share of n runs trains, with its Wilson interval; "" where all of them do."""
    if kept == n:
        return ""
    share = in_percent(wilson_interval(kept, n))
    return f"of those that train: {kept} of {n} runs, {share.mean:.0f}% [{share.low:.0f}, {share.high:.0f}]"


@dataclass(frozen=True)
class PublishedSample(PublishedRun):
    """The rule that published runs, and `theirs`, reruns of them by others, agree with ours.

    `also` are further published values of the same cell. The means may differ by `margin`. `edited` are reruns of a
    network that was changed, which are shown and not counted.
    """

    theirs: Sequence[float] = ()
    margin: float = 0.0
    also: Sequence[float] = ()
    edited: Sequence[float] = ()

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        bound, margin = (in_unit(value, points(self.ours.unit)) for value in (self.limit, self.margin))
        return (
            f"a published run and its reruns: the run lies in the 95% prediction interval of one run of ours "
            f"({self.ours.label}), as do as many of {len(self.theirs)} reruns as 95% allows (binomial, 1%), and the "
            f"means differ by less than {margin} (two one-sided tests at 5%, Welch); contradicted where the 95% "
            "interval of the difference of the means lies wholly outside; inconclusive where the prediction interval "
            f"is wider than {bound}, or holds the other arm's published figure; runs at chance are counted apart"
        )

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by the prediction interval, the share of reruns in it, and the difference of the means."""
        kept, n, theirs = self.kept(samples), len(numbers(samples, "ours")), list(map(float, trained(self.theirs)))
        interval = prediction_interval(kept, LOGIT)
        if few := too_few(interval, self.ours.unit):
            return few
        if len(theirs) < 2:
            raise NoVerdictError("fewer than two of the reruns train")
        wide, narrow = mean_difference(kept, theirs), mean_difference(kept, theirs, confidence=0.9)
        assert wide.low is not None
        assert wide.high is not None
        contradicted = wide.low > self.margin or wide.high < -self.margin
        why = self.disagreement(interval, narrow, theirs) or self.shares_apart(len(kept), n, len(theirs))
        verdict, why = outcome(not why and not contradicted, contradicted, why)
        inside = sum(holds(interval, value) for value in theirs)
        detail = (
            f"{inside} of {len(theirs)} reruns inside; mean {wide.mean:+.2f} points from theirs "
            f"[{wide.low:+.2f}, {wide.high:+.2f}]"
        )
        if self.edited:
            more = [*theirs, *map(float, trained(self.edited))]
            detail += f"; with {len(self.edited)} edited reruns {mean_difference(kept, more).mean:+.2f} points"
        collapsed = collapse_text(len(kept), n)
        detail += f"; {collapsed}" if collapsed else ""
        return Finding(verdict, interval, self.ours.unit, why, theirs=prediction_interval(theirs, LOGIT), detail=detail)

    def disagreement(self, interval: Estimate, difference: Estimate, theirs: list[float]) -> str:
        """Return what keeps the samples from agreeing, or ""; `difference` has its 90% interval."""
        if problem := self.problem(interval):
            return problem
        if not all(holds(interval, value) for value in (self.published, *self.also)):
            return "the published run lies outside the interval of one run"
        inside = sum(holds(interval, value) for value in theirs)
        if too_few_inside(inside, len(theirs)):
            return f"{inside} of {len(theirs)} reruns lie inside the interval of one run"
        low, high = difference.low, difference.high
        if low is None or high is None or low < -self.margin or high > self.margin:
            return "the means may differ by more than the margin"
        return ""

    def shares_apart(self, kept: int, n: int, kept_of_theirs: int) -> str:
        """Return that our share of runs that train is not that of the reruns, or ""."""
        apart = shares_differ((kept, n), (kept_of_theirs, len(self.theirs)))
        return "another share of the runs trains" if apart else ""

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which difference of the means would have contradicted the claim."""
        size = self.margin + detectable_difference(self.kept(samples), trained(self.theirs), random)
        return in_unit(size, points(self.ours.unit))


# ---- networks that don't train


@dataclass(frozen=True)
class AtChance:
    """The rule that most runs end at chance, by a constant answer, as most of `theirs` do: accuracies in percent."""

    ours: Values
    theirs: Sequence[float]

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"at chance: the share of seeds with {self.ours.label} of at most {CHANCE:g}% has its Wilson interval "
            f"above one half, and doesn't differ from that of the {len(self.theirs)} reruns (Fisher's exact test, 5%); "
            "contradicted where the interval lies below one half"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the accuracies of "ours"."""
        return read_ours(self.ours, runs)

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by the share of runs at chance; the detail says which constant answers they give."""
        ours = numbers(samples, "ours")
        counts = [(sum(value <= CHANCE for value in values), len(values)) for values in (ours, self.theirs)]
        share, theirs = (wilson_interval(*each) for each in counts)
        verdict, why = share_verdict(share, most=True)
        if verdict is Verdict.REPRODUCED and shares_differ(*counts):
            verdict, why = Verdict.INCONCLUSIVE, "another share of the reruns is at chance"
        detail = f"ours end at {answers(ours)}; theirs at {answers(self.theirs)}"
        return Finding(verdict, in_percent(share), "%", why, theirs=in_percent(theirs), detail=detail)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which number of seeds at chance would have contradicted the claim."""
        return contradicting_count(len(samples["ours"]), most=True)


def answers(accuracies: Sequence[float]) -> str:
    """Return as text how many runs end with which accuracy: "9.80% (7), 11.35% (2)"."""
    return ", ".join(f"{value:.2f}% ({number})" for value, number in Counter(np.round(accuracies, 2)).most_common())


@dataclass(frozen=True)
class Divided:
    """The rule that it depends on the seed whether a run ends above chance, as among `theirs`."""

    ours: Values
    theirs: Sequence[float]

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        return (
            f"divided: some seeds end with {self.ours.label} above {CHANCE:g}% and some don't, and the share doesn't "
            f"differ from that of the {len(self.theirs)} reruns (Fisher's exact test, 5%); contradicted where all "
            "seeds end alike and the share differs"
        )

    def read(self, runs: Runs) -> Reading:
        """Return the accuracies of "ours"."""
        return read_ours(self.ours, runs)

    def counts(self, samples: Samples) -> list[tuple[int, int]]:
        """Return (runs above chance, runs) of ours and of theirs."""
        return [(len(trained(values)), len(values)) for values in (numbers(samples, "ours"), self.theirs)]

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by the two shares of runs above chance."""
        ours, theirs = self.counts(samples)
        apart, alike = shares_differ(ours, theirs), ours[0] in (0, ours[1])
        verdict, why = outcome(not apart and not alike, apart and alike, "as may be by chance, from these few runs")
        shares = [in_percent(wilson_interval(*each)) for each in (ours, theirs)]
        detail = f"{ours[0]} of {ours[1]} end above chance"
        return Finding(verdict, shares[0], "%", why, theirs=shares[1], detail=detail)

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which numbers of seeds above chance would have contradicted the claim."""
        (_, n), theirs = self.counts(samples)
        found = [str(k) for k in (0, n) if shares_differ((k, n), theirs)]
        return f"{' or '.join(found)} of {n} seeds" if found else ""


# ---- times


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
            f"{self.low:,g} and {self.high:,g}, and this overlaps the 95% prediction interval of one run of ours "
            f"({self.arm.label}; log-normal, never counts as censored); inconclusive where the interval's ends are "
            f"more than a factor of {WIDEST:g} apart, or fewer than half of the runs get there"
        )

    def read(self, runs: Runs) -> Reading:
        """Return each run's step at the target, infinity for never, the evaluation before it, and its last step."""
        arm_runs = self.arm.pick(runs)
        if not arm_runs:
            raise NoVerdictError(NO_RUNS)
        times = {run.seed: crossing(run, self.target) for run in arm_runs}
        return Reading(
            {
                "ours": {seed: math.inf if time is None else time for seed, time in times.items()},
                "before": {run.seed: before(run, times[run.seed]) for run in arm_runs},
                "end": {run.seed: float(run.config["steps"]) for run in arm_runs},
            }
        )

    def find(self, samples: Samples, random: Random) -> Finding:
        """Judge by whether the prediction interval overlaps the published range."""
        times = numbers(samples, "ours")
        reached = [time for time in times if math.isfinite(time)]
        median = time_to([time if math.isfinite(time) else None for time in times]).median
        detail = f"{len(reached)} of {len(times)} get there, median step {f'{median:,.0f}' if median else 'never'}"
        interval = self.interval(samples)
        if interval.low is None or interval.high is None:
            why = "fewer than half of the runs get there"
            return Finding(Verdict.INCONCLUSIVE, interval, "steps", why, detail=detail)
        if few := too_few(interval, "steps"):
            return few
        narrow = interval.high / interval.low <= WIDEST
        overlap = interval.low <= self.high and self.low <= interval.high
        why = f"the interval's ends are more than a factor of {WIDEST:g} apart"
        verdict, why = outcome(narrow and overlap, narrow and not overlap, why)
        return Finding(verdict, interval, "steps", why, detail=detail)

    def interval(self, samples: Samples) -> Estimate:
        """Return the prediction interval of a run's step."""
        return time_interval(*(list(samples[role].values()) for role in ("ours", "before", "end")))

    def detectable(self, samples: Samples, random: Random, tests: int) -> str:
        """Say which published steps would have contradicted the claim."""
        interval = self.interval(samples)
        if interval.low is None or interval.high is None:
            return ""
        return f"a step below {interval.low:,.0f} or above {interval.high:,.0f}"


def before(run: RunRecord, step: float | None) -> float:
    """Return the step of the last evaluation before `step`, or 0; the accuracy was reached between the two."""
    return float(max((known for known in run.validation if step is None or known < step), default=0))
