"""Intervals, paired permutation tests, time to accuracy; arms as plain arrays, against scipy and run directories."""

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
    pairing,
    prediction_interval,
    restricted_times,
    sign_flip_p,
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
    rounding = 1e-12
    assert min(values) - rounding <= estimate.low <= estimate.mean <= estimate.high <= max(values) + rounding


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


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_coverage_of_a_mean(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """95% intervals of 10 normal values hold the true mean in 95% of cases; the plain BCa ones do in 91%."""
    monkeypatch.setattr("bnexp.compare.statistics.RESAMPLES", 999)
    samples = np.random.default_rng(2).normal(1, 1, (1000, n))
    intervals = [mean_interval(sample, random()) for sample in samples]
    assert 0.92 <= held(intervals, [1.0] * 1000) <= 0.97


def test_coverage_of_prediction_intervals() -> None:
    samples = np.random.default_rng(3).normal(5, 2, (1000, 11))
    intervals = [prediction_interval(sample[:10]) for sample in samples]
    assert 0.92 <= held(intervals, list(samples[:, 10])) <= 0.97


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


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("sign", [1, -1])
def test_differences_of_one_sign_have_the_smallest_p(n: int, sign: int) -> None:
    differences = sign * np.arange(1.0, n + 1)
    assert sign_flip_p(differences, random()) == pytest.approx(2 / 2**n)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([3, 2, -1], 4 / 8),  # sums 6, 4 | 2, 0, 0, -2, -4, -6: two are at least 4
        ([4, 2, -1], 4 / 8),  # 7, 5 | 3, 1, …
        ([1, 2, 3, -0.5], 4 / 16),  # 6.5, 5.5 | 4.5, …
        ([5, 4, 3, 2, -1], 4 / 32),  # 15, 13 | 11, …
        ([1, 2, -3], 1.0),  # 0
        ([0, 0, 0, 0], 1.0),
    ],
)
def test_sign_flip_p_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences, random()) == pytest.approx(p)


def test_one_pair_has_no_p() -> None:
    assert sign_flip_p([1.0], random()) is None


def test_p_from_draws_agrees_with_the_exact_one() -> None:
    """Of 20 pairs there are 2²⁰ flips, of which 9,999 are drawn; a normal approximation is close at 20 pairs."""
    differences = np.random.default_rng(3).normal(0.3, 1, 20)
    z = differences.sum() / np.sqrt((differences**2).sum())
    p = sign_flip_p(differences, random())
    signs = np.random.default_rng(4).choice([-1.0, 1.0], (200_000, 20))
    reference = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    assert 0.5 < abs(z) < 3
    assert p == pytest.approx(reference, abs=0.02)


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


def test_prediction_interval_by_hand() -> None:
    """3 ± 2.776 · 1.5811 · √1.2"""
    estimate = prediction_interval([1, 2, 3, 4, 5])
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((3, 3 - 4.809, 3 + 4.809), abs=1e-3)


def test_prediction_of_one_or_equal_values() -> None:
    assert prediction_interval([0.5]) == Estimate(0.5, None, None, 1)
    assert prediction_interval([0.5, 0.5]) == Estimate(0.5, 0.5, 0.5, 2)


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
    test = stats.permutation_test(
        (np.subtract(batch, none),), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert found["batch"].p == pytest.approx(test.pvalue) == 2 / 2**6
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
    assert three["batch"].p_holm == pytest.approx(2 * 2 / 2**6)


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
    assert (found["none"].difference, found["batch"].p) == (None, 0.5)


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
    whole = mean_interval(sample, np.random.default_rng(4)), sign_flip_p(sample, np.random.default_rng(5))
    monkeypatch.setattr("bnexp.compare.statistics.BATCH", 300 * 7)
    assert (mean_interval(sample, np.random.default_rng(4)), sign_flip_p(sample, np.random.default_rng(5))) == whole
