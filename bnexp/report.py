"""Run directories → the comparison: arms, table, figure, Markdown, TensorBoard's bands. Training never imports it."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bnexp.config import ConfigError
from bnexp.console import complain, count, say, show_table
from bnexp.figures import Curve, accuracy_figure
from bnexp.logs import flatten, write_bands
from bnexp.runs import COMPLETE, RunRecord, find_runs, to_json
from bnexp.stats import FEWEST_PAIRS, Estimate, TimeTo, mean_interval, sign_flip_p, time_to

TARGET = "90"  # percent of validation accuracy in the table
HEADER = ["arm", "n", "test accuracy", "− control, paired", f"steps to {TARGET}%", "reached", "steps/s", "ratio"]
NOT_ARMS = {"seed", "dataset.root"}
BANDS = "bands"  # folder of the aggregate TensorBoard runs
Settings = dict[str, Any]


@dataclass(frozen=True)
class ArmResult:
    """One row of the table. Accuracies are fractions; `difference` is this arm minus the control, seed by seed."""

    panel: str
    arm: str
    control: bool
    n: int
    diverged: int
    test_accuracy: Estimate
    difference: Estimate | None
    p: float | None
    steps_to: TimeTo
    steps_per_second: float
    speed_ratio: float
    notes: list[str]


# ---- which runs make an arm


def settings(config: dict[str, Any]) -> Settings:
    return {key: value for key, value in flatten(config).items() if key not in NOT_ARMS}


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


Panels = dict[str, dict[str, list[RunRecord]]]  # panel → arm → runs, the control first


def arrange(runs: list[RunRecord], by: str | None) -> tuple[Panels, str | None]:
    """Panels of arms, in the order of the sweep."""
    configs = [settings(run.config) for run in runs]
    swept = swept_keys(configs)
    by = pick_by(by, swept)
    panels: Panels = {}
    for run, config in zip(runs, configs, strict=True):
        panel = ", ".join(f"{key}={config.get(key)}" for key in swept if key != by)
        arm = f"{by}={config.get(by)}" if by else str(config["norm"])
        panels.setdefault(panel, {}).setdefault(arm, []).append(run)
    return panels, by


# ---- numbers


def compare_panel(panel: str, arms: dict[str, list[RunRecord]]) -> list[ArmResult]:
    control = next(iter(arms.values()))
    control_speed = median_speed(control)
    results = []
    for name, runs in arms.items():
        random = np.random.default_rng(0)
        own = {run.seed: accuracy(run) for run in runs}
        base = {run.seed: accuracy(run) for run in control}
        differences = [own[seed] - base[seed] for seed in own if seed in base]
        paired = runs is not control and differences
        speed = median_speed(runs)
        results.append(
            ArmResult(
                panel=panel,
                arm=name,
                control=runs is control,
                n=len(runs),
                diverged=sum(run.summary["status"] == "diverged" for run in runs),
                test_accuracy=mean_interval(list(own.values()), random),
                difference=mean_interval(differences, random) if paired else None,
                p=sign_flip_p(differences, random) if paired else None,
                steps_to=time_to([run.summary["steps_to"][TARGET] for run in runs]),
                steps_per_second=speed,
                speed_ratio=speed / control_speed,
                notes=runs[0].record["notes"],
            )
        )
    return results


def accuracy(run: RunRecord) -> float:
    return float(run.summary["test"]["accuracy"])


def median_speed(runs: list[RunRecord]) -> float:
    return float(np.median([run.summary["steps_per_second"] for run in runs]))


def make_curve(name: str, runs: list[RunRecord]) -> Curve:
    """Over the evaluations that all seeds have; a run that diverged keeps its last accuracy from there on."""
    steps = sorted({step for run in runs for step in run.validation})
    rows, seconds = [], []
    for run in runs:
        known = sorted(run.validation)
        place = np.searchsorted(known, steps, side="right") - 1
        rows.append([run.validation[known[i]]["accuracy"] for i in place])
        seconds.append(np.interp(steps, list(run.seconds), list(run.seconds.values())))
    values = np.array(rows)
    return Curve(
        name,
        np.array(steps, dtype=np.float64),
        np.mean(seconds, axis=0),
        values.mean(0),
        values.min(0),
        values.max(0),
        len(runs),
    )


# ---- words


def percent(estimate: Estimate, sign: str = "") -> str:
    text = f"{100 * estimate.mean:{sign}.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:{sign}.2f}, {100 * estimate.high:{sign}.2f}]"


def table_row(result: ArmResult) -> list[str]:
    difference = "control" if result.control else percent(result.difference, "+") if result.difference else "no pairs"
    median = f"{result.steps_to.median:,.0f}" if result.steps_to.median is not None else "never"
    diverged = f" ({result.diverged} diverged)" if result.diverged else ""
    return [
        result.arm,
        f"{result.n}{diverged}",
        percent(result.test_accuracy),
        difference,
        median,
        f"{result.steps_to.reached} of {result.steps_to.n}",
        f"{result.steps_per_second:,.0f}",
        f"{result.speed_ratio:.2f}",
    ]


def footnotes(results: list[ArmResult]) -> list[str]:
    """What a reader has to know to trust the table."""
    lines = [
        "Test accuracy in percent: mean over seeds with its 95% BCa bootstrap interval; the paired difference is taken "
        f"seed by seed. Steps to {TARGET}% of validation accuracy: median over seeds, a run that never gets there "
        "counting as never. Steps/s: median, evaluation and compilation excluded.",
    ]
    for result in results:
        if result.notes:
            lines.append(f"{result.arm} besides: {', '.join(result.notes)}.")
        if result.p is not None and result.difference and result.difference.n >= FEWEST_PAIRS:
            where = f"{result.panel}, " if result.panel else ""
            lines.append(
                f"{where}{result.arm}: sign-flip permutation p = {result.p:.3g} at {result.difference.n} pairs."
            )
    fewest = min((r.difference.n for r in results if r.difference), default=None)
    if fewest is not None and fewest < FEWEST_PAIRS:
        lines.append(
            f"With {count(fewest, 'pair')} no difference is significant (smallest sign-flip p: {2 / 2**fewest:.3g})."
        )
    return list(dict.fromkeys(lines))


def markdown(title: str, command: str, results: list[ArmResult], by_panel: dict[str, list[ArmResult]]) -> str:
    lines = [f"# {title}", "", "![accuracy against iteration and seconds](compare.svg)", ""]
    for panel, rows in by_panel.items():
        lines += [f"## {panel}", ""] if panel else []
        lines += ["| " + " | ".join(HEADER) + " |", "|---" + "|---:" * (len(HEADER) - 1) + "|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in table_row(row)) + " |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {line}" for line in footnotes(results)), "", command, ""])


def title_of(runs: list[RunRecord]) -> str:
    """Data set, architecture, what all arms share, and n."""
    configs = [settings(run.config) for run in runs]
    shared = [configs[0]["dataset"], configs[0]["arch"]]
    shared += [f"{key}={configs[0][key]}" for key in ("act", "optim", "optim.lr", "batch_size") if unique(configs, key)]
    seeds = len({run.seed for run in runs})
    return f"{', '.join(shared)}: {seeds} seed{'s' if seeds > 1 else ''} an arm"


def unique(configs: list[Settings], key: str) -> bool:
    return len(distinct(configs, key)) == 1


def provenance(runs: list[RunRecord]) -> str:
    record = runs[0].record
    commit = str(record["code"]["commit"])[:10] + (" with changes" if record["code"]["dirty"] else "")
    return (
        f"bnexp {record['packages']['bnexp']} (commit {commit}), torch {record['packages']['torch']}, "
        f"{record['machine']}, device {record['device']}, {record['threads']} thread(s); {record['created'][:10]}"
    )


# ---- the whole


def report(directories: list[Path], by: str | None) -> None:
    """Table on the console; compare.json, compare.md, compare.png and .svg, and TensorBoard's bands in the first
    directory. Raises ConfigError where there is nothing to compare.
    """
    runs = usable(find_runs(directories), directories)
    panels, _ = arrange(runs, by)
    target = directories[0]
    by_panel = {panel: compare_panel(panel, arms) for panel, arms in panels.items()}
    results = [result for rows in by_panel.values() for result in rows]
    curves = {panel: [make_curve(arm, group) for arm, group in arms.items()] for panel, arms in panels.items()}
    title = title_of(runs)
    accuracy_figure(title + ", band: lowest to highest seed", curves, [target / "compare.png", target / "compare.svg"])
    (target / "compare.json").write_text(to_json({"title": title, "arms": [asdict(result) for result in results]}))
    (target / "compare.md").write_text(markdown(title, provenance(runs), results, by_panel))
    shutil.rmtree(target / BANDS, ignore_errors=True)
    write_bands(target / BANDS, {folder_name(p, c.name): band(c) for p, found in curves.items() for c in found})
    show(title, by_panel, results, target)


def usable(runs: list[RunRecord], directories: list[Path]) -> list[RunRecord]:
    complete = [run for run in runs if run.summary["status"] in COMPLETE]
    for run in runs:
        if run not in complete:
            complain(f"{run.directory} is left out: {run.summary['status']}")
    if not complete:
        raise ConfigError(f"{', '.join(map(str, directories))}: no finished run is there to report")
    return complete


def folder_name(panel: str, arm: str) -> str:
    return ",".join(part for part in (panel.replace(", ", ","), arm) if part).replace(os.sep, "_")


def band(curve: Curve) -> dict[int, tuple[float, float, float]]:
    values = zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    return {int(step): (float(mean), float(low), float(high)) for step, mean, low, high in values}


def show(title: str, by_panel: dict[str, list[ArmResult]], results: list[ArmResult], target: Path) -> None:
    for panel, rows in by_panel.items():
        show_table(f"{title}{f', {panel}' if panel else ''}", HEADER, [table_row(row) for row in rows])
    for line in footnotes(results)[1:]:
        say(line)
    if all(result.n == 1 for result in results):
        say("one seed an arm has no interval: add 'seed=range(10)'")
    say(f"figure: {target / 'compare.png'} (and .svg); table: {target / 'compare.md'}, {target / 'compare.json'}")
    say(f"curves: tensorboard --logdir {target}")
