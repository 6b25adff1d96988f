"""Run directories → the comparison: table, figures, Markdown, page, bands. Training never imports it."""

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from bnexp.comparison import (
    TARGETS,
    ArmResult,
    Panels,
    Settings,
    TimeResult,
    arrange,
    compare_panels,
    distinct,
    make_curve,
    settings_of,
)
from bnexp.config import ConfigError
from bnexp.console import complain, count, printable, say, show_table
from bnexp.figures import Arrivals, Curve, Plot, accuracy_plot, arrivals_plot, plot_figure, speed_plot
from bnexp.files import LONGEST_NAME, write_whole
from bnexp.logs import write_bands
from bnexp.report_page import Section, page
from bnexp.runs import RunRecord, find_runs, to_json
from bnexp.stats import FEWEST_PAIRS, Estimate

TARGET = 0.90  # of validation accuracy, in the table
HEADER = ["arm", "n", "test accuracy", "− control, paired", "steps to 90%", "reached", "steps/s", "ratio"]
TIMES_HEADER = ["arm", "to", "reached", "median", "restricted mean", "− control, paired"]
BANDS = "bands"  # folder of the aggregate TensorBoard runs


# ---- words


@dataclass(frozen=True)
class Panel:
    """One table and its figures: what the arms share besides."""

    name: str
    runs: dict[str, list[RunRecord]]  # arm → its runs, the control first
    results: list[ArmResult]

    @cached_property
    def curves(self) -> list[Curve]:
        return [make_curve(arm, runs) for arm, runs in self.runs.items()]

    def accuracy_plots(self) -> list[Plot]:
        return [accuracy_plot(self.curves, "steps"), accuracy_plot(self.curves, "seconds")]

    def time_plots(self) -> list[Plot]:
        """Kaplan-Meier curves of the steps to each target, and the throughput."""
        speeds = {arm: [run.summary["steps_per_second"] for run in runs] for arm, runs in self.runs.items()}
        return [*(self.arrivals(target) for target in TARGETS), speed_plot(speeds)]

    def arrivals(self, target: float) -> Plot:
        found = {result.arm: result.time(target, "steps") for result in self.results}
        arms = [Arrivals(arm, t.survival.times, [1 - share for share in t.survival.shares]) for arm, t in found.items()]
        horizon = next(iter(found.values())).horizon
        return arrivals_plot(arms, f"share of runs at {target:.0%}", horizon)


def make_panels(arranged: Panels, control: str) -> list[Panel]:
    results = compare_panels(arranged, control)
    return [Panel(name, arms, [r for r in results if r.panel == name]) for name, arms in arranged.items()]


# ---- words


def percent(estimate: Estimate, sign: str = "") -> str:
    text = f"{100 * estimate.mean:{sign}.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:{sign}.2f}, {100 * estimate.high:{sign}.2f}]"


def table_row(result: ArmResult) -> list[str]:
    difference = "control" if result.control else percent(result.difference, "+") if result.difference else "no pairs"
    times = result.time(TARGET, "steps").times
    diverged = f" ({result.diverged} diverged)" if result.diverged else ""
    return [
        result.arm,
        f"{result.n}{diverged}",
        percent(result.test_accuracy),
        difference,
        number(times.median),
        f"{times.reached} of {times.n}",
        f"{result.steps_per_second:,.0f}",
        f"{result.speed_ratio:.2f}" if result.speed_ratio is not None else "–",
    ]


def time_row(result: ArmResult, found: TimeResult) -> list[str]:
    digits = 0 if found.unit == "steps" else 2
    difference = "control" if result.control else interval(found.difference, digits) if found.difference else "no pairs"
    return [
        result.arm,
        f"{found.target:.0%}, {found.unit}",
        f"{found.times.reached} of {found.times.n}",
        number(found.times.median, digits),
        interval(found.restricted, digits),
        difference,
    ]


def number(value: float | None, digits: int = 0) -> str:
    return "never" if value is None else f"{value:,.{digits}f}"


def interval(estimate: Estimate, digits: int) -> str:
    text = f"{estimate.mean:,.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:,.{digits}f}, {estimate.high:,.{digits}f}]"


