"""Intervals, tests of paired differences, time to accuracy; arms as plain arrays, against scipy and run directories."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import Bnexp
from scipy import stats

from bnexp.compare.statistics import (
    Estimate,
    Pairing,
    TimeTo,
    compare_curves,
    compare_values,
    curve_band,
    holm,
    interquartile_mean,
    kaplan_meier,
    mean_interval,
    mean_test,
    pairing,
    restricted_times,
    time_to,
    wilson_interval,
)
from bnexp.runs.record import find_runs


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_value_has_no_interval() -> None:
    estimate = mean_interval([0.7], random())
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.7, None, None, 1)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_equal_values_have_an_interval_of_width_zero(n: int) -> None:
    estimate = mean_interval([0.5] * n, random())
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, n)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776)])
def test_few_values_have_students_interval(n: int, t: float) -> None:
    """The table's t at 97.5% and n - 1 degrees of freedom."""
    sample = np.random.default_rng(5).normal(2, 3, n)
    estimate = mean_interval(sample, random())
    half = t * sample.std(ddof=1) / np.sqrt(n)
    assert estimate.low == pytest.approx(sample.mean() - half, rel=1e-3)
    assert estimate.high == pytest.approx(sample.mean() + half, rel=1e-3)


@pytest.mark.parametrize("values", [[0.9, 0.9, 0.91, 0.9, 0.9, 0.9], [1.0] * 6 + [1e-9], [3, 1, 2, 5, 4, 6]])
def test_bounds_are_finite_and_around_the_mean(values: list[float]) -> None:
    estimate = mean_interval(values, random())
    assert estimate.low is not None
    assert estimate.high is not None
    assert -np.inf < estimate.low <= estimate.mean <= estimate.high < np.inf


def test_an_interval_is_cut_to_what_is_possible() -> None:
    """Accuracies of which one is far below the others: the interval alone would reach above 1."""
    estimate = mean_interval([0.99, 0.98, 0.99, 0.97, 0.99, 0.5], random())
    assert estimate.high is not None
    assert estimate.high > 1
    assert estimate.within(0, 1).high == 1
    assert Estimate(0.5, None, None, 1).within(0, 1) == Estimate(0.5, None, None, 1)


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


DRAWS = {
    "normal": (lambda draw, n: draw.normal(1, 1, n), 1.0),
    "log-normal": (lambda draw, n: draw.lognormal(0, 0.5, n), float(np.exp(0.125))),
    "minus log-normal": (lambda draw, n: -draw.lognormal(0, 0.5, n), -float(np.exp(0.125))),
}


