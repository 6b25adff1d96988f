"""Run directories → what is compared: arms, paired differences, time to accuracy, curves. Arrays in, numbers out of
`stats`; how they are shown is report.py's.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnexp.config import ConfigError
from bnexp.console import printable
from bnexp.figures import Curve
from bnexp.logs import flatten
from bnexp.runs import RunRecord, fits
from bnexp.stats import (
    Estimate,
    Pairing,
    Survival,
    TimeTo,
    holm,
    interquartile_mean,
    kaplan_meier,
    mean_interval,
    pairing,
    restricted_times,
    sign_flip_p,
    time_to,
)

TARGETS = (0.90, 0.95)  # validation accuracies whose times are compared
NOT_ARMS = {"seed", "dataset.root", "checkpoint.every_seconds"}
Settings = dict[str, Any]


@dataclass(frozen=True)
class TimeResult:
    """Steps or seconds of training to a validation accuracy. `times`: of all runs, each watched until its own end, so
    that steps and seconds count the same runs; `restricted`: mean of min(time, horizon); `difference`: of those, this
    arm minus the control, seed by seed. `horizon`: of the panel, None where none of its runs finished; of an arm
    without runs `restricted` and `survival` are None.
    """

    target: float
    unit: str
    horizon: float | None
    times: TimeTo
    restricted: Estimate | None
    difference: Estimate | None
    p: float | None
    survival: Survival | None


@dataclass(frozen=True)
class ArmResult:
    """One row of the table. Accuracies are fractions; `difference` is this arm minus the control, seed by seed;
    `p_holm`: p after Holm's correction over all arms of the report. `n` of `planned` runs finished, and what is
    estimated is None where none did; `planned_pairs`: seeds that this arm and the control were planned with.
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
    recalibrated: Estimate | None  # test accuracy with statistics of a whole epoch

    def time(self, target: float, unit: str) -> TimeResult:
        return next(found for found in self.times if (found.target, found.unit) == (target, unit))


# ---- which runs make an arm


def settings(config: dict[str, Any]) -> Settings:
    """What a run can be told apart by, as it may be shown: what a file says can hold anything."""
    flat = {key: value for key, value in flatten(config).items() if key not in NOT_ARMS}
    return {printable(key): printable(value) if isinstance(value, str) else value for key, value in flat.items()}


def swept_keys(configs: list[Settings]) -> list[str]:
    """Keys whose values differ, without those that come with a choice, as norm.eps comes with norm=batch."""
    differing = [key for key in dict.fromkeys(k for c in configs for k in c) if len(distinct(configs, key)) > 1]
    return [key for key in differing if not follows_choice(key, differing, configs)]


def distinct(configs: Iterable[Settings], key: str) -> list[str]:
    return list(dict.fromkeys(str(config.get(key)) for config in configs))


def follows_choice(key: str, differing: list[str], configs: list[Settings]) -> bool:
    group = key.split(".", maxsplit=1)[0]
    if "." not in key or group not in differing:
        return False
    choices = distinct(configs, group)
    return all(len(distinct((c for c in configs if str(c[group]) == choice), key)) == 1 for choice in choices)


def check_by(by: str | None, configs: list[dict[str, Any]]) -> None:
    """Raises ConfigError where `by` isn't one of the keys that differ."""
    pick_by(by, swept_keys([settings(config) for config in configs]))


def pick_by(by: str | None, swept: list[str]) -> str | None:
    if by is None:
        return "norm" if "norm" in swept else swept[0] if swept else None
    if by not in swept:
        allowed = f"choose from {', '.join(swept)}" if swept else "no key but the seed differs between the runs"
        raise ConfigError(f"by={by} is not a key that differs between the runs: {allowed}")
    return by


Arms = dict[str, list[RunRecord]]  # arm → runs, the control first
Panels = dict[str, Arms]


def arrange(runs: list[RunRecord], by: str | None) -> Panels:
    """Panels of arms, in the order of the sweep."""
    configs = settings_of(runs)
    swept = swept_keys(configs)
    by = pick_by(by, swept)
    panels: Panels = {}
    for run, config in zip(runs, configs, strict=True):
        panel = ", ".join(f"{key}={config.get(key)}" for key in swept if key != by)
        arm = f"{by}={config.get(by)}" if by else str(config["norm"])
        panels.setdefault(panel, {}).setdefault(arm, []).append(run)
    return panels


