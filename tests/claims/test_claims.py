"""Rules on runs made up for them, by hand; the claims themselves: their sweeps compose, their identities hold."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnexp.claims.claim import Claim, NoVerdictError, Rule, Runs, Verdict
from bnexp.claims.judge import adjust, read_records, seen, sweep_arguments, sweeps_of
from bnexp.claims.readme import markdown
from bnexp.claims.registry import CLAIMS, family, pick
from bnexp.claims.rules import Directional, Equivalent, Exact, Numeric, Share, Sooner, TimeToAccuracy
from bnexp.claims.sources.udacity import CELLS
from bnexp.claims.values import (
    at_best_of,
    best,
    difference,
    drift,
    each,
    how_many_train,
    largest_that_trains,
    on_test,
    over_runs,
    steps_to_share,
    steps_within,
    still_to_gain,
    where,
)
from bnexp.cli.compose import configurations
from bnexp.cli.overrides import parse_overrides, split_jobs
from bnexp.compare.arms import accuracy, make_curve, recalibrated_accuracies
from bnexp.runs.config import ConfigError, NormConfig, OptimConfig, RunConfig
from bnexp.runs.record import RunRecord
from bnexp.sweeps.stacks import stack_key

STEPS = 100


def make_run(
    norm: str, seed: int, test: float, curve: dict[int, float] | None = None, lr: float = 0.1, status: str = "finished"
) -> RunRecord:
    """`curve`: step → validation accuracy; training takes a second for ten steps, with batch normalization two."""
    curve = curve or {0: 0.1, STEPS: test}
    pace = 0.2 if norm == "batch" else 0.1
    config = RunConfig(norm=NormConfig(norm), optim=OptimConfig(lr=lr), seed=seed, steps=STEPS).as_dict()
    summary: dict[str, Any] = {
        "status": status,
        "steps": STEPS,
        "seconds": STEPS * pace,
        "test": {"accuracy": test},
        "validation": {"final": curve[max(curve)]},
    }
    run = RunRecord(Path(f"{norm}-{seed}"), {"config": config}, summary)
    run.__dict__["validation"] = {step: {"accuracy": accuracy, "x": accuracy * 2} for step, accuracy in curve.items()}
    run.__dict__["seconds"] = {step: step * pace for step in curve}
    return run


def make_arms(none: list[float], batch: list[float]) -> Runs:
    runs = [make_run("none", seed, value) for seed, value in enumerate(none)]
    return runs + [make_run("batch", seed, value) for seed, value in enumerate(batch)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def verdict(rule: Rule, runs: Runs, correct: float = 1.0) -> Verdict:
    """`correct`: what Holm's correction multiplies p by."""
    evidence = rule.measure(runs, rng())
    p = None if evidence.p is None else min(1.0, correct * evidence.p)
    found, why = rule.judge(evidence, p)
    assert bool(why) == (found is Verdict.INCONCLUSIVE)
    assert rule.description
    return found


NONE, BATCH = where("norm=none"), where("norm=batch")
LOW, HIGH = [0.90 + 0.001 * i for i in range(10)], [0.95 + 0.001 * i for i in range(10)]


# ---- directional


@pytest.mark.parametrize(
    ("none", "batch", "expected"),
    [
        (LOW, HIGH, Verdict.REPRODUCED),
        (HIGH, LOW, Verdict.CONTRADICTED),
        (LOW, LOW, Verdict.INCONCLUSIVE),
        (LOW, LOW[::-1], Verdict.INCONCLUSIVE),
        (LOW[:5], HIGH[:5], Verdict.INCONCLUSIVE),  # 2 / 2⁵ is 0.0625
        (LOW[:1], HIGH[:1], Verdict.INCONCLUSIVE),
        (LOW[:6], HIGH[:6], Verdict.REPRODUCED),
    ],
)
def test_directional(none: list[float], batch: list[float], expected: Verdict) -> None:
    assert verdict(Directional(on_test(BATCH), on_test(NONE)), make_arms(none, batch)) == expected


def test_directional_the_other_way() -> None:
    runs = make_arms(LOW, HIGH)
    assert verdict(Directional(on_test(NONE), on_test(BATCH), lower=True), runs) == Verdict.REPRODUCED
    assert verdict(Directional(on_test(BATCH), on_test(NONE), lower=True), runs) == Verdict.CONTRADICTED


