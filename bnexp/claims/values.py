"""Runs → one value for each seed: which runs make an arm, and what is read off each run."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import NoVerdictError, Runs
from bnexp.compare.arms import accuracy, crossing
from bnexp.runs.record import RunRecord
from bnexp.training.recorder import flatten

PerSeed = dict[int, float]
Metric = Callable[[RunRecord], float]
TRAINS = 0.9  # validation accuracy from which on a network has trained
NO_RUNS = "an arm has no complete runs"


def no_choice(runs: Runs) -> str:
    """Return that nothing was chosen."""
    return ""


@dataclass(frozen=True)
class Arm:
    """Which runs make an arm: those that share everything but the seed.

    `label` names it to the reader; `choice` says what was chosen by looking at runs, as the best learning rate.
    """

    label: str
    pick: Callable[[Runs], Runs]
    choice: Callable[[Runs], str] = no_choice


@dataclass(frozen=True)
class Values:
    """How runs give one value for each seed.

    `label` names it to the reader, `scale` and `unit` show it to them; `choice` is that of the arm.
    """

    label: str
    of: Callable[[Runs], PerSeed]
    scale: float = 1.0
    unit: str = ""
    choice: Callable[[Runs], str] = no_choice


# ---- text for a rule's details


def named(control: Values | float, ours: Values) -> str:
    """Return the control's label or, if it is a number, that number formatted in the unit of `ours`."""
    return control.label if isinstance(control, Values) else f"{ours.scale * control:,.6g}{ours.unit}"


def choices(runs: Runs, *sides: Values | Arm | float) -> str:
    """Return what was chosen for either side, as its best learning rate, each choice once."""
    chosen = dict.fromkeys(side.choice(runs) for side in sides if not isinstance(side, float | int))
    return "".join(f"; {choice}" for choice in chosen if choice)


def mean_text(values: list[float], of: Values) -> str:
    """Return the mean of values in their unit."""
    return f"{of.scale * float(np.mean(values)):.4g}{of.unit and ' ' * (of.unit != '%')}{of.unit}"


# ---- arms


def where(settings: str) -> Arm:
    """Return the arm of the runs with these settings, written as overrides: norm=batch optim.lr=0.01."""
    wanted = dict(setting.split("=", 1) for setting in settings.split())
    return Arm(settings, lambda runs: [run for run in runs if matches(run, wanted)])


def matches(run: RunRecord, wanted: dict[str, str]) -> bool:
    """Return whether a run has these settings."""
    config = flatten(run.config)
    return all(same(config[key], value) for key, value in wanted.items())


def same(value: object, text: str) -> bool:
    """Return whether an override's text means a configuration's value."""
    if isinstance(value, bool):
        return str(value).lower() == text
    if isinstance(value, float):
        return math.isclose(value, float(text))
    return str(value).replace(" ", "") == text


def best(arm: Arm, key: str) -> Arm:
    """Return the runs of an arm at its best value of a key: the one with the highest mean final validation accuracy."""

    def choice(runs: Runs) -> str:
        values = list(by_value(arm.pick(runs), key))
        chosen = best_value(arm.pick(runs), key)
        edge = ", the edge of the grid" if chosen in (values[0], values[-1]) else ""
        return f"{arm.label} is best at {key}={chosen:g} of {', '.join(f'{value:g}' for value in values)}{edge}"

    return Arm(
        f"{arm.label} at its best {key}",
        lambda runs: at(arm.pick(runs), key, best_value(arm.pick(runs), key)),
        choice,
    )


def at(runs: Runs, key: str, value: float) -> Runs:
    """Return the runs whose key has a value."""
    return [run for run in runs if flatten(run.config)[key] == value]


def by_value(runs: Runs, key: str) -> dict[float, Runs]:
    """Return the runs by their values of a key, in increasing order."""
    return {value: at(runs, key, value) for value in sorted({flatten(run.config)[key] for run in runs})}


def best_value(runs: Runs, key: str) -> float:
    """Return the value with the highest mean final validation accuracy. Raises NoVerdictError without runs."""
    groups = by_value(runs, key)
    if not groups:
        raise NoVerdictError(NO_RUNS)
    return max(groups, key=lambda value: float(np.mean([validation_accuracy(run) for run in groups[value]])))


def at_best_of(arm: Arm, other: Arm, key: str, times: float = 1) -> Arm:
    """Return the runs of an arm at the best value of another arm, or at a multiple of it.

    `times`: the smallest value of the grid that is at least this much larger. Picking raises NoVerdictError where that
    is beyond the grid.
    """

    def pick(runs: Runs) -> Runs:
        candidates, least = arm.pick(runs), times * best_value(other.pick(runs), key)
        value = min((value for value in by_value(candidates, key) if value >= least * (1 - 1e-9)), default=None)
        if value is None:
            raise NoVerdictError(f"{key}={least:g}, {times:g} times the best, is beyond the grid")
        return at(candidates, key, value)

    label = f"{arm.label} at {f'{times:g} times (or the next value of the grid) ' if times != 1 else ''}the best {key}"
    return Arm(f"{label} of {other.label}", pick, best(other, key).choice)


# ---- what is read off a run


def validation_accuracy(run: RunRecord) -> float:
    """Return a run's final validation accuracy, from 0 to 1."""
    return float(run.summary["validation"]["final"])


