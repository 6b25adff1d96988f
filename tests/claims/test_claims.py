"""Rules on runs made up for them, by hand; the claims themselves: their sweeps compose, their identities hold."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnexp.claims.claim import Claim, Finding, NoVerdictError, Rule, Runs, Verdict
from bnexp.claims.judge import adjust, after_holm, family, is_identity, is_test
from bnexp.claims.published import AtChance, Divided, PublishedRun, PublishedSample
from bnexp.claims.readme import facts_of, markdown
from bnexp.claims.record import read_records, sweep_arguments, sweeps_of, update
from bnexp.claims.registry import CLAIMS, pick, source
from bnexp.claims.rules import Directional, Equivalent, Exact, Share, Sooner
from bnexp.claims.sources.udacity import CELL_LIST, CELLS
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
    found = finding(rule, runs)
    if found.p is not None:
        found = after_holm(found, min(1.0, correct * found.p))
    assert bool(found.why) == (found.verdict is Verdict.INCONCLUSIVE)
    assert rule.description
    return found.verdict


def finding(rule: Rule, runs: Runs) -> Finding:
    return rule.find(rule.read(runs).samples, rng())


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
        (LOW[:5], HIGH[:5], Verdict.INCONCLUSIVE),
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
    """Six equal differences have a p of 2 / 2⁶ = 0.03125: enough for one claim, too little for two."""
    runs = make_arms(LOW[:6], [value + 0.05 for value in LOW[:6]])
    assert verdict(Directional(on_test(BATCH), on_test(NONE)), runs) == Verdict.REPRODUCED
    assert verdict(Directional(on_test(BATCH), on_test(NONE)), runs, correct=2) == Verdict.INCONCLUSIVE


def test_a_difference_is_in_points_and_tells_of_collapsed_seeds() -> None:
    found = finding(Directional(on_test(BATCH), on_test(NONE)), make_arms([0.1, *LOW[1:]], HIGH))
    assert found.measured.mean == pytest.approx(100 * (np.mean(HIGH) - np.mean([0.1, *LOW[1:]])))
    assert (found.unit, found.difference) == ("%", True)
    assert "at chance 0 and 1 of 10 seeds" in found.detail


def test_only_seeds_that_both_arms_have_are_paired() -> None:
    assert finding(Directional(on_test(BATCH), on_test(NONE)), make_arms(LOW, HIGH[:7])).measured.n == 7


def test_what_would_have_contradicted_a_direction() -> None:
    """Simulated: of samples whose mean lies that far on the other side, 8 in 10 are called contradicted."""
    none, batch = np.random.default_rng(1).normal(0.9, 0.01, (2, 10))
    rule = Directional(on_test(BATCH), on_test(NONE))
    samples = rule.read(make_arms(list(none), list(batch))).samples
    size = float(rule.detectable(samples, rng(), 1).split()[0])
    draws = np.random.default_rng(2).normal(-size, np.std(100 * (batch - none), ddof=1), (400, 10))
    verdicts = [
        rule.find({"ours": dict(enumerate(draw)), "control": dict.fromkeys(range(10), 0.0)}, rng()).verdict
        for draw in draws
    ]
    assert 0.7 <= verdicts.count(Verdict.CONTRADICTED) / 400 <= 0.9
    assert float(rule.detectable(samples, rng(), 20).split()[0]) > size, "more tests, less power"


# ---- values


def test_runs_that_share_a_seed_are_taken_together() -> None:
    runs = [make_run("none", seed, 0.5 + lr, lr=lr) for seed in range(2) for lr in (0.1, 0.3)]
    assert over_runs("mean", accuracy, NONE, np.mean).of(runs) == pytest.approx({0: 0.7, 1: 0.7})
    assert over_runs("sum", accuracy, NONE, sum).of(runs) == pytest.approx({0: 1.4, 1: 1.4})


def test_difference_of_arms_seed_by_seed() -> None:
    runs = make_arms([0.5, 0.6, 0.7], [0.9, 0.9])
    assert difference(on_test(BATCH), on_test(NONE)).of(runs) == pytest.approx({0: 40, 1: 30})


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


# ---- equivalence, rates, identities


@pytest.mark.parametrize(
    ("margin", "one_sided", "expected"),
    [
        (6, False, Verdict.REPRODUCED),
        (4, False, Verdict.CONTRADICTED),
        (5, False, Verdict.INCONCLUSIVE),
        (1, True, Verdict.REPRODUCED),
    ],
)
def test_equivalence(margin: float, one_sided: bool, expected: Verdict) -> None:
    """A difference of 0.05, which the seeds scatter by up to 0.002."""
    scattered = [value + 0.002 * (-1) ** i for i, value in enumerate(HIGH)]
    rule = Equivalent(on_test(BATCH), on_test(NONE), margin, one_sided)
    assert verdict(rule, make_arms(LOW, scattered)) == expected


def test_not_worse_is_contradicted_by_worse() -> None:
    assert verdict(Equivalent(on_test(NONE), on_test(BATCH), 1, one_sided=True), make_arms(LOW, HIGH)) == "contradicted"


def test_equivalence_to_a_number() -> None:
    assert verdict(Equivalent(on_test(NONE), 90, 1), make_arms(LOW, [])) == Verdict.REPRODUCED
    assert verdict(Equivalent(on_test(NONE), 80, 1), make_arms(LOW, [])) == Verdict.CONTRADICTED
    assert verdict(Equivalent(on_test(NONE), 90, 1), make_arms(LOW[:5], [])) == Verdict.INCONCLUSIVE


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
    ],
)
def test_share_of_ten(trained: int, most: bool, expected: Verdict) -> None:
    runs = make_arms([0.97] * trained + [0.1] * (10 - trained), [])
    assert verdict(Share(on_test(NONE), 90, most), runs) == expected


@pytest.mark.parametrize("most", [True, False])
def test_share_of_five_seeds_that_agree(most: bool) -> None:
    assert verdict(Share(on_test(NONE), 90, most), make_arms([0.97] * 5, [])) == Verdict.INCONCLUSIVE


def test_few_say_something_beside_a_control_that_trains() -> None:
    rule = Share(on_test(BATCH), 90, most=False, control=on_test(NONE))
    assert verdict(rule, make_arms(LOW, [0.1] * 10)) == Verdict.REPRODUCED
    fails = finding(rule, make_arms([0.1] * 10, [0.1] * 10))
    assert fails.why == "the control doesn't get there either: 0 of 10 seeds"


def test_counts_that_would_have_contradicted_a_share() -> None:
    """Wilson's interval of 1 of 10 is [2%, 40%], that of 2 of 10 [6%, 51%]."""
    samples = Share(on_test(NONE), 90).read(make_arms(LOW, [])).samples
    assert Share(on_test(NONE), 90).detectable(samples, rng(), 1) == "1 or fewer of 10 seeds"
    assert Share(on_test(NONE), 90, most=False).detectable(samples, rng(), 1) == "9 or more of 10 seeds"
    few = Share(on_test(NONE), 90).read(make_arms(LOW[:5], [])).samples
    assert Share(on_test(NONE), 90).detectable(few, rng(), 1) == ""


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


