"""Rules on published figures, and the statistics behind them: coverage and level in simulations, verdicts by hand."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special, stats

from bnexp.claims.claim import Finding, NoVerdictError, Samples, Verdict
from bnexp.claims.prediction import (
    LOG,
    LOGIT,
    PLAIN,
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
from bnexp.claims.published import AtChance, Divided, PublishedRun, PublishedSample, TimeToAccuracy
from bnexp.claims.values import on_test, where
from bnexp.compare.statistics import Estimate, wilson_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]
NONE = where("norm=none")
VALUES = on_test(NONE)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def covered(intervals: list[Estimate], values: np.ndarray) -> float:
    """Share of intervals that hold their value."""
    held = [
        estimate.low <= value <= estimate.high
        for estimate, value in zip(intervals, values, strict=True)
        if estimate.low is not None and estimate.high is not None
    ]
    assert len(held) == len(values)
    return float(np.mean(held))


# ---- one more run


def test_prediction_interval_by_hand() -> None:
    """3 ± 2.776 · 1.5811 · √1.2"""
    estimate = prediction_interval([1, 2, 3, 4, 5])
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((3, 3 - 4.809, 3 + 4.809), abs=1e-3)


def test_prediction_of_one_or_equal_values() -> None:
    assert prediction_interval([0.5]) == Estimate(0.5, None, None, 1)
    assert prediction_interval([0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize("values", [[99.5, 99.9, 99.7, 99.2, 100.0], [0.0, 0.1, 0.4, 0.2], [99.0, 60.0, 98.0]])
def test_an_interval_of_accuracies_lies_between_0_and_100(values: list[float]) -> None:
    estimate = prediction_interval(values, LOGIT)
    assert estimate.low is not None
    assert estimate.high is not None
    assert 0 <= estimate.low < estimate.mean < estimate.high <= 100


def test_the_scale_of_the_logit() -> None:
    percent = np.array([1.0, 50.0, 90.0])
    assert LOGIT.forward(percent) == pytest.approx(np.log(percent / (100 - percent)))
    assert LOGIT.backward(LOGIT.forward(percent)) == pytest.approx(percent)


SKEWED: dict[str, tuple[Draw, Scale]] = {
    "normal": (lambda draw, n: draw.normal(97, 0.3, n), LOGIT),
    "normal, far from 100": (lambda draw, n: draw.normal(80, 2, n), LOGIT),
    "log-normal error": (lambda draw, n: 100 - 2 * draw.lognormal(0, 0.5, n), LOGIT),
    "log-normal accuracy": (lambda draw, n: 20 * draw.lognormal(0, 0.5, n).clip(0, 4.9), LOGIT),
    "log-normal factor": (lambda draw, n: draw.lognormal(0, 0.5, n), LOG),
    "normal difference": (lambda draw, n: draw.normal(0, 1, n), PLAIN),
}


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("name", SKEWED)
def test_coverage_of_a_next_run(name: str, n: int) -> None:
    draw, scale = SKEWED[name]
    generator = np.random.default_rng(3)
    samples = [draw(generator, n + 1) for _ in range(3000)]
    intervals = [prediction_interval(sample[:n], scale) for sample in samples]
    assert 0.93 <= covered(intervals, np.array([sample[n] for sample in samples])) <= 0.97


@pytest.mark.parametrize("n", [10, 40])
def test_coverage_where_a_tenth_collapses(n: int) -> None:
    """Two coverages: of a next run that trains, and of the share of runs that do."""
    generator = np.random.default_rng(4)
    samples = generator.normal(97, 0.3, (3000, n + 1))
    samples[:, :n] = np.where(generator.random((3000, n)) < 0.1, 9.8, samples[:, :n])
    kept = [trained(sample[:n]) for sample in samples]
    assert 0.93 <= covered([prediction_interval(each, LOGIT) for each in kept], samples[:, n]) <= 0.97
    shares = [wilson_interval(len(each), n) for each in kept]
    assert 0.92 <= covered(shares, np.full(3000, 0.9)) <= 0.99  # of a few numbers of seeds, so in steps


# ---- times


@pytest.mark.parametrize(
    ("n", "end"), [(10, 1e9), (30, 1e9), (10, 2_300.0), pytest.param(30, 1_284.0, marks=pytest.mark.extra)]
)
def test_coverage_of_a_next_time(n: int, end: float) -> None:
    """Log-normal times to an accuracy, evaluated every 10 steps; none, a fifth or two fifths of all are censored."""
    generator = np.random.default_rng(5)
    times = 1_000 * generator.lognormal(0, 1 if end < 1e9 else 0.2, (400, n + 1))
    grid = np.where(times > end, np.inf, 10 * np.ceil(times / 10))
    intervals = [time_interval(row[:n], row[:n] - 10, [end] * n) for row in grid]
    decided = [place for place, interval in enumerate(intervals) if interval.low is not None]
    assert len(decided) > 300
    assert 0.93 <= covered([intervals[place] for place in decided], times[decided, n]) <= 0.975


def test_a_time_is_known_to_an_evaluation_at_best() -> None:
    """All runs pass the accuracy between steps 100 and 150: one more may do so anywhere between."""
    interval = time_interval([150.0] * 10, [100.0] * 10, [2_000.0] * 10)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low <= 101
    assert interval.high >= 149
    assert interval.high < 200


def test_too_few_times_have_no_interval() -> None:
    never = math.inf
    assert time_interval([50.0, 60.0, never], [0.0] * 3, [100.0] * 3).low is None
    assert time_interval([50.0, 60.0, 70.0, *[never] * 4], [0.0] * 7, [100.0] * 7).low is None
    assert time_interval([50.0, 60.0, 70.0, *[never] * 3], [40.0, 50.0, 60.0, 0, 0, 0], [100.0] * 6).low is not None


# ---- two samples


@pytest.mark.parametrize(("ours", "theirs"), [(10, 5), (40, 13), (10, 22)])
def test_level_of_the_equivalence_of_two_means(ours: int, theirs: int) -> None:
    """At a true difference of the margin, two one-sided tests call the means equivalent in at most 5% of cases."""
    generator = np.random.default_rng(6)
    found = [
        mean_difference(generator.normal(97.25, 0.15, ours), generator.normal(97, 0.15, theirs), 0.9)
        for _ in range(2000)
    ]
    inside = [
        each.low is not None and each.high is not None and each.low > -0.25 and each.high < 0.25 for each in found
    ]
    assert 0.03 <= np.mean(inside) <= 0.062


@pytest.mark.parametrize("spread", [(0.15, 0.15), (0.1, 0.4)])
def test_coverage_of_a_difference_of_means(spread: tuple[float, float]) -> None:
    generator = np.random.default_rng(7)
    found = [
        mean_difference(generator.normal(1, spread[0], 10), generator.normal(0, spread[1], 5)) for _ in range(2000)
    ]
    assert 0.93 <= covered(found, np.ones(2000)) <= 0.97


def test_reruns_outside_of_an_interval() -> None:
    """Of 22 values 95% lie inside: P(at most 17) is 0.6%, P(at most 18) 2%."""
    assert stats.binom.cdf(17, 22, 0.95) < 0.01 < stats.binom.cdf(18, 22, 0.95)
    assert too_few_inside(17, 22)
    assert not too_few_inside(18, 22)


def test_shares_by_fishers_test() -> None:
    assert not shares_differ((9, 10), (7, 9))
    assert shares_differ((0, 10), (7, 9))


# ---- what could have been detected


def test_a_detectable_difference_is_detected_in_8_of_10_cases() -> None:
    ours, theirs = np.random.default_rng(8).normal(97, 0.2, 10), np.random.default_rng(9).normal(97, 0.2, 8)
    size = 0.25 + detectable_difference(ours, theirs, rng())
    generator = np.random.default_rng(10)
    found = [
        mean_difference(generator.normal(97 + size, ours.std(ddof=1), 10), generator.normal(97, theirs.std(ddof=1), 8))
        for _ in range(1000)
    ]
    assert 0.72 <= np.mean([each.low is not None and each.low > 0.25 for each in found]) <= 0.92


def test_a_detectable_run_lies_outside() -> None:
    ours = np.random.default_rng(8).normal(97, 0.2, 10)
    size = detectable_run(ours, rng(), LOGIT)
    generator = np.random.default_rng(11)
    intervals = [prediction_interval(generator.normal(97, ours.std(ddof=1), 10), LOGIT) for _ in range(1000)]
    assert 0.7 <= np.mean([each.low is not None and each.low > 97 - size for each in intervals]) <= 0.93


# ---- verdicts

OURS = [97.0, 97.1, 97.2, 97.05, 97.15, 97.1, 96.95, 97.0, 97.2, 97.1]


def samples(values: list[float]) -> Samples:
    return {"ours": dict(enumerate(values))}


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (97.1, Verdict.REPRODUCED),
        (97.25, Verdict.REPRODUCED),
        (97.5, Verdict.CONTRADICTED),
        (96.5, Verdict.CONTRADICTED),
    ],
)
def test_published_run(published: float, expected: Verdict) -> None:
    assert PublishedRun(VALUES, published, 0.5).find(samples(OURS), rng()).verdict == expected


def test_a_wide_interval_decides_nothing() -> None:
    found = PublishedRun(VALUES, 97.1, 0.3).find(samples(OURS), rng())
    assert (found.verdict, found.why) == (Verdict.INCONCLUSIVE, "the interval of one run is wider than 0.3 points")
    assert PublishedRun(VALUES, 99.0, 0.3).find(samples(OURS), rng()).verdict == Verdict.INCONCLUSIVE


def test_an_interval_that_would_take_the_other_arms_figure_decides_nothing() -> None:
    wide = [value + (-1) ** place for place, value in enumerate(OURS)]
    assert PublishedRun(VALUES, 95.5, 6, other=88.0).find(samples(wide), rng()).verdict == Verdict.REPRODUCED
    other = PublishedRun(VALUES, 88.0, 6, other=95.5).find(samples(wide), rng())
    assert other.why == "the interval would take the other arm's figure, too"


def test_collapsed_runs_are_counted_apart() -> None:
    found = PublishedRun(VALUES, 97.1, 0.5).find(samples([*OURS, 9.8, 9.8]), rng())
    assert found.verdict == Verdict.REPRODUCED
    assert found.detail == "of those that train: 10 of 12 runs, 83% [55, 95]"
    with pytest.raises(NoVerdictError, match="none of the runs trains"):
        PublishedRun(VALUES, 97.1, 0.5).find(samples([9.8] * 10), rng())


def test_a_number_that_is_no_accuracy() -> None:
    growth = [1.4, 1.5, 1.45, 1.48, 1.43, 1.47, 1.44]
    assert PublishedRun(VALUES, 1.467, 0.25, 1.0, LOG).find(samples(growth), rng()).verdict == Verdict.REPRODUCED
    assert PublishedRun(VALUES, 1.0, 0.25, 1.467, LOG).find(samples(growth), rng()).why.startswith("the interval would")


def cell(theirs: list[float], values: list[float], published: float = 97.1, margin: float = 0.25) -> Finding:
    return PublishedSample(VALUES, published, 0.5, theirs=theirs, margin=margin).find(samples(values), rng())


THEIRS = [97.0, 97.05, 97.1, 97.15, 97.2, 97.1]


def test_a_cell_whose_samples_agree() -> None:
    found = cell(THEIRS, OURS)
    assert found.verdict == Verdict.REPRODUCED
    assert "6 of 6 reruns inside" in found.detail
    assert found.theirs is not None
    assert found.theirs.mean == pytest.approx(np.mean(THEIRS))


def test_a_cell_whose_means_lie_apart_is_contradicted() -> None:
    assert cell([value + 1 for value in THEIRS], OURS).verdict == Verdict.CONTRADICTED
    assert cell([value - 1 for value in THEIRS], OURS).verdict == Verdict.CONTRADICTED
    assert cell([value + 1 for value in THEIRS], OURS, margin=3).verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("theirs", "published", "why"),
    [
        (THEIRS, 97.6, "the published run lies outside the interval of one run"),
        ([97.1, 97.5, 96.6, 97.5, 96.7, 97.6], 97.1, "1 of 6 reruns lie inside the interval of one run"),
        ([97.27, 97.0, 97.2], 97.1, "the means may differ by more than the margin"),
        ([*THEIRS, *[9.8] * 6], 97.1, "another share of the runs trains"),
    ],
)
def test_a_cell_that_agrees_in_part_decides_nothing(theirs: list[float], published: float, why: str) -> None:
    found = cell(theirs, OURS, published)
    assert (found.verdict, found.why) == (Verdict.INCONCLUSIVE, why)


def test_edited_reruns_are_shown_and_not_counted() -> None:
    rule = PublishedSample(VALUES, 97.1, 0.5, theirs=THEIRS, margin=0.25, edited=[90.0, 91.0, 9.8])
    found = rule.find(samples(OURS), rng())
    assert found.verdict == Verdict.REPRODUCED
    assert f"with 3 edited reruns {np.mean(OURS) - np.mean([*THEIRS, 90.0, 91.0]):+.2f} points" in found.detail


def test_a_cell_published_twice_has_to_hold_both() -> None:
    rule = PublishedSample(VALUES, 97.1, 0.5, theirs=THEIRS, margin=0.25, also=[98.0])
    assert rule.find(samples(OURS), rng()).why == "the published run lies outside the interval of one run"


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([9.8] * 10, Verdict.REPRODUCED),
        ([9.8] * 9 + [97.0], Verdict.REPRODUCED),
        ([97.0] * 10, Verdict.CONTRADICTED),
        ([9.8, 97.0] * 5, Verdict.INCONCLUSIVE),
        ([9.8] * 5, Verdict.INCONCLUSIVE),
    ],
)
def test_a_network_at_chance(ours: list[float], expected: Verdict) -> None:
    found = AtChance(VALUES, [9.8, 11.35, 9.8, 9.8, 11.35]).find(samples(ours), rng())
    assert found.verdict == expected
    assert found.detail.endswith("theirs at 9.80% (3), 11.35% (2)")


def test_a_network_at_chance_beside_reruns_that_train() -> None:
    assert AtChance(VALUES, [97.0] * 5).find(samples([9.8] * 10), rng()).verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("above", "expected"), [(8, Verdict.REPRODUCED), (0, Verdict.CONTRADICTED), (10, Verdict.INCONCLUSIVE)]
)
def test_a_divided_cell(above: int, expected: Verdict) -> None:
    """Of the reruns 7 of 9 end above chance: all of ten is what that share gives now and then, none of ten isn't."""
    rule = Divided(VALUES, [90.0] * 7 + [9.8] * 2)
    assert rule.find(samples([90.0] * above + [9.8] * (10 - above)), rng()).verdict == expected
    assert rule.detectable(samples([90.0] * 10), rng(), 1) == "0 of 10 seeds"