def recalibrated_accuracy(run: RunRecord) -> float:
    """Return a run's test accuracy with batch statistics of the whole training set, where its network has some."""
    return float(run.summary.get("test_recalibrated", run.summary["test"])["accuracy"])


def still_to_gain(step: int) -> Metric:
    """Return the best validation accuracy of all, minus the best up to a step."""

    def read(run: RunRecord) -> float:
        accuracies = {known: row["accuracy"] for known, row in run.validation.items()}
        return max(accuracies.values()) - max(value for known, value in accuracies.items() if known <= step)

    return read


def drift(column: str, since: int) -> Metric:
    """Return the range of a recorded column over training, from a step on."""

    def read(run: RunRecord) -> float:
        return float(np.ptp([row[column] for step, row in run.validation.items() if step >= since]))

    return read


def drift_of_spread(layer: str, since: int) -> Metric:
    """Return the range over training, from a step on, of a layer's 85th minus its 15th percentile."""

    def read(run: RunRecord) -> float:
        rows = [row for step, row in run.validation.items() if step >= since]
        return float(np.ptp([row[f"{layer}/p85"] - row[f"{layer}/p15"] for row in rows]))

    return read


# ---- values


def each(name: str, metric: Metric, arm: Arm, scale: float = 1.0, unit: str = "") -> Values:
    """Return a metric of an arm's runs, one run for each seed; `name` names the metric."""

    def of(runs: Runs) -> PerSeed:
        return {run.seed: metric(run) for run in arm.pick(runs)}

    return Values(f"{name} of {arm.label}", of, scale, unit, arm.choice)


def over_runs(
    name: str, metric: Metric, arm: Arm, take: Callable[[list[float]], float], scale: float = 1.0, unit: str = ""
) -> Values:
    """Return a metric of an arm that has several runs of each seed: what `take` makes of them, as their mean."""

    def of(runs: Runs) -> PerSeed:
        by_seed: dict[int, list[float]] = {}
        for run in arm.pick(runs):
            by_seed.setdefault(run.seed, []).append(metric(run))
        return {seed: float(take(values)) for seed, values in by_seed.items()}

    return Values(f"{name} of {arm.label}", of, scale, unit, arm.choice)


def difference(ours: Values, control: Values) -> Values:
    """Return the values of one arm minus those of another, seed by seed."""

    def of(runs: Runs) -> PerSeed:
        values, other = ours.of(runs), control.of(runs)
        return {seed: values[seed] - other[seed] for seed in values.keys() & other.keys()}

    return Values(f"{ours.label} minus {control.label}", of, ours.scale, ours.unit)


def on_test(arm: Arm) -> Values:
    """Return the test accuracy of an arm's runs."""
    return each("test accuracy", accuracy, arm, 100, "%")


def error_on_test(arm: Arm) -> Values:
    """Return the test error of an arm's runs."""
    return each("test error", lambda run: 1 - accuracy(run), arm, 100, "%")


def on_validation(arm: Arm) -> Values:
    """Return the final validation accuracy of an arm's runs."""
    return each("validation accuracy", validation_accuracy, arm, 100, "%")


def steps_to(target: float, run: RunRecord) -> float:
    """Return a run's steps to a validation accuracy; all of its steps where it never gets there."""
    reached = crossing(run, target)
    return float(run.config["steps"] if reached is None else reached)


def steps_within(target: float, arm: Arm) -> Values:
    """Return the steps of an arm's runs to a validation accuracy."""
    return each(f"steps to {target:.0%}", lambda run: steps_to(target, run), arm, unit="steps")


def steps_to_share(share: float, full: Arm, arm: Arm, times: float = 1) -> Values:
    """Return an arm's steps to a share of the mean final validation accuracy of another arm, `full`.

    `times` is a factor of the steps, as 0.5 to ask for half as many.
    """

    def of(runs: Runs) -> PerSeed:
        accuracies = [validation_accuracy(run) for run in full.pick(runs)]
        if not accuracies:
            raise NoVerdictError(NO_RUNS)
        target = share * float(np.mean(accuracies))
        return {run.seed: times * steps_to(target, run) for run in arm.pick(runs)}

    factor = f"{times:g} times the " if times != 1 else ""
    return Values(f"{factor}steps of {arm.label} to {share:.0%} of the accuracy of {full.label}", of, unit="steps")


def largest_that_trains(arm: Arm, key: str) -> Values:
    """Return log10 of the largest value of a key at which a seed trains; one decade below all where it never does."""

    def of(runs: Runs) -> PerSeed:
        arm_runs = arm.pick(runs)
        if not arm_runs:
            raise NoVerdictError(NO_RUNS)
        floor = math.log10(min(by_value(arm_runs, key))) - 1
        largest: PerSeed = {}
        for run in arm_runs:
            reached = math.log10(flatten(run.config)[key]) if validation_accuracy(run) >= TRAINS else floor
            largest[run.seed] = max(largest.get(run.seed, floor), reached)
        return largest

    return Values(f"decades: log10 of the largest {key} at which {arm.label} trains", of, unit="decades")


def how_many_train(arm: Arm, key: str) -> Values:
    """Return at how many values of a key a seed trains."""

    def of(runs: Runs) -> PerSeed:
        numbers: PerSeed = {}
        for run in arm.pick(runs):
            numbers[run.seed] = numbers.get(run.seed, 0) + (validation_accuracy(run) >= TRAINS)
        return numbers

    return Values(f"number of values of {key} at which {arm.label} trains", of)
