"""Run directories → what is compared: the runs of each arm, and their statistics, times and curves.

The numbers themselves are computed by `statistics`, which takes plain arrays; `report` shows them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnexp.compare.figures import Curve
from bnexp.compare.statistics import (
    Estimate,
    Pairing,
    Random,
    TimeResult,
    compare_arm,
    compare_times,
    curve_band,
    first_crossing,
    holm,
    mean_interval,
)
from bnexp.runs.config import ConfigError
from bnexp.runs.console import printable
from bnexp.runs.record import RunRecord, fits
from bnexp.training.recorder import flatten

TARGETS = (0.90, 0.95)  # validation accuracies whose times are compared
UNITS = ("steps", "seconds")
NOT_ARMS = {"seed", "dataset.root", "checkpoint.every_seconds"}  # keys that do not tell arms apart
Settings = dict[str, Any]  # dotted key → value
Runs = list[RunRecord]
Arms = dict[str, Runs]  # arm → its runs, the control first
Panels = dict[str, Arms]  # what the arms of a panel share besides, as "act=relu" → its arms


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: an arm of a panel.

    Accuracies are fractions; `difference` is this arm minus the control, seed by seed; `p_holm` is p after Holm's
    correction over all arms of the report. `n` of `planned` runs finished, and estimates are None where none did;
    `planned_pairs` is the number of seeds that both this arm and the control were planned with. `recalibrated` is the
    test accuracy with batch statistics of a whole epoch in place of running averages.
    """

    panel: str
    arm: str
    control: bool
    n: int
    planned: int
    planned_pairs: int
    diverged: int
    test_accuracy: Estimate | None
    interquartile_mean: float | None
    difference: Estimate | None
    pairing: Pairing | None
    p: float | None
    p_holm: float | None
    times: list[TimeResult]
    steps_per_second: float | None
    speed_ratio: float | None
    notes: list[str]
    recalibrated: Estimate | None

    def time(self, target: float, unit: str) -> TimeResult:
        """Return the time to one of TARGETS in one of UNITS."""
        return next(time for time in self.times if (time.target, time.unit) == (target, unit))


# ---- which runs make an arm