@pytest.mark.parametrize("n", [2, 5])
def test_coverage_of_the_mean_of_few_normal_values(n: int) -> None:
    samples = np.random.default_rng(2).normal(1, 1, (2000, n))
    assert 0.94 <= held([mean_interval(sample, random()) for sample in samples], [1.0] * 2000) <= 0.96


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("name", DRAWS)
def test_coverage_of_a_mean_and_level_of_its_test(name: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval holds the true mean in 94 to 96% of cases, and the test at 5% rejects it in 4 to 6.5%."""
    monkeypatch.setattr("bnexp.compare.statistics.RESAMPLES", 999)
    draw, mean = DRAWS[name]
    generator = np.random.default_rng(2)
    tested = [mean_test(draw(generator, n) - mean, random()) for _ in range(2000)]
    assert 0.935 <= held([estimate for estimate, _ in tested], [0.0] * 2000) <= 0.96
    assert 0.04 <= np.mean([p is not None and p < 0.05 for _, p in tested]) <= 0.065


def test_level_for_values_on_a_grid() -> None:
    """As the number of learning rates that train: Student's t, where too many resamples have no spread."""
    samples = np.random.default_rng(2).choice([0.0, 0.0, 0.0, 0.0, 1.0, -1.0], (2000, 10))
    p = [mean_test(sample, random())[1] for sample in samples]
    assert 0.02 <= np.mean([each is not None and each < 0.05 for each in p]) <= 0.065


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_coverage_of_wilson_intervals(share: float) -> None:
    draws = np.random.default_rng(4).binomial(40, share, 1000)
    intervals = {draw: wilson_interval(draw, 40) for draw in {*draws.tolist()}}
    assert 0.92 <= held([intervals[draw] for draw in draws.tolist()], [share] * 1000) <= 0.975


def held(intervals: list[Estimate], truths: list[float]) -> float:
    """Share of intervals that hold the truth."""
    inside = [
        e.low <= truth <= e.high
        for e, truth in zip(intervals, truths, strict=True)
        if e.low is not None and e.high is not None
    ]
    assert len(inside) == len(intervals)
    return float(np.mean(inside))


def test_interval_follows_from_the_generator() -> None:
    values = [0.1, 0.5, 0.2, 0.8, 0.4, 0.6]
    assert mean_interval(values, random()) == mean_interval(values, random())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_than_six_values_have_no_p(n: int) -> None:
    assert mean_test(np.arange(1.0, n + 1), random())[1] is None
    assert mean_test([1.0] * n, random())[1] is None


@pytest.mark.parametrize("sign", [1, -1])
def test_equal_differences_have_the_p_of_equal_signs(sign: int) -> None:
    assert mean_test([sign * 0.5] * 7, random())[1] == 2 / 2**7
    assert mean_test([0.0] * 7, random())[1] == 1


def test_p_of_a_large_normal_sample_is_the_textbook_one() -> None:
    sample = np.random.default_rng(3).normal(0.1, 1, 400)
    assert mean_test(sample, random())[1] == pytest.approx(stats.ttest_1samp(sample, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("shift", np.linspace(-1.2, 1.2, 9))
def test_p_is_below_5_percent_where_the_interval_excludes_0(shift: float) -> None:
    estimate, p = mean_test(np.random.default_rng(6).lognormal(0, 0.7, 12) - 1 + shift, random())
    assert p is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert (p < 0.05) == (not estimate.low <= 0 <= estimate.high)


def test_bootstrap_t_against_scipy() -> None:
    """Studentized resamples drawn by scipy, whose own bootstrap has no such interval."""
    sample = np.random.default_rng(7).lognormal(0, 0.5, 15)
    drawn = stats.bootstrap(
        (sample,), lambda x, axis: (x.mean(axis) - sample.mean()) / stats.sem(x, axis), rng=random()
    )
    low, high = np.quantile(drawn.bootstrap_distribution, [0.975, 0.025])
    estimate = mean_interval(sample, np.random.default_rng(1))
    expected = [sample.mean() - t * stats.sem(sample) for t in (low, high)]
    assert [estimate.low, estimate.high] == pytest.approx(expected, abs=0.03)


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
def test_time_to(steps: list[float | None], median: float | None, reached: int) -> None:
    assert time_to(steps) == TimeTo(median, reached, len(steps))


# ---- several tests, shares, one more run, pairs


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Holm's step-down, by hand
        ([0.5, 0.9, 0.6], [1.0, 1.0, 1.0]),
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert list(holm(dict(enumerate(p_values))).values()) == pytest.approx(adjusted)
    assert holm({"untested": None}) == {}


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        (range(1, 9), 4.5),  # 3, 4, 5, 6
        (range(1, 11), 5.5),  # half of 3, 4, 5, 6, 7, half of 8
        ([0.98, 0.1, 0.98, 0.98], 0.98),
        ([0, 0, 3], 0.5),  # weights 1/12, 1/3, 1/12
    ],
)
def test_interquartile_mean(values: list[float], mean: float) -> None:
    assert interquartile_mean(list(values)) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055), (1, 1, 0.2065, 1.0)],
)
def test_wilson_interval_of_the_textbook(successes: int, n: int, low: float, high: float) -> None:
    estimate = wilson_interval(successes, n)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((successes / n, low, high), abs=1e-4)


def test_pairing() -> None:
    """Arms that differ by a constant: nothing is left of the variance. Arms that mirror one another: twice as much."""
    assert pairing([1, 2, 4], [11, 12, 14]) == Pairing(pytest.approx(1.0), pytest.approx(0.0))
    assert pairing([1, 2, 4], [-1, -2, -4]) == Pairing(pytest.approx(-1.0), pytest.approx(2.0))


@pytest.mark.parametrize("control", [[5.0], [5.0, 6.0], [5.0, 5.0, 5.0]])
def test_pairing_where_nothing_varies(control: list[float]) -> None:
    assert pairing([1.0, 2.0, 3.0][: len(control)], control) == Pairing(None, None)


