"""Runs → a value a seed: which runs make an arm, and what is read off each."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnexp.claims.claim import NoVerdictError, Runs
from bnexp.comparison import accuracy, crossing
from bnexp.logs import flatten
from bnexp.runs import RunRecord

PerSeed = dict[int, float]
Metric = Callable[[RunRecord], float]
TRAINS = 0.9  # validation accuracy from which on a network has trained


def nothing(runs: Runs) -> str:
    return ""


@dataclass(frozen=True)
class Arm:
    """Runs that share everything but the seed. `words` name it to the reader; `tell`: what was chosen on the way."""

    words: str
    pick: Callable[[Runs], Runs]
    tell: Callable[[Runs], str] = nothing


@dataclass(frozen=True)
class Values:
    """A value a seed. `words` name it to the reader; `scale` and `unit` show it to them; `tell`: as of an arm."""

    words: str
    of: Callable[[Runs], PerSeed]
    scale: float = 1.0
    unit: str = ""
    tell: Callable[[Runs], str] = nothing


# ---- arms


def where(settings: str) -> Arm:
    """Runs with these settings, in the words of the command line: norm=batch optim.lr=0.01."""
    wanted = dict(word.split("=", 1) for word in settings.split())
    return Arm(settings, lambda runs: [run for run in runs if matches(run, wanted)])


def matches(run: RunRecord, wanted: dict[str, str]) -> bool:
    config = flatten(run.config)
    return all(same(config[key], value) for key, value in wanted.items())


def same(value: object, word: str) -> bool:
    if isinstance(value, bool):
        return str(value).lower() == word
    if isinstance(value, float):
        return math.isclose(value, float(word))
    return str(value).replace(" ", "") == word


def best(arm: Arm, key: str) -> Arm:
    """Of an arm that was run at several values of a key, the runs at its best one: by mean validation accuracy at the
    end.
    """

    def tell(runs: Runs) -> str:
        values = list(by_value(arm.pick(runs), key))
        chosen = best_value(arm.pick(runs), key)
        edge = ", the edge of the grid" if chosen in (values[0], values[-1]) else ""
        return f"{arm.words} is best at {key}={chosen:g} of {', '.join(f'{value:g}' for value in values)}{edge}"

    return Arm(
        f"{arm.words} at its best {key}",
        lambda runs: at(arm.pick(runs), key, best_value(arm.pick(runs), key)),
        tell,
    )


def at(runs: Runs, key: str, value: float) -> Runs:
    return [run for run in runs if flatten(run.config)[key] == value]


def by_value(runs: Runs, key: str) -> dict[float, Runs]:
    return {value: at(runs, key, value) for value in sorted({flatten(run.config)[key] for run in runs})}


def best_value(runs: Runs, key: str) -> float:
    """Raises NoVerdictError without runs."""
    groups = by_value(runs, key)
    if not groups:
        raise NoVerdictError("an arm has no complete runs")
    return max(groups, key=lambda value: float(np.mean([validation_accuracy(run) for run in groups[value]])))


def at_best_of(arm: Arm, other: Arm, key: str, times: float = 1) -> Arm:
    """Runs of an arm at the best value of another; `times`: at the smallest value that is this much larger or more.
    Raises NoVerdictError where that is beyond the grid.
    """

    def pick(runs: Runs) -> Runs:
        own, least = arm.pick(runs), times * best_value(other.pick(runs), key)
        value = min((value for value in by_value(own, key) if value >= least * (1 - 1e-9)), default=None)
        if value is None:
            raise NoVerdictError(f"{key}={least:g}, {times:g} times the best, is beyond the grid")
        return at(own, key, value)

    words = f"{arm.words} at {f'{times:g} times (or the next value of the grid) ' if times != 1 else ''}the best {key}"
    return Arm(f"{words} of {other.words}", pick, best(other, key).tell)


# ---- what is read off a run


def validation_accuracy(run: RunRecord) -> float:
    return float(run.summary["validation"]["final"])


def recalibrated_accuracy(run: RunRecord) -> float:
    """On test, with statistics of the whole training set where the network has some."""
    return float(run.summary.get("test_recalibrated", run.summary["test"])["accuracy"])


def still_to_gain(step: int) -> Metric:
    """Best validation accuracy of all, minus the best up to a step."""

    def read(run: RunRecord) -> float:
        accuracies = {known: row["accuracy"] for known, row in run.validation.items()}
        return max(accuracies.values()) - max(value for known, value in accuracies.items() if known <= step)

    return read


def drift(column: str, since: int) -> Metric:
    """Range of a recorded column over training, from a step on."""

    def read(run: RunRecord) -> float:
        return float(np.ptp([row[column] for step, row in run.validation.items() if step >= since]))

    return read


def drift_of_spread(layer: str, since: int) -> Metric:
    """Range over training, from a step on, of the 85th minus the 15th percentile."""

    def read(run: RunRecord) -> float:
        rows = [row for step, row in run.validation.items() if step >= since]
        return float(np.ptp([row[f"{layer}/p85"] - row[f"{layer}/p15"] for row in rows]))

    return read


# ---- values


def each(words: str, metric: Metric, arm: Arm, scale: float = 1.0, unit: str = "") -> Values:
    def of(runs: Runs) -> PerSeed:
        return {run.seed: metric(run) for run in arm.pick(runs)}

    return Values(f"{words} of {arm.words}", of, scale, unit, arm.tell)


def over_runs(
    words: str, metric: Metric, arm: Arm, take: Callable[[list[float]], float], scale: float = 1.0, unit: str = ""
) -> Values:
    """Of an arm that has several runs of a seed: their mean, say, or their sum."""

    def of(runs: Runs) -> PerSeed:
        found: dict[int, list[float]] = {}
        for run in arm.pick(runs):
            found.setdefault(run.seed, []).append(metric(run))
        return {seed: float(take(values)) for seed, values in found.items()}

    return Values(f"{words} of {arm.words}", of, scale, unit, arm.tell)


def difference(ours: Values, control: Values) -> Values:
    """Of two arms, seed by seed."""

    def of(runs: Runs) -> PerSeed:
        own, base = ours.of(runs), control.of(runs)
        return {seed: own[seed] - base[seed] for seed in own.keys() & base.keys()}

    return Values(f"{ours.words} minus {control.words}", of, ours.scale, ours.unit)


def on_test(arm: Arm) -> Values:
    return each("test accuracy", accuracy, arm, 100, "%")


def error_on_test(arm: Arm) -> Values:
    return each("test error", lambda run: 1 - accuracy(run), arm, 100, "%")


def on_validation(arm: Arm) -> Values:
    return each("validation accuracy", validation_accuracy, arm, 100, "%")


def steps_to(target: float, run: RunRecord) -> float:
    """To a validation accuracy; a run that never gets there has all of its steps."""
    reached = crossing(run, target)
    return float(run.config["steps"] if reached is None else reached)


def steps_within(target: float, arm: Arm) -> Values:
    return each(f"steps to {target:.0%}", lambda run: steps_to(target, run), arm, unit="steps")


def steps_to_share(share: float, full: Arm, arm: Arm, times: float = 1) -> Values:
    """Steps to a share of the validation accuracy that another arm has in the end, its mean over seeds; `times`: a
    factor, to ask for half as many.
    """

    def of(runs: Runs) -> PerSeed:
        own = [validation_accuracy(run) for run in full.pick(runs)]
        if not own:
            raise NoVerdictError("an arm has no complete runs")
        target = share * float(np.mean(own))
        return {run.seed: times * steps_to(target, run) for run in arm.pick(runs)}

    factor = f"{times:g} times the " if times != 1 else ""
    return Values(f"{factor}steps of {arm.words} to {share:.0%} of the accuracy of {full.words}", of, unit="steps")


def largest_that_trains(arm: Arm, key: str) -> Values:
    """log10 of the largest value of a key at which a seed trains; below all of them where it doesn't at any."""

    def of(runs: Runs) -> PerSeed:
        own = arm.pick(runs)
        if not own:
            raise NoVerdictError("an arm has no complete runs")
        floor = math.log10(min(by_value(own, key))) - 1
        found: PerSeed = {}
        for run in own:
            reached = math.log10(flatten(run.config)[key]) if validation_accuracy(run) >= TRAINS else floor
            found[run.seed] = max(found.get(run.seed, floor), reached)
        return found

    return Values(f"decades: log10 of the largest {key} at which {arm.words} trains", of, unit="decades")


def how_many_train(arm: Arm, key: str) -> Values:
    """At how many values of a key a seed trains."""

    def of(runs: Runs) -> PerSeed:
        found: PerSeed = {}
        for run in arm.pick(runs):
            found[run.seed] = found.get(run.seed, 0) + (validation_accuracy(run) >= TRAINS)
        return found

    return Values(f"number of values of {key} at which {arm.words} trains", of)