def times(steps: list[float], end: float = 2_000) -> Samples:
    return {
        "ours": dict(enumerate(steps)),
        "before": {seed: (end if math.isinf(step) else step - 10) for seed, step in enumerate(steps)},
        "end": dict.fromkeys(range(len(steps)), end),
    }


STEPS = [450.0, 480.0, 500.0, 510.0, 520.0, 490.0, 470.0, 530.0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (450, 550, Verdict.REPRODUCED),
        (560, 600, Verdict.REPRODUCED),
        (650, 800, Verdict.CONTRADICTED),
        (90, 110, Verdict.CONTRADICTED),
    ],
)
def test_published_step(low: float, high: float, expected: Verdict) -> None:
    assert TimeToAccuracy(0.9, NONE, low, high).find(times(STEPS), rng()).verdict == expected


def test_a_published_step_at_which_no_seed_is_there() -> None:
    """The first edition took step 100 as reproduced where all seeds are there at 150, evaluated every 50 steps."""
    found = TimeToAccuracy(0.7, NONE, 90, 110).find(times([130.0, 140.0, 150.0, 140.0, 130.0, 140.0, 150.0]), rng())
    assert found.verdict == Verdict.CONTRADICTED


def test_published_step_where_some_never_get_there() -> None:
    never = math.inf
    found = TimeToAccuracy(0.9, NONE, 1_700, 2_500).find(times([*[1_800.0] * 3, 1_900.0, 1_950.0, never, never]), rng())
    assert found.verdict == Verdict.REPRODUCED
    assert found.detail == "5 of 7 get there, median step 1,900"
    rare = TimeToAccuracy(0.9, NONE, 1_700, 2_500).find(times([1_800.0, 1_900.0, *[never] * 5]), rng())
    assert (rare.verdict, rare.why) == (Verdict.INCONCLUSIVE, "fewer than half of the runs get there")


def test_widely_scattered_steps_decide_nothing() -> None:
    found = TimeToAccuracy(0.9, NONE, 90, 110).find(times([100.0, 300.0, 900.0, 1_900.0, 200.0, 600.0, 50.0]), rng())
    assert found.why == "the interval's ends are more than a factor of 4 apart"


def test_scipy_has_the_same_logit() -> None:
    assert LOGIT.forward(np.array([97.0])) == pytest.approx(special.logit(0.97))