def test_directional_after_holm() -> None:
    """6 pairs have a p of 0.03125 at best: enough for one claim, too little for two."""
    runs = make_arms(LOW[:6], HIGH[:6])
    assert verdict(Directional(on_test(BATCH), on_test(NONE)), runs, correct=2) == Verdict.INCONCLUSIVE


def test_directional_against_a_number() -> None:
    runs = make_arms(LOW, HIGH)
    assert verdict(Directional(on_test(BATCH), 0.9), runs) == Verdict.REPRODUCED
    assert verdict(Directional(on_test(BATCH), 0.99), runs) == Verdict.CONTRADICTED


def test_what_is_compared_with_a_number_is_shown_as_measured() -> None:
    evidence = Directional(on_test(BATCH), 0.9).measure(make_arms(LOW, HIGH), rng())
    assert seen(evidence, evidence.measured.mean) == pytest.approx(100 * np.mean(HIGH))
    assert not evidence.difference
    assert Directional(on_test(BATCH), on_test(NONE)).measure(make_arms(LOW, HIGH), rng()).difference


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    evidence = Directional(on_test(BATCH), on_test(NONE)).measure(make_arms(LOW, HIGH[:7]), rng())
    assert evidence.measured.n == 7


# ---- values


def test_runs_that_share_a_seed_are_taken_together() -> None:
    runs = [make_run("none", seed, 0.5 + lr, lr=lr) for seed in range(2) for lr in (0.1, 0.3)]
    assert over_runs("mean", accuracy, NONE, np.mean).of(runs) == pytest.approx({0: 0.7, 1: 0.7})
    assert over_runs("sum", accuracy, NONE, sum).of(runs) == pytest.approx({0: 1.4, 1: 1.4})


def test_difference_of_arms_seed_by_seed() -> None:
    runs = make_arms([0.5, 0.6, 0.7], [0.9, 0.9])
    assert difference(on_test(BATCH), on_test(NONE)).of(runs) == pytest.approx({0: 0.4, 1: 0.3})


def test_steps_to_a_share_of_another_arms_accuracy() -> None:
    """Of 0.8 and 0.9 the mean is 0.85, its 90% 0.765."""
    full = [make_run("none", seed, value) for seed, value in enumerate((0.8, 0.9))]
    ours = [
        make_run("batch", seed, 0.9, {0: 0.1, 10: first, 20: 0.8, STEPS: 0.9}) for seed, first in ((0, 0.7), (1, 0.77))
    ]
    assert steps_to_share(0.9, NONE, BATCH).of(full + ours) == {0: 20, 1: 10}
    assert steps_to_share(0.9, NONE, BATCH, times=0.5).of(full + ours) == {0: 10, 1: 5}
    assert steps_to_share(1.2, NONE, BATCH).of(full + ours) == {0: STEPS, 1: STEPS}, "never there: all of its steps"
    with pytest.raises(NoVerdictError, match="no complete runs"):
        steps_to_share(0.9, NONE, BATCH).of(ours)


# ---- numeric, equivalence, rates, identities


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (0.9045, Verdict.REPRODUCED),
        (0.911, Verdict.REPRODUCED),  # in the prediction interval, 0.9045 ± 2.262 · 0.00303 · √1.1
        (0.913, Verdict.CONTRADICTED),
        (0.8, Verdict.CONTRADICTED),
    ],
)
def test_numeric(published: float, expected: Verdict) -> None:
    assert verdict(Numeric(on_test(NONE), published, 0.001), make_arms(LOW, [])) == expected


def test_numeric_within_the_tolerance() -> None:
    assert verdict(Numeric(on_test(NONE), 0.913, 0.01), make_arms(LOW, [])) == Verdict.REPRODUCED
    assert verdict(Numeric(on_test(NONE), 0.5, 0.0), make_arms([0.5] * 4, [])) == Verdict.REPRODUCED
    assert verdict(Numeric(on_test(NONE), 0.51, 0.0), make_arms([0.5] * 4, [])) == Verdict.CONTRADICTED