def test_sooner_in_seconds_though_each_step_is_slower() -> None:
    runs = arrivals("none", [80, 90, None, 80, 70, 90]) + arrivals("batch", [20, 20, 30, 20, 30, 20])
    assert verdict(Sooner(0.9, BATCH, NONE), runs) == Verdict.REPRODUCED
    # horizon: 10 s, what the shorter arm takes; never counts as 10
    assert finding(Sooner(0.9, BATCH, NONE), runs).measured.mean == pytest.approx(
        (4 + 4 + 6 + 4 + 6 + 4) / 6 - (8 + 9 + 10 + 8 + 7 + 9) / 6
    )
    assert verdict(Sooner(0.9, NONE, BATCH), runs) == Verdict.CONTRADICTED


def test_sooner_in_steps_alone() -> None:
    """Half the steps at twice the time a step."""
    runs = arrivals("none", [40] * 6) + arrivals("batch", [20] * 6)
    assert verdict(Sooner(0.9, BATCH, NONE, steps=True), runs) == Verdict.REPRODUCED
    assert verdict(Sooner(0.9, BATCH, NONE), runs) == Verdict.INCONCLUSIVE


def test_a_diverged_run_never_gets_there() -> None:
    runs = arrivals("none", [90] * 6) + arrivals("batch", [20] * 5)
    runs.append(make_run("batch", 5, 0.1, {0: 0.1, 10: 0.1}, status="diverged"))
    assert finding(Sooner(0.9, BATCH, NONE, steps=True), runs).measured.mean == pytest.approx(
        (5 * -70 + (STEPS - 90)) / 6
    )