def footnotes(results: list[ArmResult]) -> list[str]:
    """What a reader has to know to trust the table."""
    lines = [
        f"Test accuracy in percent: mean over seeds with its 95% BCa bootstrap interval (of fewer than {FEWEST_PAIRS} "
        f"Student's t); the paired difference is taken seed by seed. Steps to {TARGET:.0%} of validation accuracy: "
        "median over seeds, a run that never gets there counting as never. Steps/s: median, evaluation and compilation "
        "excluded.",
    ]
    for result in results:
        if result.notes:
            lines.append(f"{result.arm} besides: {', '.join(result.notes)}.")
        if result.recalibrated:
            where = f"{result.panel}, " if result.panel else ""
            words = f"test accuracy {percent(result.recalibrated)} with statistics of a whole epoch"
            lines.append(f"{where}{result.arm}: {words} in place of running averages.")
        if result.p is not None and result.difference and result.difference.n >= FEWEST_PAIRS:
            lines.append(test_words(result, sum(other.p is not None for other in results)))
    fewest = min((r.difference.n for r in results if r.difference), default=None)
    if fewest is not None and fewest < FEWEST_PAIRS:
        lines.append(
            f"With {count(fewest, 'pair')} no difference is significant (smallest sign-flip p: {2 / 2**fewest:.3g})."
        )
    return list(dict.fromkeys(lines))


def test_words(result: ArmResult, tests: int) -> str:
    where = f"{result.panel}, " if result.panel else ""
    assert result.difference is not None
    text = f"{where}{result.arm}: sign-flip permutation p = {result.p:.3g} at {result.difference.n} pairs"
    text += f" ({result.p_holm:.3g} after Holm over {tests} comparisons)" if tests > 1 else ""
    text += f"; interquartile mean {100 * result.interquartile_mean:.2f}%"
    if result.pairing and result.pairing.variance_ratio is not None:
        text += (
            f"; the pairs correlate at {result.pairing.correlation:.2f}, so that the difference's variance is "
            f"{result.pairing.variance_ratio:.2f} times that of unpaired runs"
        )
    return f"{text}."


TIMES_NOTE = (
    "Times: those of the first evaluation at the target; restricted mean: mean of min(time, horizon), the area under "
    "the Kaplan-Meier curve up to the horizon, the last step (or second) that every finished run has; a run that never "
    "gets there has the horizon."
)


def markdown(title: str, made: str, panels: list[Panel]) -> str:
    lines = [f"# {marked_down(title)}", "", "![accuracy against iteration and seconds](compare.svg)", ""]
    for panel in panels:
        lines += [f"## {marked_down(panel.name)}", ""] if panel.name else []
        lines += [*markdown_table(HEADER, main_rows(panel)), ""]
    lines += [f"- {marked_down(line)}" for line in footnotes([result for panel in panels for result in panel.results])]
    lines += ["", "# Time to accuracy", "", "![Kaplan-Meier curves and throughput](times.svg)", ""]
    for panel in panels:
        lines += [f"**{marked_down(panel.name)}**", ""] if panel.name else []
        lines += [*markdown_table(TIMES_HEADER, time_rows(panel)), ""]
    return "\n".join([*lines, f"- {TIMES_NOTE}", "", marked_down(made), ""])


def main_rows(panel: Panel) -> list[list[str]]:
    return [table_row(result) for result in panel.results]


def time_rows(panel: Panel) -> list[list[str]]:
    places = [(found.target, found.unit) for found in panel.results[0].times]
    return [time_row(result, result.time(*place)) for place in places for result in panel.results]


def markdown_table(header: list[str], rows: list[list[str]], align: str = "---:") -> list[str]:
    """`align`: of all columns but the first."""
    lines = ["| " + " | ".join(map(marked_down, cells)) + " |" for cells in [header, *rows]]
    return [lines[0], "|---" + f"|{align}" * (len(header) - 1) + "|", *lines[1:]]


def marked_down(text: str) -> str:
    """A run's value in Markdown, which lets HTML through, fetches images and takes | for a table's."""
    return escape(text, quote=False).replace("|", "\\|").replace("](", "]\\(")


def html_sections(panels: list[Panel]) -> list[Section]:
    return [
        Section(
            panel.name,
            [(HEADER, main_rows(panel)), (TIMES_HEADER, time_rows(panel))],
            [*panel.accuracy_plots(), *panel.time_plots()],
        )
        for panel in panels
    ]


def title_of(runs: list[RunRecord]) -> str:
    """Data set, architecture, what all arms share, and n."""
    configs = settings_of(runs)
    shared = [str(configs[0][key]) for key in ("dataset", "arch") if unique(configs, key)]
    shared += [f"{key}={configs[0][key]}" for key in ("act", "optim", "optim.lr", "batch_size") if unique(configs, key)]
    sizes = Counter(str(config) for config in configs).values()
    seeds = count(max(sizes), "seed") if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)} seeds"
    return f"{', '.join(shared)}: {seeds} an arm"