def test_numeric_decides_nothing_where_it_could_not_contradict() -> None:
    assert verdict(Numeric(on_test(NONE), 0.97, 0.01), make_arms([0.1, 0.97] * 5, [])) == Verdict.INCONCLUSIVE
    assert verdict(Numeric(on_test(NONE), 0.9, 0.01), make_arms([0.9] * 2, [])) == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("margin", "one_sided", "expected"),
    [
        (0.06, False, Verdict.REPRODUCED),
        (0.04, False, Verdict.CONTRADICTED),
        (0.05, False, Verdict.INCONCLUSIVE),
        (0.01, True, Verdict.REPRODUCED),
    ],
)
def test_equivalence(margin: float, one_sided: bool, expected: Verdict) -> None:
    """A difference of 0.05, which the seeds scatter by up to 0.002."""
    scattered = [value + 0.002 * (-1) ** i for i, value in enumerate(HIGH)]
    rule = Equivalent(on_test(BATCH), on_test(NONE), margin, one_sided)
    assert verdict(rule, make_arms(LOW, scattered)) == expected


def test_not_worse_is_contradicted_by_worse() -> None:
    assert (
        verdict(Equivalent(on_test(NONE), on_test(BATCH), 0.01, one_sided=True), make_arms(LOW, HIGH)) == "contradicted"
    )


def test_equivalence_to_a_number() -> None:
    assert verdict(Equivalent(on_test(NONE), 0.9, 0.01), make_arms(LOW, [])) == Verdict.REPRODUCED
    assert verdict(Equivalent(on_test(NONE), 0.8, 0.01), make_arms(LOW, [])) == Verdict.CONTRADICTED
    assert verdict(Equivalent(on_test(NONE), 0.9, 0.01), make_arms(LOW[:5], [])) == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("trained", "most", "expected"),
    [
        (10, True, Verdict.REPRODUCED),
        (9, True, Verdict.REPRODUCED),
        (7, True, Verdict.INCONCLUSIVE),
        (0, True, Verdict.CONTRADICTED),
        (0, False, Verdict.REPRODUCED),
        (10, False, Verdict.CONTRADICTED),
        (5, False, Verdict.INCONCLUSIVE),
        (1, None, Verdict.REPRODUCED),
        (9, None, Verdict.REPRODUCED),
        (0, None, Verdict.CONTRADICTED),
        (10, None, Verdict.CONTRADICTED),
    ],
)
def test_share_of_ten(trained: int, most: bool | None, expected: Verdict) -> None:
    runs = make_arms([0.97] * trained + [0.1] * (10 - trained), [])
    assert verdict(Share(on_test(NONE), 0.9, most), runs) == expected


@pytest.mark.parametrize("most", [True, False, None])
def test_share_of_five_seeds_that_agree(most: bool | None) -> None:
    assert verdict(Share(on_test(NONE), 0.9, most), make_arms([0.97] * 5, [])) == Verdict.INCONCLUSIVE


def test_few_say_something_beside_a_control_that_trains() -> None:
    rule = Share(on_test(BATCH), 0.9, most=False, control=on_test(NONE))
    trains, fails = (
        rule.measure(make_arms(LOW, [0.1] * 10), rng()),
        rule.measure(make_arms([0.1] * 10, [0.1] * 10), rng()),
    )
    assert trains.problem is None
    assert rule.judge(trains, None)[0] == Verdict.REPRODUCED
    assert fails.problem == "the control doesn't get there either: 0 of 10 seeds of test accuracy of norm=none"


def test_exact() -> None:
    assert verdict(Exact(lambda: 1e-12), []) == Verdict.REPRODUCED
    assert verdict(Exact(lambda: 1e-9), []) == Verdict.CONTRADICTED
    assert verdict(Exact(lambda: math.nan), []) == Verdict.CONTRADICTED


# ---- times


def rising(step: int) -> dict[int, float]:
    """Accuracy 0.95 from an evaluation on; evaluations every 10 steps."""
    return {known: 0.95 if known >= step else 0.2 for known in range(0, STEPS + 1, 10)}