# ---- values


def rates(norm: str, found: dict[float, float], seeds: tuple[int, ...] = (0, 1, 100, 101)) -> Runs:
    """Rate → accuracy, of two seeds that are judged and two on which the rate is chosen."""
    return [make_run(norm, seed, value, lr=lr) for lr, value in found.items() for seed in seeds]


GRID = rates("none", {0.1: 0.91, 0.3: 0.95, 1.0: 0.1}) + rates("batch", {0.1: 0.92, 0.3: 0.93, 1.0: 0.97})


def test_where_reads_numbers_as_numbers() -> None:
    assert [run.seed for run in where("norm=none optim.lr=1").pick(GRID)] == [0, 1]
    assert len(where("norm=batch optim.lr=0.3 arch.hidden=[100,100,100]").pick(GRID)) == 2
    assert where("norm=layer").pick(GRID) == []


def test_best_is_chosen_on_validation_and_on_other_seeds() -> None:
    flattering = make_run("none", 100, 0.99, {0: 0.1, STEPS: 0.2}, lr=3.0)  # a test accuracy nobody may look at
    judged = make_run("none", 2, 0.99, lr=3.0)  # a seed by which nothing is chosen
    assert set(on_test(best(NONE, "optim.lr")).of([*GRID, flattering, judged]).values()) == {95}
    assert set(on_test(best(BATCH, "optim.lr")).of(GRID).values()) == {97}
    with pytest.raises(NoVerdictError, match="no complete runs"):
        on_test(best(NONE, "optim.lr")).of(rates("none", {0.1: 0.9}, (0, 1)))


def test_at_the_best_rate_of_the_other_arm_or_a_multiple() -> None:
    assert set(on_test(at_best_of(BATCH, NONE, "optim.lr")).of(GRID).values()) == {93}
    assert set(on_test(at_best_of(BATCH, NONE, "optim.lr", 3)).of(GRID).values()) == {97}
    assert set(on_test(at_best_of(NONE, NONE, "optim.lr", 10 / 3)).of(GRID).values()) == {10}


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


def test_ids_are_unique() -> None:
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)


def test_claims_say_what_they_need() -> None:
    for claim in CLAIMS:
        assert claim.source, claim.id
        assert claim.statement.endswith("."), claim.id
        assert claim.published, claim.id
        assert claim.rules, claim.id
        assert all(rule.description for rule in claim.all_rules.values()), claim.id
        assert bool(claim.sweeps) != is_identity(claim), claim.id


FAMILIES = {
    "wiki": 3,
    "ioffe_szegedy": 5,
    "wu_he": 4,
    "handbooks": 11,
    "styles": 4,
    "fine_tuning": 3,
    "santurkar": 4,
    "architectures": 7,
    "cifar10": 6,
    "keras": 4,
}


def test_families_are_those_that_were_written_down() -> None:
    """A test that is added to one of them would change the verdicts of the others: it makes a family of its own."""
    tests = [claim for claim in CLAIMS if is_test(claim)]
    numbers = Counter(family(claim) for claim in tests)
    assert {name: numbers[name] for name in FAMILIES} == FAMILIES


RESULTS = Path(__file__).parents[2] / "results"


def test_readme_of_the_results_is_current() -> None:
    """It is written from claims.json, which has the claims' own statements and notes."""
    records = read_records(RESULTS)
    text = (RESULTS / "README.md").read_text()
    assert text == markdown(records, RESULTS)
    ids = {entry["id"] for entry in records}
    assert [(entry["id"], entry["statement"], entry["note"]) for entry in records] == [
        (claim.id, claim.statement, claim.note) for claim in CLAIMS if claim.id in ids
    ]


def test_verdicts_of_the_results_follow_from_their_samples(tmp_path: Path) -> None:
    """They are computed again from the values of the seeds alone."""
    (tmp_path / "claims.json").write_text((RESULTS / "claims.json").read_text())
    again = update(tmp_path, CLAIMS, {})
    assert again == read_records(RESULTS)


def test_no_verdict_could_not_have_failed() -> None:
    for entry in facts_of(read_records(RESULTS)):
        assert entry["verdict"] == "inconclusive" or all(entry["detectable"].values()), entry["id"]


@pytest.mark.parametrize("claim", [c for c in CLAIMS if is_identity(c)], ids=lambda c: c.id)
def test_identities_hold(claim: Claim) -> None:
    for rule in claim.rules.values():
        assert verdict(rule, []) == Verdict.REPRODUCED


