"""How runs give one value for each seed: which runs make an arm, and which metric is taken of each run.

Accuracies are read as shares from 0 to 1, and shown and judged in percent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import TUNING, NoVerdictError, PerSeed, Runs
from bnexp.compare.arms import accuracy, crossing
from bnexp.runs.directory import flatten
from bnexp.runs.record import RunRecord

Metric = Callable[[RunRecord], float]
TRAINS = 0.9  # final validation accuracy from which on a run counts as one that trains
NO_RUNS = "an arm has no complete runs"


def no_choice(runs: Runs) -> str:
    """Return an empty text, for an arm that involves no choice."""
    return ""


@dataclass(frozen=True)
class Arm:
    """How the runs of an arm are picked from all runs of a claim.

    label: names the arm to a reader. select: a function from the claim's runs to those of the arm, those of the TUNING
    seeds included. choice: a function from the claim's runs to a text on what was chosen by comparing them, as the best
    learning rate; the text is empty if nothing was.
    """

    label: str
    select: Callable[[Runs], Runs]
    choice: Callable[[Runs], str] = no_choice

    def pick(self, runs: Runs) -> Runs:
        """Return the arm's runs by which claims are judged: those that are not of the TUNING seeds.

        Raises NoVerdictError where a value has to be chosen and there are no runs to choose it by.
        """
        return [run for run in self.select(runs) if run.seed not in TUNING]


@dataclass(frozen=True)
class Values:
    """How to compute a value for each seed from a claim's runs, by the function `of`.

    label: names the values to a reader, to whom they are shown in `unit`. choice: a function from the runs to a text
    for the verdict's details, mostly that of the arm; "" where there is nothing to say.
    """

    label: str
    of: Callable[[Runs], PerSeed]
    unit: str = ""
    choice: Callable[[Runs], str] = no_choice


# ---- text for a rule's details


def choices(runs: Runs, *sides: Values | Arm | float) -> str:
    """Return as text what was chosen by comparing runs for any of `sides`: each choice once, separated by "; "."""
    chosen = dict.fromkeys(side.choice(runs) for side in sides if not isinstance(side, float | int))
    return "; ".join(choice for choice in chosen if choice)


def in_unit(value: float, unit: str) -> str:
    """Return a value of four digits as text, with its unit, if any."""
    return f"{value:.4g}{unit}" if unit in ("", "%") else f"{value:.4g} {unit}"


# ---- arms


def where(settings: str) -> Arm:
    """Return the arm of the runs with these settings, written as overrides: norm=batch optim.lr=0.01.

    Selecting raises as `matches`.
    """
    wanted = dict(setting.split("=", 1) for setting in settings.split())
    return Arm(settings, lambda runs: [run for run in runs if matches(run, wanted)])


def at_batch_size(norm: str, size: int) -> Arm:
    """Return the arm of the runs with a norm and a batch size."""
    return where(f"norm={norm} batch_size={size}")


def matches(run: RunRecord, wanted: dict[str, str]) -> bool:
    """Return whether a run has the settings `wanted`, dotted key → text.

    Raises KeyError for a key it lacks, unless an earlier one has another value, and ValueError as `same`.
    """
    config = flatten(run.config)
    return all(same(config[key], value) for key, value in wanted.items())


def same(value: object, text: str) -> bool:
    """Return whether a configuration's value is the one that an override gives as `text`; floats up to rounding.

    Raises ValueError where the value is a float and `text` is no number.
    """
    if isinstance(value, bool):
        return str(value).lower() == text
    if isinstance(value, float):
        return math.isclose(value, float(text))
    return str(value).replace(" ", "") == text


def best(arm: Arm, key: str) -> Arm:
    """Return an `Arm` of the runs of `arm` at the value of `key` that is best on validation over the TUNING seeds.

    `choice` says as text which value that is. Both functions raise NoVerdictError where the arm has no runs of them.
    """

    def choice(runs: Runs) -> str:
        values = list(by_value(arm.select(runs), key))
        chosen = best_value(arm, runs, key)
        edge = ", the edge of the grid" if chosen in (values[0], values[-1]) else ""
        return f"{arm.label} is best at {key}={chosen:g} of {', '.join(f'{value:g}' for value in values)}{edge}"

    return Arm(
        f"{arm.label} at its best {key}", lambda runs: at(arm.select(runs), key, best_value(arm, runs, key)), choice
    )


def at(runs: Runs, key: str, value: float) -> Runs:
    """Return the runs whose `key` has this value."""
    return [run for run in runs if flatten(run.config)[key] == value]


def by_value(runs: Runs, key: str) -> dict[float, Runs]:
    """Return value of `key` → the runs that have it, in increasing order of the values."""
    return {value: at(runs, key, value) for value in sorted({flatten(run.config)[key] for run in runs})}


def best_value(arm: Arm, runs: Runs, key: str) -> float:
    """Return the value of `key` with which the arm's runs of the TUNING seeds have the highest mean final validation
    accuracy; the smallest where several have it.

    Raises NoVerdictError where there are no such runs.
    """
    groups = by_value([run for run in arm.select(runs) if run.seed in TUNING], key)
    if not groups:
        raise NoVerdictError(NO_RUNS)
    return max(groups, key=lambda value: float(np.mean([validation_accuracy(run) for run in groups[value]])))


def at_best_of(arm: Arm, other: Arm, key: str, times: float = 1) -> Arm:
    """Return `arm` with its runs at the value of `key` that is `times` the best one of the arm `other`.

    Where the runs lack this value, the next larger one that they have is taken. Selecting raises NoVerdictError where
    there is none, or `other` has no runs.
    """

    def select(runs: Runs) -> Runs:
        candidates, least = arm.select(runs), times * best_value(other, runs, key)
        value = min((value for value in by_value(candidates, key) if value >= least * (1 - 1e-9)), default=None)
        if value is None:
            raise NoVerdictError(f"{key}={least:g}, {times:g} times the best, is beyond the grid")
        return at(candidates, key, value)

    label = f"{arm.label} at {f'{times:g} times (or the next value of the grid) ' if times != 1 else ''}the best {key}"
    return Arm(f"{label} of {other.label}", select, best(other, key).choice)


# ---- what is read off a run


def validation_accuracy(run: RunRecord) -> float:
    """Return a run's final validation accuracy, from 0 to 1."""
    return float(run.summary["validation"]["final"])