def arrivals(norm: str, steps: list[int | None]) -> Runs:
    return [make_run(norm, seed, 0.9, rising(2 * STEPS if step is None else step)) for seed, step in enumerate(steps)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (30, 40, Verdict.REPRODUCED),
        (21, 25, Verdict.REPRODUCED),  # the earliest one came between the evaluations at 20 and 30
        (15, 20, Verdict.CONTRADICTED),
        (51, 99, Verdict.CONTRADICTED),
    ],
)
def test_published_step(low: float, high: float, expected: Verdict) -> None:
    assert verdict(TimeToAccuracy(0.9, NONE, low, high), arrivals("none", [30, 50, 40])) == expected


def test_a_run_that_diverged_has_no_part_in_the_clock() -> None:
    lost = make_run("none", 1, 0.1, {0: 0.1, 10: 0.1}, status="diverged")
    curve = make_curve("none", [make_run("none", 0, 0.95, rising(30)), lost])
    assert list(curve.seconds) == pytest.approx([0.1 * step for step in range(0, STEPS + 1, 10)])
    assert curve.mean[-1] == pytest.approx((0.95 + 0.1) / 2), "but in the accuracy"


def test_a_run_that_diverged_counts_among_the_recalibrated() -> None:
    runs = make_arms([0.9, 0.1], [])
    assert recalibrated_accuracies(runs) == []
    runs[0].summary["test_recalibrated"] = {"accuracy": 0.95}
    assert recalibrated_accuracies(runs) == [0.95, 0.1]


def test_published_step_where_some_never_get_there() -> None:
    runs = arrivals("none", [30, None, 40])
    assert verdict(TimeToAccuracy(0.9, NONE, 90, 95), runs) == Verdict.REPRODUCED
    evidence = TimeToAccuracy(0.9, NONE, 90, 95).measure(runs, rng())
    assert evidence.measured.mean == pytest.approx((30 + STEPS + 40) / 3)
    assert "2 of 3 get there" in evidence.detail


def test_published_step_where_none_gets_there() -> None:
    runs = arrivals("none", [None, None, None])
    assert verdict(TimeToAccuracy(0.9, NONE, 50, 60), runs) == Verdict.CONTRADICTED
    assert verdict(TimeToAccuracy(0.9, NONE, 90, STEPS), runs) == Verdict.CONTRADICTED
    assert verdict(TimeToAccuracy(0.9, NONE, 150, 160), runs) == Verdict.REPRODUCED  # after the last step


def test_published_step_needs_three_seeds() -> None:
    assert verdict(TimeToAccuracy(0.9, NONE, 30, 40), arrivals("none", [30, 40])) == Verdict.INCONCLUSIVE


def test_published_step_beside_a_run_that_diverged() -> None:
    """Its few evaluations say nothing of the others'."""
    runs = [make_run("none", 9, 0.1, {0: 0.1}, status="diverged"), *arrivals("none", [80, 90, 80])]
    assert verdict(TimeToAccuracy(0.9, NONE, 40, 60), runs) == Verdict.CONTRADICTED


def test_sooner_in_seconds_though_each_step_is_slower() -> None:
    runs = arrivals("none", [80, 90, None, 80, 70, 90]) + arrivals("batch", [20, 20, 30, 20, 30, 20])
    assert verdict(Sooner(0.9, BATCH, NONE), runs) == Verdict.REPRODUCED
    evidence = Sooner(0.9, BATCH, NONE).measure(runs, rng())
    # horizon: 10 s, what the shorter arm takes; never counts as 10
    assert evidence.measured.mean == pytest.approx((4 + 4 + 6 + 4 + 6 + 4) / 6 - (8 + 9 + 10 + 8 + 7 + 9) / 6)
    assert verdict(Sooner(0.9, NONE, BATCH), runs) == Verdict.CONTRADICTED


def test_sooner_in_steps_alone() -> None:
    """Half the steps at twice the time a step."""
    runs = arrivals("none", [40] * 6) + arrivals("batch", [20] * 6)
    assert verdict(Sooner(0.9, BATCH, NONE, steps=True), runs) == Verdict.REPRODUCED
    assert verdict(Sooner(0.9, BATCH, NONE), runs) == Verdict.INCONCLUSIVE