# ---- times, censored


@pytest.mark.parametrize(
    ("times", "curve"),
    [
        ([3, 5, None, 7, None], ([0, 3, 5, 7, 10], [1, 0.8, 0.6, 0.4, 0.4])),
        ([4, 4, None, None], ([0, 4, 10], [1, 0.5, 0.5])),  # half, and a tie
        ([2, 4], ([0, 2, 4], [1, 0.5, 0])),  # none censored
        ([None, None], ([0, 10], [1, 1])),  # all
        ([10, None], ([0, 10], [1, 0.5])),  # at the very end
        ([6], ([0, 6], [1, 0])),
    ],
)
def test_kaplan_meier_by_hand(times: list[float | None], curve: tuple[list[float], list[float]]) -> None:
    found = kaplan_meier(times, [10.0] * len(times))
    assert found.times == pytest.approx(curve[0])
    assert found.shares == pytest.approx(curve[1])


def product_limit(times: list[float | None], ends: list[float], at: float) -> float:
    """Kaplan & Meier's formula as a textbook has it: the product over event times t ≤ `at` of (1 - d / n), n being the
    runs that are neither there nor censored before t.
    """
    watched = [end if time is None else time for time, end in zip(times, ends, strict=True)]
    share = 1.0
    for event in sorted({time for time in times if time is not None and time <= at}):
        share *= 1 - times.count(event) / sum(until >= event for until in watched)
    return share


def area(times: list[float | None], ends: list[float], until: float) -> float:
    """Under the textbook's curve, rectangle by rectangle."""
    edges = [0.0, *sorted({time for time in times if time is not None and 0 < time < until}), until]
    return sum((b - a) * product_limit(times, ends, a) for a, b in pairwise(edges))


def draw_times(draw: np.random.Generator) -> tuple[list[float | None], list[float]]:
    """Ties and runs that end before, between and after the events are frequent."""
    n = int(draw.integers(1, 9))
    times = [float(draw.integers(0, 8)) for _ in range(n)]
    ends = [float(draw.integers(1, 10)) for _ in range(n)]
    found: list[float | None] = [None if time > end else time for time, end in zip(times, ends, strict=True)]
    return found, ends


def test_kaplan_meier_with_runs_of_their_own_ends_is_the_textbooks() -> None:
    draw, censored_between = np.random.default_rng(6), 0
    for _ in range(300):
        times, ends = draw_times(draw)
        found = kaplan_meier(times, ends)
        assert found.times[0] == 0
        assert found.shares == pytest.approx([1.0, *(product_limit(times, ends, at) for at in found.times[1:])])
        events = [time for time in times if time is not None]
        lost = [end for time, end in zip(times, ends, strict=True) if time is None]
        assert set(found.times[1:]) == {*events, *lost}
        censored_between += any(min(events) < end < max(events) for end in lost) if events else 0
    assert censored_between > 50


def test_restricted_mean_is_the_area_under_the_curve() -> None:
    """Up to any horizon before which no run is censored."""
    draw = np.random.default_rng(5)
    for _ in range(300):
        times, ends = draw_times(draw)
        horizon = min(ends)
        restricted = restricted_times(dict(enumerate(times)), horizon)
        assert np.mean(list(restricted.values())) == pytest.approx(area(times, ends, horizon))


# ---- arms as plain arrays


ARMS = {
    "none": {seed: 0.90 + 0.01 * value for seed, value in enumerate((0.3, 0.1, 0.9, 0.4, 0.2, 0.6, 0.5))},
    "batch": {seed: 0.95 + 0.01 * value for seed, value in enumerate((0.2, 0.7, 0.1, 0.8, 0.3, 0.5))},
    "layer": {9: 0.93},
}


def test_plain_values_against_scipy() -> None:
    found = compare_values(ARMS, control="none")
    none, batch = list(ARMS["none"].values())[:6], list(ARMS["batch"].values())
    p = found["batch"].p
    assert p is not None
    assert p < stats.ttest_rel(batch, none).pvalue + 0.001 < 0.01
    assert found["batch"].difference is not None
    assert found["batch"].difference.mean == pytest.approx(np.mean(batch) - np.mean(none))
    assert found["batch"].difference.n == 6
    assert found["batch"].pairing is not None
    assert found["batch"].pairing.correlation == pytest.approx(stats.pearsonr(batch, none).statistic)
    assert found["batch"].interquartile_mean == pytest.approx(interquartile_mean(batch))
    assert found["none"].mean == mean_interval(list(ARMS["none"].values()), random())