def unique(configs: list[Settings], key: str) -> bool:
    return len(distinct(configs, key)) == 1


def provenance(runs: list[RunRecord]) -> str:
    record = runs[0].record
    commit = str(record["code"]["commit"])[:10] + (" with changes" if record["code"]["dirty"] else "")
    return printable(
        f"bnexp {record['packages']['bnexp']} (commit {commit}), torch {record['packages']['torch']}, "
        f"{record['machine']}, device {record['device']}, {record['threads']} thread(s); {record['created'][:10]}"
    )


# ---- the whole


def report(directories: list[Path], by: str | None) -> None:
    """Table on the console; compare.json and .md, the figures compare (.png, .svg) and times (.svg), report.html,
    and TensorBoard's bands in the first directory. Raises ConfigError where there is nothing to compare.
    """
    found = find_runs(directories)
    runs, arranged = usable(found, directories), arrange(found, by)
    control = next(iter(next(iter(arranged.values()))))  # also where none of its runs finished
    panels, target = make_panels(only(runs, arranged), control), directories[0]
    title, made = title_of(runs), provenance(runs)
    results = [result for panel in panels for result in panel.results]
    accuracy, times = ({p.name: plots(p) for p in panels} for plots in (Panel.accuracy_plots, Panel.time_plots))
    plot_figure(f"{title}, band: lowest to highest seed", accuracy, [target / "compare.png", target / "compare.svg"])
    plot_figure(f"{title}: time to accuracy, throughput", times, [target / "times.svg"])
    write_whole(target / "compare.json", to_json({"title": title, "arms": [asdict(result) for result in results]}))
    write_whole(target / "compare.md", markdown(title, made, panels))
    notes = [*footnotes(results), TIMES_NOTE]
    write_whole(target / "report.html", page(title, html_sections(panels), notes, made))
    shutil.rmtree(target / BANDS, ignore_errors=True)
    write_bands(target / BANDS, {folder_name(p.name, c.name): band(c) for p in panels for c in p.curves})
    show(title, panels, results, target)


def usable(runs: list[RunRecord], directories: list[Path]) -> list[RunRecord]:
    found: dict[str, RunRecord] = {}
    for run in without_flaws(runs):
        earlier = found.setdefault(run.digest, run)
        if earlier is not run:
            complain(f"{run.directory} is left out: the same run as {earlier.directory}")
    if not found:
        raise ConfigError(f"{', '.join(map(str, directories))}: no finished run is there to report")
    return list(found.values())


def only(runs: list[RunRecord], panels: Panels) -> Panels:
    """Panels and arms that have some of these runs."""
    kept = {run.directory for run in runs}
    left = {
        panel: {arm: [run for run in own if run.directory in kept] for arm, own in arms.items()}
        for panel, arms in panels.items()
    }
    return {panel: found for panel, arms in left.items() if (found := {arm: own for arm, own in arms.items() if own})}


def without_flaws(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs that can be compared; the others are named."""
    flaws = [run.flaw() for run in runs]
    for run, flaw in zip(runs, flaws, strict=True):
        if flaw is not None:
            complain(f"{run.directory} is left out: {flaw}")
    return [run for run, flaw in zip(runs, flaws, strict=True) if flaw is None]


def folder_name(panel: str, arm: str) -> str:
    name = ",".join(part for part in (panel.replace(", ", ","), arm) if part).replace(os.sep, "_")
    return name if len(name.encode()) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def band(curve: Curve) -> dict[int, tuple[float, float, float]]:
    values = zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    return {int(step): (float(mean), float(low), float(high)) for step, mean, low, high in values}


def show(title: str, panels: list[Panel], results: list[ArmResult], target: Path) -> None:
    for panel in panels:
        show_table(f"{title}{f', {panel.name}' if panel.name else ''}", HEADER, main_rows(panel))
    for line in footnotes(results)[1:]:
        say(line)
    if all(result.n == 1 for result in results):
        say("one seed an arm has no interval: add 'seed=range(10)'")
    say(f"page: {target / 'report.html'}; figures: {target / 'compare.png'} (and .svg), {target / 'times.svg'}")
    say(f"tables: {target / 'compare.md'}, {target / 'compare.json'}; curves: tensorboard --logdir {target}")