def test_a_diverged_run_never_gets_there() -> None:
    runs = arrivals("none", [90] * 6) + arrivals("batch", [20] * 5)
    runs.append(make_run("batch", 5, 0.1, {0: 0.1, 10: 0.1}, status="diverged"))
    evidence = Sooner(0.9, BATCH, NONE, steps=True).measure(runs, rng())
    assert evidence.measured.mean == pytest.approx((5 * -70 + (STEPS - 90)) / 6)


# ---- values


def rates(norm: str, found: dict[float, float]) -> Runs:
    """Rate → accuracy, two seeds of each."""
    return [make_run(norm, seed, value, lr=lr) for lr, value in found.items() for seed in (0, 1)]


GRID = rates("none", {0.1: 0.91, 0.3: 0.95, 1.0: 0.1}) + rates("batch", {0.1: 0.92, 0.3: 0.93, 1.0: 0.97})


def test_where_reads_numbers_as_numbers() -> None:
    assert len(where("norm=none optim.lr=1").pick(GRID)) == 2
    assert len(where("norm=batch optim.lr=0.3 arch.hidden=[100,100,100]").pick(GRID)) == 2
    assert where("norm=layer").pick(GRID) == []


def test_best_is_chosen_on_validation() -> None:
    flattering = make_run("none", 2, 0.99, {0: 0.1, STEPS: 0.2}, lr=3.0)  # a test accuracy nobody may look at
    assert set(on_test(best(NONE, "optim.lr")).of([*GRID, flattering]).values()) == {0.95}
    assert set(on_test(best(BATCH, "optim.lr")).of(GRID).values()) == {0.97}


def test_at_the_best_rate_of_the_other_arm_or_a_multiple() -> None:
    assert set(on_test(at_best_of(BATCH, NONE, "optim.lr")).of(GRID).values()) == {0.93}
    assert set(on_test(at_best_of(BATCH, NONE, "optim.lr", 3)).of(GRID).values()) == {0.97}
    assert set(on_test(at_best_of(NONE, NONE, "optim.lr", 10 / 3)).of(GRID).values()) == {0.1}


def test_largest_rate_and_number_of_rates_that_train() -> None:
    assert largest_that_trains(NONE, "optim.lr").of(GRID)[0] == pytest.approx(math.log10(0.3))
    assert largest_that_trains(BATCH, "optim.lr").of(GRID)[0] == pytest.approx(0)
    assert how_many_train(NONE, "optim.lr").of(GRID) == {0: 2, 1: 2}
    assert largest_that_trains(NONE, "optim.lr").of(rates("none", {1.0: 0.1}))[0] == pytest.approx(-1)


def test_values_of_a_curve() -> None:
    runs = [make_run("none", 0, 0.9, {0: 0.1, 50: 0.8, 100: 0.7})]
    assert each("x", still_to_gain(0), NONE).of(runs)[0] == pytest.approx(0.7)
    assert each("x", still_to_gain(50), NONE).of(runs)[0] == 0
    assert each("x", drift("x", 0), NONE).of(runs)[0] == pytest.approx(1.4)
    assert each("x", drift("x", 50), NONE).of(runs)[0] == pytest.approx(0.2)
    assert steps_within(0.75, NONE).of(runs) == {0: 50}
    assert steps_within(0.85, NONE).of(runs) == {0: STEPS}


# ---- the claims


def test_ids_are_unique_and_begin_with_their_family() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert [family(claim) for claim in CLAIMS] == [claim.id.split(".")[0] for claim in CLAIMS]


def test_claims_say_what_they_need() -> None:
    for claim in CLAIMS:
        assert claim.source, claim.id
        assert claim.statement.endswith("."), claim.id
        assert claim.published, claim.id
        assert claim.rule.description, claim.id
        assert bool(claim.sweeps) != isinstance(claim.rule, Exact), claim.id


RESULTS = Path(__file__).parents[2] / "results"


def test_readme_of_the_results_is_current() -> None:
    """It is written from claims.json, which has the claims' own statements and notes; no line of a table is long."""
    records = read_records(RESULTS)
    text = (RESULTS / "README.md").read_text()
    assert text == markdown(records, RESULTS)
    assert max(len(line) for line in text.splitlines() if line.startswith("|")) <= 120
    assert [(entry["id"], entry["statement"], entry["note"]) for entry in records] == [
        (claim.id, claim.statement, claim.note) for claim in CLAIMS
    ]


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if isinstance(claim.rule, Exact)], ids=lambda c: c.id)
def test_identities_hold(claim: Claim) -> None:
    assert verdict(claim.rule, []) == Verdict.REPRODUCED