def recalibrated_accuracy(run: RunRecord) -> float:
    """Return the test accuracy with batch statistics of the whole training set, or the plain one where that was not
    measured.
    """
    return float(run.summary.get("test_recalibrated", run.summary["test"])["accuracy"])


def still_to_gain(step: int) -> Metric:
    """Return a function that gives a run's best validation accuracy minus its best up to a step."""

    def read(run: RunRecord) -> float:
        accuracies = {known: row["accuracy"] for known, row in run.validation.items()}
        return max(accuracies.values()) - max(value for known, value in accuracies.items() if known <= step)

    return read


def drift(column: str, since: int) -> Metric:
    """Return a function: run → highest minus lowest value of a column of its validation rows from step `since` on."""

    def read(run: RunRecord) -> float:
        return float(np.ptp([row[column] for step, row in run.validation.items() if step >= since]))

    return read


def drift_of_spread(layer: str, since: int) -> Metric:
    """Return a function: run → range, from step `since` on, of the 85th minus the 15th percentile of the inputs to the
    activation of a layer.
    """

    def read(run: RunRecord) -> float:
        rows = [row for step, row in run.validation.items() if step >= since]
        return float(np.ptp([row[f"{layer}/p85"] - row[f"{layer}/p15"] for row in rows]))

    return read


# ---- values


def each(name: str, metric: Metric, arm: Arm, scale: float = 1.0, unit: str = "") -> Values:
    """Return the `Values` of scale · metric, in `unit`, over an arm that has one run for each seed.

    `name` names the metric.
    """

    def of(runs: Runs) -> PerSeed:
        return {run.seed: scale * metric(run) for run in arm.pick(runs)}

    return Values(f"{name} of {arm.label}", of, unit, arm.choice)


def over_runs(
    name: str, metric: Metric, arm: Arm, take: Callable[[list[float]], float], scale: float = 1.0, unit: str = ""
) -> Values:
    """Return the `Values` of scale · metric over an arm; `take`, as np.mean, combines those of a seed's runs."""

    def of(runs: Runs) -> PerSeed:
        by_seed: dict[int, list[float]] = {}
        for run in arm.pick(runs):
            by_seed.setdefault(run.seed, []).append(scale * metric(run))
        return {seed: float(take(values)) for seed, values in by_seed.items()}

    return Values(f"{name} of {arm.label}", of, unit, arm.choice)


def difference(ours: Values, control: Values) -> Values:
    """Return the `Values` of `ours` minus those of `control`, at their common seeds."""

    def of(runs: Runs) -> PerSeed:
        values, other = ours.of(runs), control.of(runs)
        return {seed: values[seed] - other[seed] for seed in values.keys() & other.keys()}

    return Values(f"{ours.label} minus {control.label}", of, ours.unit)


def on_test(arm: Arm) -> Values:
    """Return the `Values` of test accuracies of an arm's runs, shown in percent."""
    return each("test accuracy", accuracy, arm, 100, "%")


def error_on_test(arm: Arm) -> Values:
    """Return the `Values` of test errors, 1 minus the accuracy, of an arm's runs, shown in percent."""
    return each("test error", lambda run: 1 - accuracy(run), arm, 100, "%")


def on_validation(arm: Arm) -> Values:
    """Return the `Values` of final validation accuracies of an arm's runs, shown in percent."""
    return each("validation accuracy", validation_accuracy, arm, 100, "%")


def steps_to(target: float, run: RunRecord) -> float:
    """Return a run's steps to the validation accuracy `target`; all of its steps where it never reaches it."""
    reached = crossing(run, target)
    return float(run.config["steps"] if reached is None else reached)


def steps_within(target: float, arm: Arm) -> Values:
    """Return the `Values` of an arm's steps to a validation accuracy; all steps of a run that never reaches it."""
    return each(f"steps to {target:.0%}", lambda run: steps_to(target, run), arm, unit="steps")


def steps_to_share(share: float, full: Arm, arm: Arm, times: float = 1) -> Values:
    """Return the `Values` of steps of `arm` to a share of the mean final validation accuracy of the arm `full`.

    A run that never gets there counts with all of its steps. The steps are multiplied by `times`, as 0.5 to ask for
    half as many. Computing them raises NoVerdictError where `full` has no runs.
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
    """Return the `Values` whose value for a seed is log10 of the largest `key` at which the seed's run trains.

    A run trains if its final validation accuracy is at least 90%. A seed none of whose runs trains has one decade less
    than the arm's smallest `key`. When the values are computed, NoVerdictError is raised if the arm has no runs.
    """

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
    """Return the `Values` whose value for a seed is the number of values of `key` at which the seed's run trains: has a
    final validation accuracy of at least 90%.
    """

    def of(runs: Runs) -> PerSeed:
        numbers: PerSeed = {}
        for run in arm.pick(runs):
            numbers[run.seed] = numbers.get(run.seed, 0) + (validation_accuracy(run) >= TRAINS)
        return numbers

    return Values(f"number of values of {key} at which {arm.label} trains", of)
