"""Sort runs into arms, and compare these: their accuracies, times to an accuracy, and curves.

`statistics` computes the numbers from plain arrays; `report` shows them.
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
from bnexp.runs.directory import flatten
from bnexp.runs.record import RunRecord, fits

TARGETS = (0.90, 0.95)  # validation accuracies; the times to reach them are compared
UNITS = ("steps", "seconds")
NOT_ARMS = {"seed", "dataset.root", "checkpoint.every_seconds", "checkpoint.keep"}  # keys that may differ within an arm
Settings = dict[str, Any]  # dotted key → value
Runs = list[RunRecord]
Arms = dict[str, Runs]  # arm → its runs, the control first
Panels = dict[str, Arms]  # a panel's values of the other swept keys, as "act=relu" → its arms


@dataclass(frozen=True)
class ArmResult:
    """One row of the table: an arm of a panel. Of its `planned` runs `n` can be compared, of which `diverged` diverged.

    Accuracies are fractions; `difference` is this arm's test accuracy minus the control's, seed by seed, `p` its
    p-value, and `p_holm` p after Holm's correction over all arms of the report. `planned_pairs` is the number
    of seeds planned for both, 0 for the control. `times` has an entry for each of TARGETS and UNITS, `steps_per_second`
    is a median over runs, `speed_ratio` its ratio to the control's. `recalibrated` is the test accuracy with batch
    statistics of a whole epoch in place of running averages, None where no run measured it. `notes` are remarks. The
    estimates are None where n is 0, `difference` also for the control itself and where no seed counts in both arms.
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
        """Return the entry of `times` with this target (one of TARGETS) and unit (one of UNITS)."""
        return next(time for time in self.times if (time.target, time.unit) == (target, unit))


# ---- which runs make an arm


def settings(config: dict[str, Any]) -> Settings:
    """Flatten a configuration to dotted key → value, without the keys NOT_ARMS and with control characters escaped."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_ARMS}
    return {printable(key): printable(value) if isinstance(value, str) else value for key, value in flat.items()}


def settings_of(nested: list[dict[str, Any]]) -> list[Settings]:
    """Return each configuration's settings, without init_from where it matches the seeds one to one."""
    configs = [settings(config) for config in nested]
    pairs = {(config["seed"], str(config.get("init_from"))) for config in nested}
    seeds, starts = map(set, zip(*pairs, strict=True))
    if len(pairs) == len(seeds) == len(starts):
        return [{key: value for key, value in config.items() if key != "init_from"} for config in configs]
    return configs


def swept_keys(configs: list[Settings]) -> list[str]:
    """Return the keys whose values differ, but for those that follow a choice, as norm.eps may follow norm."""
    differing = [key for key in dict.fromkeys(k for c in configs for k in c) if len(distinct(configs, key)) > 1]
    return [key for key in differing if not follows_choice(key, differing, configs)]


def distinct(configs: Iterable[Settings], key: str) -> list[str]:
    """Return the distinct values of `key` as text, in order of first appearance; a missing one is "None"."""
    return list(dict.fromkeys(str(config.get(key)) for config in configs))


def follows_choice(key: str, differing: list[str], configs: list[Settings]) -> bool:
    """Return whether a key, as norm.eps, has one value for each choice of its group, as norm, which differs too."""
    group = key.split(".", maxsplit=1)[0]
    if "." not in key or group not in differing:
        return False
    choices = distinct(configs, group)
    return all(len(distinct((c for c in configs if str(c[group]) == choice), key)) == 1 for choice in choices)


def check_by(by: str | None, configs: list[dict[str, Any]]) -> None:
    """Raise ConfigError unless `by` is None or one of the swept keys of these (nested) configurations: never the seed,
    another key of NOT_ARMS, or a key that follows a choice (`swept_keys`).
    """
    pick_by(by, swept_keys(settings_of(configs)))


def pick_by(by: str | None, swept: list[str]) -> str | None:
    """Return the key that makes the arms: `by`, else norm or the first of the `swept` keys, if any. Raises ConfigError
    where `by` is given and not among them.
    """
    if by is None:
        return "norm" if "norm" in swept else swept[0] if swept else None
    if by not in swept:
        allowed = f"choose from {', '.join(swept)}" if swept else "no key but the seed differs between the runs"
        raise ConfigError(f"by={by} is not a key that differs between the runs: {allowed}")
    return by


def arrange(runs: Runs, by: str | None) -> Panels:
    """Sort runs into panels of arms: the key `by` makes arms, other swept keys panels; with None each has one arm."""
    configs = settings_of([run.config for run in runs])
    swept = swept_keys(configs)
    panels: Panels = {}
    for run, config in zip(runs, configs, strict=True):
        panel = ", ".join(f"{key}={config.get(key)}" for key in swept if key != by)
        arm = f"{by}={config.get(by)}" if by else str(config["norm"])
        panels.setdefault(panel, {}).setdefault(arm, []).append(run)
    return panels


def only(panels: Panels, kept: Runs) -> Panels:
    """Return the same panels and arms, but of the runs only those in `kept`; an arm may become empty."""
    digests = {run.digest for run in kept}
    return {
        panel: {arm: [run for run in runs if run.digest in digests] for arm, runs in arms.items()}
        for panel, arms in panels.items()
    }


# ---- numbers