def settings_of(runs: list[RunRecord]) -> list[Settings]:
    """Of each run, what may tell its arm from others."""
    configs = [settings(run.config) for run in runs]
    if goes_with_seed(runs, "init_from"):
        return [{key: value for key, value in config.items() if key != "init_from"} for config in configs]
    return configs


def goes_with_seed(runs: list[RunRecord], key: str) -> bool:
    """Whether each seed has a value of its own, as where every run starts from another one of its seed."""
    found = {(run.seed, str(run.config.get(key))) for run in runs}
    seeds = {seed for seed, _ in found}
    return len(found) == len(seeds) == len({value for _, value in found})


def only(panels: Panels, kept: list[RunRecord]) -> Panels:
    """The same panels and arms, with some of their runs."""
    digests = {run.digest for run in kept}
    return {
        panel: {arm: [run for run in runs if run.digest in digests] for arm, runs in arms.items()}
        for panel, arms in panels.items()
    }


# ---- numbers


def compare_panels(planned: Panels, finished: list[RunRecord], control: str) -> list[ArmResult]:
    """A result of every arm that was planned, by those of its runs that finished. `control`: the arm that the others
    are compared with; a panel in which none of its runs finished compares nothing.
    """
    found = only(planned, finished)
    results = [result for panel in planned for result in compare_panel(panel, planned[panel], found[panel], control)]
    tested = [result for result in results if result.p is not None]
    adjusted = holm([result.p for result in tested if result.p is not None])
    corrected = {id(result): p for result, p in zip(tested, adjusted, strict=True)}
    return [replace(result, p_holm=corrected.get(id(result))) for result in results]


def compare_panel(panel: str, planned: Arms, arms: Arms, control_arm: str) -> list[ArmResult]:
    """`planned` and `arms`: the same arms, with all their runs and with those that finished."""
    control = arms.get(control_arm, [])
    everything = [run for runs in arms.values() for run in runs]
    results = []
    for name, runs in arms.items():
        random = np.random.default_rng(0)
        own, base = ({run.seed: accuracy(run) for run in group} for group in (runs, control))
        is_control = name == control_arm
        differences = [] if is_control else paired(own, base)
        speed, base_speed = median_speed(runs), median_speed(control)
        results.append(
            ArmResult(
                panel=panel,
                arm=name,
                control=is_control,
                n=len(runs),
                planned=len(planned[name]),
                planned_pairs=0 if is_control else pairs(planned[name], planned.get(control_arm, [])),
                diverged=sum(run.summary["status"] == "diverged" for run in runs),
                test_accuracy=estimate(list(own.values()), random),
                interquartile_mean=interquartile_mean(list(own.values())) if own else None,
                difference=estimate(differences, random),
                pairing=pairing(*matched(own, base)) if differences else None,
                p=sign_flip_p(differences, random) if differences else None,
                p_holm=None,
                times=[
                    compare_times(runs, control, everything, target, unit, random)
                    for target in TARGETS
                    for unit in ("steps", "seconds")
                ],
                steps_per_second=speed,
                speed_ratio=speed / base_speed if speed is not None and base_speed is not None else None,
                notes=[*map(printable, map(str, runs[0].record["notes"])), *of_other_data(everything)] if runs else [],
                recalibrated=estimate(recalibrated_accuracies(runs), random),
            )
        )
    return results


def of_other_data(runs: list[RunRecord]) -> list[str]:
    """What has to be told of runs that saw different images, as where a folder changed between two sweeps."""
    checksums = {run.record["dataset"]["sha256"] for run in runs if fits(run.record, {"dataset": {"sha256": str}})}
    return [f"compared with runs of other data ({len(checksums)} checksums)"] if len(checksums) > 1 else []


def estimate(values: list[float], random: np.random.Generator) -> Estimate | None:
    """None of no values."""
    return mean_interval(values, random) if values else None


def pairs(runs: list[RunRecord], control: list[RunRecord]) -> int:
    """How many seeds both have."""
    return len({run.seed for run in runs} & {run.seed for run in control})