def test_every_published_cell_has_a_claim() -> None:
    """Four accuracies a row; those of the cells published with both outcomes are two rates."""
    cells = [claim for claim in CLAIMS if claim.id.startswith("udacity.") and isinstance(claim.rule, Numeric)]
    rates_claimed = [claim for claim in CLAIMS if claim.id.endswith(".batch.rate")]
    accuracies = sorted(value for (_, values) in CELLS for value in values)
    seed_dependent = sorted([0.9208, 0.9244, 0.1010, 0.0988, 0.9054, 0.9128, 0.1010, 0.0986])
    claimed = [claim.rule.published for claim in cells if ".inference" not in claim.id]  # type: ignore[attr-defined]
    assert len(CELLS) == 16
    assert sorted([*claimed, *seed_dependent]) == accuracies
    assert len(rates_claimed) == 2


@pytest.mark.extra
def test_sweeps_compose_and_stack() -> None:
    """Runs of every claim, the grid's first and last, are valid configurations; seeds of an arm share a stack."""
    with configurations() as composer:
        for sweep in sweeps_of(CLAIMS):
            if re.fullmatch(r"wu_he_.*_(4|8|16)", sweep.name):
                continue  # made as those of 2 and 32 are
            jobs = split_jobs(parse_overrides(sweep_arguments(sweep, 2)), composer.folder)
            runs = [composer.compose_job(job)[0] for job in jobs[:2] + jobs[-2:]]
            assert {run.seed for run in runs} == {0, 1}
            assert len({stack_key(run, False) for run in runs}) <= len(runs) / 2


def test_pick_by_the_beginning_of_an_id() -> None:
    assert {family(claim) for claim in pick(["wiki"])} == {"wiki"}
    assert [claim.id for claim in pick(["wiki.maximum", "wiki.maximum"])] == ["wiki.maximum"]
    assert pick([]) == CLAIMS
    assert len(pick(["wiki.sooner"])) == 6
    with pytest.raises(ConfigError, match="did you mean wiki"):
        pick(["wikis"])


def test_holm_runs_over_a_source_whatever_was_run() -> None:
    """A claim run alone is judged as strictly as among all of its source."""
    own = [claim.id for claim in CLAIMS if family(claim) == "wiki" and isinstance(claim.rule, Directional | Sooner)]
    assert adjust({own[0]: 0.002})[own[0]] == pytest.approx(0.002 * len(own))
    assert adjust(dict.fromkeys(own, 0.002))[own[-1]] == pytest.approx(0.002 * len(own))


@pytest.mark.parametrize(
    "rule",
    [
        Directional(on_test(BATCH), on_test(NONE)),
        Directional(on_test(best(BATCH, "optim.lr")), 0.5),
        Equivalent(on_test(BATCH), on_test(NONE), 0.1),
        Share(on_test(BATCH), 0.5, most=True),
        Sooner(0.5, BATCH, NONE),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_an_arm_without_runs_gives_no_verdict(rule: Rule) -> None:
    with pytest.raises(NoVerdictError, match="no complete runs"):
        rule.measure(make_arms(LOW, []), rng())


def test_a_multiple_beyond_the_grid_gives_no_verdict() -> None:
    with pytest.raises(NoVerdictError, match=r"optim.lr=9, 30 times the best, is beyond the grid"):
        on_test(at_best_of(BATCH, NONE, "optim.lr", 30)).of(GRID)


def test_the_choice_of_a_rate_is_told() -> None:
    found = Equivalent(on_test(best(NONE, "optim.lr")), on_test(best(BATCH, "optim.lr")), 0.1).measure(GRID, rng())
    assert "norm=none is best at optim.lr=0.3 of 0.1, 0.3, 1;" in found.detail
    assert "norm=batch is best at optim.lr=1 of 0.1, 0.3, 1, the edge of the grid" in found.detail