def compare_panels(planned: Panels, finished: Panels) -> list[ArmResult]:
    """Compare every arm with the control of its panel, and correct the p-values over all arms (Holm).

    The control has the name of the very first arm of `planned`; `finished` is `planned` with only the comparable runs.
    """
    control = next(iter(next(iter(planned.values()))))
    results = [
        compare_runs((panel, arm), planned[panel], arms, control) for panel, arms in finished.items() for arm in arms
    ]
    corrected = holm({(result.panel, result.arm): result.p for result in results})
    return [replace(result, p_holm=corrected.get((result.panel, result.arm))) for result in results]


def compare_runs(place: tuple[str, str], planned: Arms, arms: Arms, control_arm: str) -> ArmResult:
    """Compare one arm with the control, `control_arm`; p_holm stays None. `place` is (panel, arm).

    `planned` and `arms` are the arms of its panel, with all of their runs and with only those that can be compared.
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
        test_accuracy=numbers.mean and numbers.mean.within(0, 1),
        interquartile_mean=numbers.interquartile_mean,
        difference=numbers.difference,
        pairing=numbers.pairing,
        p=numbers.p,
        p_holm=None,  # needs the p-values of all arms
        times=times,
        steps_per_second=speed,
        speed_ratio=speed / control_speed if speed is not None and control_speed is not None else None,
        notes=[*map(printable, map(str, runs[0].record["notes"])), *data_notes(finished)] if runs else [],
        recalibrated=mean_interval(recalibrated, random).within(0, 1) if recalibrated else None,
    )


def data_notes(runs: Runs) -> list[str]:
    """Return a note where the runs' data sets have different checksums, as after a change of a folder; else []."""
    checksums = {run.record["dataset"]["sha256"] for run in runs if fits(run.record, {"dataset": {"sha256": str}})}
    return [f"compared with runs of other data ({len(checksums)} checksums)"] if len(checksums) > 1 else []


def seeds_of(runs: Runs) -> set[int]:
    """Return the seeds of the runs."""
    return {run.seed for run in runs}


def accuracy(run: RunRecord) -> float:
    """Return a run's test accuracy, from 0 to 1."""
    return float(run.summary["test"]["accuracy"])


def accuracies(runs: Runs) -> dict[int, float]:
    """Return seed → test accuracy of these runs."""
    return {run.seed: accuracy(run) for run in runs}


def recalibrated_accuracies(runs: Runs) -> list[float]:
    """Return the test accuracies by `eval.recalibrate`, the plain one of a run without; [] where all are without."""
    if not any("test_recalibrated" in run.summary for run in runs):
        return []
    return [run.summary.get("test_recalibrated", run.summary["test"])["accuracy"] for run in runs]


def median_speed(runs: Runs) -> float | None:
    """Return the median of the runs' training steps a second; None without runs."""
    return float(np.median([run.summary["steps_per_second"] for run in runs])) if runs else None


# ---- times and curves


def compare_run_times(goal: tuple[float, str], runs: Runs, control: Runs, panel: Runs, random: Random) -> TimeResult:
    """Compare how soon an arm's runs and the control's reach an accuracy; `goal` is (target accuracy, unit).

    `panel` holds all complete runs of the panel, which fix the horizon. For the control itself, `runs` is `control`.
    """
    target, unit = goal
    times, others = ({run.seed: crossing(run, target, unit) for run in group} for group in (runs, control))
    ends = {run.seed: watched_until(run, panel, unit) for run in runs}
    end = horizon(panel, unit) if panel else None
    return compare_times(goal, times, ends, {} if runs is control else others, end, random)


def crossing(run: RunRecord, target: float, unit: str = "steps") -> float | None:
    """Return the steps (or seconds) of training to the first validation accuracy of at least `target`, or None."""
    step = first_crossing({step: row["accuracy"] for step, row in run.validation.items()}, target)
    return None if step is None else run.seconds[int(step)] if unit == "seconds" else float(step)


def horizon(runs: Runs, unit: str) -> float:
    """Return the earliest end of the runs, until which all were observed; diverged runs count only if all diverged."""
    return min(end_of(run, unit) for run in [run for run in runs if run.summary["status"] == "finished"] or runs)


def watched_until(run: RunRecord, panel: Runs, unit: str) -> float:
    """Return a run's end; for a diverged run, whose training can't go on, the latest end in its panel."""
    return max(end_of(other, unit) for other in (panel if run.summary["status"] == "diverged" else [run]))


def end_of(run: RunRecord, unit: str) -> float:
    """Return the seconds of training until a run's last evaluation, or the number of steps in its configuration."""
    return float(max(run.seconds.values()) if unit == "seconds" else run.config["steps"])


def make_curve(name: str, runs: Runs) -> Curve:
    """Return an arm's validation accuracy at all steps at which any of its runs was evaluated; without runs, no points.

    After its last evaluation a diverged run keeps its accuracy, and is left out of the mean of the seconds.
    """
    if not runs:
        return Curve(name, *[np.array([])] * 5)
    curves = ({step: row["accuracy"] for step, row in run.validation.items()} for run in runs)
    steps, mean, low, high = curve_band(dict(enumerate(curves)))
    seconds = [np.interp(steps, list(run.seconds), list(run.seconds.values()), right=np.nan) for run in runs]
    return Curve(name, steps, mean, low, high, np.nanmean(seconds, axis=0))