def recalibrated_accuracies(runs: list[RunRecord]) -> list[float]:
    """Where the test was made once more with `eval.recalibrate`; a run that diverged has the one it has."""
    if not any("test_recalibrated" in run.summary for run in runs):
        return []
    return [run.summary.get("test_recalibrated", run.summary["test"])["accuracy"] for run in runs]


def compare_times(
    runs: list[RunRecord],
    control: list[RunRecord],
    panel: list[RunRecord],
    target: float,
    unit: str,
    random: np.random.Generator,
) -> TimeResult:
    """`panel`: the finished runs that share a horizon, these among them."""
    times = [crossing(run, target, unit) for run in runs]
    until = horizon(panel, unit) if panel else None
    own, base = (
        {} if until is None else {run.seed: restricted_time(run, target, unit, until) for run in group}
        for group in (runs, control)
    )
    differences = [] if runs is control else paired(own, base)
    return TimeResult(
        target=target,
        unit=unit,
        horizon=until,
        times=time_to(times),
        restricted=estimate(list(own.values()), random),
        difference=estimate(differences, random),
        p=sign_flip_p(differences, random) if differences else None,
        survival=kaplan_meier(times, watched_until(runs, panel, unit)) if runs else None,
    )


def restricted_time(run: RunRecord, target: float, unit: str, until: float) -> float:
    return restricted_times([crossing(run, target, unit)], until)[0]


def matched(own: dict[int, float], base: dict[int, float]) -> tuple[list[float], list[float]]:
    """Values of the seeds that both arms have."""
    seeds = [seed for seed in own if seed in base]
    return [own[seed] for seed in seeds], [base[seed] for seed in seeds]


def paired(own: dict[int, float], base: dict[int, float]) -> list[float]:
    """Own minus base, seed by seed."""
    ours, control = matched(own, base)
    return list(np.subtract(ours, control))


def accuracy(run: RunRecord) -> float:
    return float(run.summary["test"]["accuracy"])


def crossing(run: RunRecord, target: float, unit: str = "steps") -> float | None:
    """Steps (or seconds of training) to the first evaluation with at least this validation accuracy; None: never."""
    step = next((step for step, row in run.validation.items() if row["accuracy"] >= target), None)
    return None if step is None else run.seconds[step] if unit == "seconds" else float(step)


def horizon(runs: list[RunRecord], unit: str) -> float:
    """Up to where every run that finished was watched; one that diverged never gets there."""
    return min(end_of(run, unit) for run in [run for run in runs if run.summary["status"] == "finished"] or runs)


def watched_until(runs: list[RunRecord], panel: list[RunRecord], unit: str) -> list[float]:
    """Each run's own end. One that diverged never gets there, however long the others of the panel are watched."""
    longest = max((end_of(run, unit) for run in panel), default=0.0)
    return [longest if run.summary["status"] == "diverged" else end_of(run, unit) for run in runs]


def end_of(run: RunRecord, unit: str) -> float:
    return float(max(run.seconds.values()) if unit == "seconds" else run.config["steps"])


def median_speed(runs: list[RunRecord]) -> float | None:
    return float(np.median([run.summary["steps_per_second"] for run in runs])) if runs else None


def make_curve(name: str, runs: list[RunRecord]) -> Curve:
    """Over the evaluations that any seed has; a run that diverged keeps its last accuracy from there on, and has no
    part in the clock. Without runs it has no points.
    """
    if not runs:
        none = np.array([])
        return Curve(name, none, none, none, none, none, 0)
    steps = sorted({step for run in runs for step in run.validation})
    rows, seconds = [], []
    for run in runs:
        known = sorted(run.validation)
        place = np.searchsorted(known, steps, side="right") - 1
        rows.append([run.validation[known[i]]["accuracy"] for i in place])
        seconds.append(np.interp(steps, list(run.seconds), list(run.seconds.values()), right=np.nan))
    values = np.array(rows)
    return Curve(
        name,
        np.array(steps, dtype=np.float64),
        np.nanmean(seconds, axis=0),
        values.mean(0),
        values.min(0),
        values.max(0),
        len(runs),
    )