def test_what_cannot_be_paired_has_no_difference() -> None:
    """The control itself, and an arm that shares no seed with it; neither counts for Holm's correction."""
    found = compare_values(ARMS, control="none")
    for arm in ("none", "layer"):
        assert (found[arm].difference, found[arm].pairing, found[arm].p, found[arm].p_holm) == (None,) * 4
    assert found["batch"].p_holm == found["batch"].p
    three = compare_values({**ARMS, "again": ARMS["batch"]}, control="none")
    assert found["batch"].p is not None
    assert three["batch"].p_holm == 2 * found["batch"].p


def test_plain_curves_by_hand() -> None:
    """The control reaches 90% at 30 and never, of 40 steps; the other at 10 and 20."""
    arms = {
        "none": {0: {0: 0.1, 30: 0.9, 40: 0.95}, 1: {0: 0.1, 40: 0.5}},
        "batch": {0: {0: 0.1, 10: 0.92, 60: 0.93}, 1: {0: 0.2, 20: 0.9, 50: 0.8}},
    }
    found = compare_curves(arms, control="none", target=0.9)
    assert found["none"].times == TimeTo(None, 1, 2)
    assert found["batch"].times == TimeTo(15, 2, 2)
    assert {result.horizon for result in found.values()} == {40}
    assert found["none"].restricted is not None
    assert found["none"].restricted.mean == 35
    assert found["batch"].difference is not None
    assert found["batch"].difference.mean == pytest.approx((10 - 30 + 20 - 40) / 2)
    assert (found["none"].difference, found["batch"].p) == (None, None)


def test_band_of_curves_keeps_the_last_value_of_one_that_ends_early() -> None:
    steps, mean, low, high = curve_band({0: {0: 0.1, 10: 0.5, 20: 0.9}, 1: {0: 0.3, 10: 0.1}})
    assert steps.tolist() == [0, 10, 20]
    assert mean == pytest.approx([0.2, 0.3, 0.5])
    assert (low.tolist(), high.tolist()) == ([0.1, 0.1, 0.1], [0.3, 0.5, 0.9])


@pytest.mark.usefixtures("no_figures")
def test_plain_arrays_give_what_run_directories_give(bnexp: Bnexp) -> None:
    words = ("dataset=digits", "steps=60", "optim.lr=0.1", "eval.first_every=20", "compile=false")
    assert bnexp("compare", *words, "norm=none,batch", "seed=range(6)", "hydra.sweep.dir=mine").status == 0
    runs: dict[str, dict[int, dict[int, float]]] = {"norm=none": {}, "norm=batch": {}}
    values: dict[str, dict[int, float]] = {"norm=none": {}, "norm=batch": {}}
    for run in find_runs([Path("mine")]):
        arm = f"norm={run.config['norm']['name']}"
        values[arm][run.seed] = run.summary["test"]["accuracy"]
        runs[arm][run.seed] = {step: row["accuracy"] for step, row in run.validation.items()}
    numbers, times = compare_values(values, "norm=none"), compare_curves(runs, "norm=none", 0.9)
    for arm in json.loads(Path("mine/compare.json").read_text())["arms"]:
        plain = asdict(numbers[arm["arm"]])
        plain["test_accuracy"] = plain.pop("mean")
        assert {key: arm[key] for key in plain} == plain
        reported = next(time for time in arm["times"] if (time["target"], time["unit"]) == (0.9, "steps"))
        assert {key: reported[key] for key in ("horizon", "times", "p", "survival")} == {
            key: value
            for key, value in asdict(times[arm["arm"]]).items()
            if key in ("horizon", "times", "p", "survival")
        }


def test_what_is_resampled_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It bounds the memory of a report of thousands of runs."""
    sample = np.random.default_rng(3).normal(0.1, 1, 300)
    whole = mean_test(sample, random())
    monkeypatch.setattr("bnexp.compare.statistics.BATCH", 300 * 7)
    assert mean_test(sample, random()) == whole