def test_every_published_cell_has_a_claim() -> None:
    """Two accuracies with each norm; those of the cells published with both outcomes are a share of seeds."""
    rules = [rule for claim in CLAIMS if claim.id.startswith("udacity.") for rule in claim.all_rules.values()]
    exact = [value for rule in rules if isinstance(rule, PublishedSample) for value in (rule.published, *rule.also)]
    trains = [100 * value for _, values in CELLS for value in values if value > 0.15]
    assert len(CELLS) == 16
    divided = (92.08, 92.44, 90.54, 91.28)
    assert sorted(exact) == pytest.approx(sorted(value for value in trains if round(value, 2) not in divided))
    assert sum(isinstance(rule, Divided) for rule in rules) == 2
    assert sum(isinstance(rule, AtChance) for rule in rules) == 5


def test_reruns_of_every_cell() -> None:
    """Unedited ones alone: 5 to 22 of each, the published run among them."""
    for cell in CELL_LIST:
        for column, values in cell.reruns.items():
            assert 5 <= len(values) <= 22
            close = [any(abs(known - value) < 0.02 for value in values) for known in cell.published[column]]
            assert any(close), (cell.name, column)


@pytest.mark.extra
def test_sweeps_compose_and_stack() -> None:
    """Runs of every claim, the grid's first and last, are valid configurations; seeds of an arm share a stack."""
    with configurations() as composer:
        for sweep in sweeps_of(CLAIMS):
            if re.fullmatch(r"wu_he_.*_(4|8|16)", sweep.name):
                continue  # made as those of 2 and 32 are
            jobs = split_jobs(parse_overrides(sweep_arguments(sweep, [0], 2)), composer.folder)
            runs = [composer.compose_job(job)[0] for job in jobs[:2] + jobs[-2:]]
            assert {run.seed for run in runs} >= {0, 1} or sweep.tuned
            assert len({stack_key(run, False) for run in runs}) <= len(runs) / 2


def test_pick_by_the_beginning_of_an_id() -> None:
    assert {source(claim) for claim in pick(["wiki"])} == {"wiki"}
    assert [claim.id for claim in pick(["wiki.maximum", "wiki.maximum"])] == ["wiki.maximum"]
    assert pick([]) == CLAIMS
    assert len(pick(["wiki.sooner"])) == 2
    with pytest.raises(ConfigError, match="did you mean wiki"):
        pick(["wikis"])


def test_holm_runs_over_a_family_whatever_was_run() -> None:
    """A claim run alone is judged as strictly as among all of its family."""
    own = [claim.id for claim in CLAIMS if family(claim) == "wiki" and is_test(claim)]
    assert adjust(CLAIMS, {own[0]: {"0": 0.002}})[own[0]]["0"] == pytest.approx(0.002 * len(own))
    both = {key: {"0": 0.002, "1000": 0.03} for key in own}
    assert adjust(CLAIMS, both)[own[-1]] == pytest.approx({"0": 0.002 * len(own), "1000": 0.03 * len(own)})


@pytest.mark.parametrize(
    "rule",
    [
        Directional(on_test(BATCH), on_test(NONE)),
        Equivalent(on_test(BATCH), on_test(NONE), 10),
        Equivalent(on_test(BATCH), 50, 10),
        Share(on_test(BATCH), 50),
        Sooner(0.5, BATCH, NONE),
        PublishedRun(on_test(BATCH), 50, 1),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_an_arm_without_runs_gives_no_verdict(rule: Rule) -> None:
    with pytest.raises(NoVerdictError, match="no complete runs"):
        finding(rule, make_arms(LOW, []))


def test_a_multiple_beyond_the_grid_gives_no_verdict() -> None:
    with pytest.raises(NoVerdictError, match=r"optim.lr=9, 30 times the best, is beyond the grid"):
        on_test(at_best_of(BATCH, NONE, "optim.lr", 30)).of(GRID)


def test_the_choice_of_a_rate_is_told() -> None:
    rule = Equivalent(on_test(best(NONE, "optim.lr")), on_test(best(BATCH, "optim.lr")), 10)
    remark = rule.read(GRID).remark
    assert "norm=none is best at optim.lr=0.3 of 0.1, 0.3, 1;" in remark
    assert "norm=batch is best at optim.lr=1 of 0.1, 0.3, 1, the edge of the grid" in remark