def settings(config: dict[str, Any]) -> Settings:
    """Return what a run's configuration says that may tell arms apart, with printable keys and values."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_ARMS}
    return {printable(key): printable(value) if isinstance(value, str) else value for key, value in flat.items()}


def settings_of(runs: Runs) -> list[Settings]:
    """Return the settings of each run, without init_from where every seed starts from a run of its own."""
    configs = [settings(run.config) for run in runs]
    if goes_with_seed(runs, "init_from"):
        return [{key: value for key, value in config.items() if key != "init_from"} for config in configs]
    return configs


def goes_with_seed(runs: Runs, key: str) -> bool:
    """Return whether each seed has one value of `key`, and each value one seed."""
    pairs = {(run.seed, str(run.config.get(key))) for run in runs}
    seeds, values = zip(*pairs, strict=True)
    return len(pairs) == len(set(seeds)) == len(set(values))


def swept_keys(configs: list[Settings]) -> list[str]:
    """Return the keys whose values differ, without those that come with a choice, as norm.eps with norm=batch."""
    differing = [key for key in dict.fromkeys(k for c in configs for k in c) if len(distinct(configs, key)) > 1]
    return [key for key in differing if not follows_choice(key, differing, configs)]


def distinct(configs: Iterable[Settings], key: str) -> list[str]:
    """Return the values of a key, each once, as text in the order in which they come."""
    return list(dict.fromkeys(str(config.get(key)) for config in configs))


def follows_choice(key: str, differing: list[str], configs: list[Settings]) -> bool:
    """Return whether a key of a group has one value for each choice of that group."""
    group = key.split(".", maxsplit=1)[0]
    if "." not in key or group not in differing:
        return False
    choices = distinct(configs, group)
    return all(len(distinct((c for c in configs if str(c[group]) == choice), key)) == 1 for choice in choices)


def check_by(by: str | None, configs: list[dict[str, Any]]) -> None:
    """Raise ConfigError where `by` is not one of the keys that differ between the configurations."""
    pick_by(by, swept_keys([settings(config) for config in configs]))


def pick_by(by: str | None, swept: list[str]) -> str | None:
    """Return the key that makes the arms: `by`, else norm, else the first that differs. Raises ConfigError."""
    if by is None:
        return "norm" if "norm" in swept else swept[0] if swept else None
    if by not in swept:
        allowed = f"choose from {', '.join(swept)}" if swept else "no key but the seed differs between the runs"
        raise ConfigError(f"by={by} is not a key that differs between the runs: {allowed}")
    return by


def arrange(runs: Runs, by: str | None) -> Panels:
    """Sort runs into panels of arms, in the order of the sweep; the values of `by` make the arms."""
    configs = settings_of(runs)
    swept = swept_keys(configs)
    by = pick_by(by, swept)
    panels: Panels = {}
    for run, config in zip(runs, configs, strict=True):
        panel = ", ".join(f"{key}={config.get(key)}" for key in swept if key != by)
        arm = f"{by}={config.get(by)}" if by else str(config["norm"])
        panels.setdefault(panel, {}).setdefault(arm, []).append(run)
    return panels


def only(panels: Panels, kept: Runs) -> Panels:
    """Return the same panels and arms with those of their runs that are in `kept`."""
    digests = {run.digest for run in kept}
    return {
        panel: {arm: [run for run in runs if run.digest in digests] for arm, runs in arms.items()}
        for panel, arms in panels.items()
    }


# ---- numbers


def compare_panels(planned: Panels, finished: Panels, control: str) -> list[ArmResult]:
    """Return a result of every arm that was planned, computed from those of its runs that finished.

    `control` names the arm that the others are compared with, within each panel.
    """
    results = [
        compare_runs((panel, arm), planned[panel], arms, control) for panel, arms in finished.items() for arm in arms
    ]
    corrected = holm({(result.panel, result.arm): result.p for result in results})
    return [replace(result, p_holm=corrected.get((result.panel, result.arm))) for result in results]


def compare_runs(place: tuple[str, str], planned: Arms, arms: Arms, control_arm: str) -> ArmResult:
    """Compare one arm, given by its panel's name and its own, with the control.

    `planned` and `arms` are the arms of its panel, with all of their runs and with those that finished.
    """
    panel, arm = place
    is_control, random = arm == control_arm, np.random.default_rng(0)
    runs, control = arms[arm], arms.get(control_arm, [])
    finished = [run for arm_runs in arms.values() for run in arm_runs]
    numbers = compare_arm(accuracies(runs), {} if is_control else accuracies(control), random)
    times = [compare_run_times((target, unit), runs, control, finished, random) for target in TARGETS for unit in UNITS]
    speed, control_speed = median_speed(runs), median_speed(control)
    recalibrated = recalibrated_accuracies(runs)
    return ArmResult(
        panel=panel,
        arm=arm,
        control=is_control,
        n=len(runs),
        planned=len(planned[arm]),
        planned_pairs=0 if is_control else len(seeds_of(planned[arm]) & seeds_of(planned.get(control_arm, []))),
        diverged=sum(run.summary["status"] == "diverged" for run in runs),
        test_accuracy=numbers.mean,
        interquartile_mean=numbers.interquartile_mean,
        difference=numbers.difference,
        pairing=numbers.pairing,
        p=numbers.p,
        p_holm=None,  # known once all arms are
        times=times,
        steps_per_second=speed,
        speed_ratio=speed / control_speed if speed is not None and control_speed is not None else None,
        notes=[*map(printable, map(str, runs[0].record["notes"])), *data_notes(finished)] if runs else [],
        recalibrated=mean_interval(recalibrated, random) if recalibrated else None,
    )


def data_notes(runs: Runs) -> list[str]:
    """Return a note where runs saw different images, as where a folder changed between two sweeps."""
    checksums = {run.record["dataset"]["sha256"] for run in runs if fits(run.record, {"dataset": {"sha256": str}})}
    return [f"compared with runs of other data ({len(checksums)} checksums)"] if len(checksums) > 1 else []


def seeds_of(runs: Runs) -> set[int]:
    """Return the seeds of runs."""
    return {run.seed for run in runs}


def accuracy(run: RunRecord) -> float:
    """Return a run's test accuracy, from 0 to 1."""
    return float(run.summary["test"]["accuracy"])


def accuracies(runs: Runs) -> dict[int, float]:
    """Return the test accuracies of an arm's runs by their seeds."""
    return {run.seed: accuracy(run) for run in runs}


def recalibrated_accuracies(runs: Runs) -> list[float]:
    """Return the test accuracies that `eval.recalibrate` measured; of a run that diverged, the plain one.

    Empty where no run has one.
    """
    if not any("test_recalibrated" in run.summary for run in runs):
        return []
    return [run.summary.get("test_recalibrated", run.summary["test"])["accuracy"] for run in runs]


def median_speed(runs: Runs) -> float | None:
    """Return the median of the runs' training steps a second; None without runs."""
    return float(np.median([run.summary["steps_per_second"] for run in runs])) if runs else None


# ---- times and curves


def compare_run_times(goal: tuple[float, str], runs: Runs, control: Runs, panel: Runs, random: Random) -> TimeResult:
    """Compare how soon an arm's runs reach an accuracy with the control's runs.

    `goal` is the target accuracy and the unit of the times. `panel` holds all finished runs that share the horizon,
    `runs` and `control` among them.
    """
    target, unit = goal
    times, others = ({run.seed: crossing(run, target, unit) for run in group} for group in (runs, control))
    ends = {run.seed: watched_until(run, panel, unit) for run in runs}
    end = horizon(panel, unit) if panel else None
    return compare_times(goal, times, ends, {} if runs is control else others, end, random)


def crossing(run: RunRecord, target: float, unit: str = "steps") -> float | None:
    """Return the steps (or seconds of training) to the first evaluation with at least this validation accuracy.

    None where it is never reached.
    """
    step = first_crossing({step: row["accuracy"] for step, row in run.validation.items()}, target)
    return None if step is None else run.seconds[int(step)] if unit == "seconds" else float(step)


def horizon(runs: Runs, unit: str) -> float:
    """Return the time up to which every run that finished was watched; one that diverged counts only if all did."""
    return min(end_of(run, unit) for run in [run for run in runs if run.summary["status"] == "finished"] or runs)


def watched_until(run: RunRecord, panel: Runs, unit: str) -> float:
    """Return a run's own end; of one that diverged, which will never get there, the longest end of its panel."""
    return max(end_of(other, unit) for other in (panel if run.summary["status"] == "diverged" else [run]))


def end_of(run: RunRecord, unit: str) -> float:
    """Return when a run's training ended, in steps or seconds."""
    return float(max(run.seconds.values()) if unit == "seconds" else run.config["steps"])


def make_curve(name: str, runs: Runs) -> Curve:
    """Return an arm's validation accuracy over all steps at which any of its runs was evaluated.

    A run that diverged keeps its last accuracy from there on, and has no part in the mean of the seconds from there on.
    An arm without runs has a curve without points.
    """
    if not runs:
        return Curve(name, *[np.array([])] * 5)
    curves = ({step: row["accuracy"] for step, row in run.validation.items()} for run in runs)
    steps, mean, low, high = curve_band(dict(enumerate(curves)))
    seconds = [np.interp(steps, list(run.seconds), list(run.seconds.values()), right=np.nan) for run in runs]
    return Curve(name, steps, mean, low, high, np.nanmean(seconds, axis=0))
