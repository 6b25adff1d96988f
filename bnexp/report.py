"""Run directories → the comparison: table, figures, Markdown, page, bands. Training never imports it."""

import hashlib
import os
import shlex
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnexp.comparison import (
    TARGETS,
    ArmResult,
    Arms,
    Panels,
    Settings,
    TimeResult,
    arrange,
    compare_panels,
    distinct,
    end_of,
    make_curve,
    only,
    pick_by,
    settings_of,
    swept_keys,
)
from bnexp.config import ConfigError, require, require_path
from bnexp.console import count, printable, show_table
from bnexp.console import print_line as say
from bnexp.figures import Arrivals, Curve, Plot, accuracy_plot, arrivals_plot, plot_figure, speed_plot
from bnexp.files import LONGEST_NAME, is_utf8, write_whole
from bnexp.logs import write_bands
from bnexp.planned import Planned, describe_missing, read_planned
from bnexp.report_page import Notice, Section, page
from bnexp.runs import RunRecord, holds_run, to_json
from bnexp.stats import FEWEST_PAIRS, Estimate, TimeTo
from bnexp.sweep_record import recorded_by

TARGET = 0.90  # of validation accuracy, in the table
HEADER = ["arm", "n", "test accuracy", "− control, paired", "steps to 90%", "reached", "steps/s", "ratio"]
TIMES_HEADER = ["arm", "to", "reached", "median", "restricted mean", "− control, paired"]
DASH = "–"
MOST_LINES = 12  # of missing runs on the console


# ---- panels and files


@dataclass(frozen=True)
class Panel:
    """One table and its figures: what the arms share besides."""

    name: str
    runs: Arms  # that finished
    results: list[ArmResult]
    complete: bool  # the report, not the panel alone

    @cached_property
    def curves(self) -> list[Curve]:
        return [make_curve(self.label(result), self.runs[result.arm]) for result in self.results]

    def label(self, result: ArmResult) -> str:
        """Of an arm in a figure; where runs are missing, with how many of its own finished."""
        return result.arm if self.complete else f"{result.arm} ({result.n} of {result.planned})"

    def accuracy_plots(self) -> list[Plot]:
        return [accuracy_plot(self.curves, "steps"), accuracy_plot(self.curves, "seconds")]

    def time_plots(self) -> list[Plot]:
        """Kaplan-Meier curves of the steps to each target, and the throughput."""
        speeds = {
            self.label(result): [run.summary["steps_per_second"] for run in self.runs[result.arm]]
            for result in self.results
        }
        return [*(self.arrivals(target) for target in TARGETS), speed_plot(speeds)]

    def arrivals(self, target: float) -> Plot:
        arms = []
        for result in self.results:
            curve = result.time(target, "steps").survival
            times, shares = (curve.times, [1 - share for share in curve.shares]) if curve else ([], [])
            arms.append(Arrivals(self.label(result), times, shares))
        longest = max((end_of(run, "steps") for runs in self.runs.values() for run in runs), default=0.0)
        return arrivals_plot(arms, f"share of runs at {target:.0%}", longest)


def make_panels(arranged: Panels, planned: Planned) -> list[Panel]:
    control = next(iter(next(iter(arranged.values()))))  # also where none of its runs finished
    results, finished = compare_panels(arranged, planned.finished, control), only(arranged, planned.finished)
    return [
        Panel(name, arms, [result for result in results if result.panel == name], planned.complete)
        for name, arms in finished.items()
    ]


@dataclass(frozen=True)
class Output:
    """Where a report's files go, and what their names have behind compare, times, report and bands."""

    folder: Path
    suffix: str

    def name(self, file: str) -> str:
        stem, dot, kind = file.partition(".")
        return f"{stem}{self.suffix}{dot}{kind}"

    def path(self, file: str) -> Path:
        return self.folder / self.name(file)

    def link(self, file: str) -> str:
        """From another file of the report."""
        return quote(self.name(file))


# ---- words


def percent(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return DASH
    text = f"{100 * estimate.mean:{sign}.2f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{100 * estimate.low:{sign}.2f}, {100 * estimate.high:{sign}.2f}]"


def table_row(result: ArmResult, complete: bool = True) -> list[str]:
    """`complete`: of a whole report each arm has the number of its runs, else how many of its planned ones finished."""
    runs = f"{result.n}" if complete else f"{result.n} of {result.planned}"
    times = result.time(TARGET, "steps").times
    diverged = f" ({result.diverged} diverged)" if result.diverged else ""
    return [
        result.arm,
        f"{runs}{diverged}",
        percent(result.test_accuracy),
        paired_words(result, result.difference, percent(result.difference, "+")),
        *reached_words(times, 0),
        f"{result.steps_per_second:,.0f}" if result.steps_per_second is not None else DASH,
        f"{result.speed_ratio:.2f}" if result.speed_ratio is not None else DASH,
    ]


def paired_words(result: ArmResult, difference: Estimate | None, words: str) -> str:
    """A difference from the control; of fewer pairs than were planned, with their number."""
    if result.control or difference is None:
        return "control" if result.control else "no pairs" if result.n else DASH
    fewer = difference.n < result.planned_pairs
    return f"{words}, {difference.n} of {result.planned_pairs} pairs" if fewer else words


def reached_words(times: TimeTo, digits: int) -> list[str]:
    """Median, and how many of the runs that finished got there."""
    return [number(times.median, digits), f"{times.reached} of {times.n}"] if times.n else [DASH, DASH]


def time_row(result: ArmResult, found: TimeResult) -> list[str]:
    digits = 0 if found.unit == "steps" else 2
    median, reached = reached_words(found.times, digits)
    return [
        result.arm,
        f"{found.target:.0%}, {found.unit}",
        reached,
        median,
        interval(found.restricted, digits),
        paired_words(result, found.difference, interval(found.difference, digits)),
    ]


def number(value: float | None, digits: int = 0) -> str:
    return "never" if value is None else f"{value:,.{digits}f}"


def interval(estimate: Estimate | None, digits: int) -> str:
    if estimate is None:
        return DASH
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
    assert result.interquartile_mean is not None
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
    "Times: those of the first evaluation at the target. Reached and median: over all runs, each watched until its own "
    "end, one that never gets there counting as never. Restricted mean: mean of min(time, horizon), the area under the "
    "Kaplan-Meier curve up to the horizon, the last step (or second) that every finished run has; the paired "
    "difference is that of min(time, horizon), seed by seed. Horizons: "
)


def times_note(panels: list[Panel]) -> str:
    """What the times are, with the horizon of each panel."""
    found = []
    for panel in panels:
        horizons = {time.unit: time.horizon for time in panel.results[0].times}
        if horizons["steps"] is not None and horizons["seconds"] is not None:
            words = f"{horizons['steps']:,.0f} steps, {horizons['seconds']:,.2f} s"
            found.append(f"{panel.name}: {words}" if panel.name else words)
    return f"{TIMES_NOTE}{'; '.join(found)}."


def markdown(title: str, made: str, panels: list[Panel], notice: Notice | None, output: Output) -> str:
    lines = [f"# {marked_down(title)}", "", *(markdown_notice(notice) if notice else [])]
    lines += [f"![accuracy against iteration and seconds]({output.link('compare.svg')})", ""]
    for panel in panels:
        lines += [f"## {marked_down(panel.name)}", ""] if panel.name else []
        lines += [*markdown_table(HEADER, main_rows(panel)), ""]
    lines += [f"- {marked_down(line)}" for line in footnotes([result for panel in panels for result in panel.results])]
    lines += ["", "# Time to accuracy", "", f"![Kaplan-Meier curves and throughput]({output.link('times.svg')})", ""]
    for panel in panels:
        lines += [f"**{marked_down(panel.name)}**", ""] if panel.name else []
        lines += [*markdown_table(TIMES_HEADER, time_rows(panel)), ""]
    return "\n".join([*lines, f"- {marked_down(times_note(panels))}", "", marked_down(made), ""])


def markdown_notice(notice: Notice) -> list[str]:
    """Commands are a block of code, which shows them as they are."""
    lines = [f"**{marked_down(notice.heading)}**", "", *(f"- {marked_down(line)}" for line in notice.lines), ""]
    commands = [f"    {printable(command)}" for command in notice.commands]
    return [*lines, *(["To go on:", "", *commands, ""] if commands else [])]


def main_rows(panel: Panel) -> list[list[str]]:
    return [table_row(result, panel.complete) for result in panel.results]


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


def report(directories: list[Path], by: str | None = None, out: Path | None = None) -> None:
    """Table on the console; compare.json and .md, the figures compare (.png, .svg) and times (.svg), report.html,
    and TensorBoard's bands, in the directory or in `out`. Raises ConfigError where there is nothing to compare.

    `by`: the key that makes the arms; by default the one that the sweep was compared by, else norm or what is swept.
    The comparison by another key than that has files of its own, with the key in their names.
    """
    planned = read_planned(directories)
    key, output = choose_output(planned, by, out)
    arranged = arrange(planned.runs, key)
    panels, notice = make_panels(arranged, planned), make_notice(planned, arranged)
    title, made = title_of(planned.runs), provenance(planned.finished)
    write_figures(title, panels, planned, output)
    write_whole(output.path("compare.json"), to_json(as_data(title, key, panels, planned, arranged)))
    write_whole(output.path("compare.md"), markdown(title, made, panels, notice, output))
    notes = [*footnotes(all_results(panels)), times_note(panels)]
    write_whole(output.path("report.html"), page(title, html_sections(panels), notes, made, notice))
    shutil.rmtree(output.path("bands"), ignore_errors=True)
    write_bands(output.path("bands"), {folder_name(p.name, c.name): band(c) for p in panels for c in p.curves})
    show(title, panels, notice, output)


def choose_output(planned: Planned, by: str | None, out: Path | None) -> tuple[str | None, Output]:
    """The key that makes the arms, and the files that are its own. Raises ConfigError."""
    keys = swept_keys(settings_of(planned.runs))
    first = recorded_by(planned.roots[0])
    usual = pick_by(first if first in keys else None, keys)
    key = usual if by is None else pick_by(by, keys)
    return key, Output(output_folder(planned.roots, out), "" if key == usual else f"-{file_name(str(key))}")


def output_folder(directories: list[Path], out: Path | None) -> Path:
    """Where files go; `out` must not be where other runs have their own comparison. Raises ConfigError."""
    folder = directories[0] if out is None else out
    require(
        is_utf8(folder), "out", folder, "a folder whose name is UTF-8, to which alone TensorBoard writes: out=FOLDER"
    )
    if out is None:
        return folder
    require_path("out", str(out))
    own = {directory.resolve() for directory in directories} == {out.resolve()}
    require(own or not holds_run(out), "out", out, "a folder that holds no run and no sweep")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out} cannot be made: {error.strerror}") from error
    require(os.access(out, os.W_OK | os.X_OK), "out", out, "a folder one can write to")
    return out


def write_figures(title: str, panels: list[Panel], planned: Planned, output: Output) -> None:
    accuracy, times = ({p.name: plots(p) for p in panels} for plots in (Panel.accuracy_plots, Panel.time_plots))
    band_title, warning = f"{title}, band: lowest to highest seed", incomplete(planned)
    plot_figure(band_title, accuracy, [output.path("compare.png"), output.path("compare.svg")], warning)
    plot_figure(f"{title}: time to accuracy, throughput", times, [output.path("times.svg")], warning)


def incomplete(planned: Planned) -> str:
    """What nobody may overlook; empty where nothing is missing."""
    return f"INCOMPLETE: {planned.tally}" if planned.tally else ""


def make_notice(planned: Planned, arranged: Panels) -> Notice | None:
    """What is missing and how to go on; None where nothing is."""
    if planned.complete:
        return None
    lines = describe_missing(planned.lacking(arranged))
    lines += [f"{path} cannot be read: what was planned there is not known" for path in planned.unknown]
    return Notice(incomplete(planned), lines, planned.commands())


def as_data(title: str, by: str | None, panels: list[Panel], planned: Planned, arranged: Panels) -> dict[str, Any]:
    """For compare.json."""
    return {
        "title": title,
        "by": by,
        "finished": len(planned.finished),
        "planned": planned.size,
        "missing": [asdict(run) for run in planned.lacking(arranged)],
        "unreadable": [str(path) for path in planned.unknown],
        "go_on": planned.commands(),
        "arms": [asdict(result) for result in all_results(panels)],
    }


def all_results(panels: list[Panel]) -> list[ArmResult]:
    return [result for panel in panels for result in panel.results]


def folder_name(panel: str, arm: str) -> str:
    return file_name(",".join(part for part in (panel.replace(", ", ","), arm) if part))


def file_name(text: str) -> str:
    name = text.replace(os.sep, "_")
    return name if len(name.encode()) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()


def band(curve: Curve) -> dict[int, tuple[float, float, float]]:
    values = zip(curve.steps, curve.mean, curve.low, curve.high, strict=True)
    return {int(step): (float(mean), float(low), float(high)) for step, mean, low, high in values}


def show(title: str, panels: list[Panel], notice: Notice | None, output: Output) -> None:
    for panel in panels:
        show_table(f"{title}{f', {panel.name}' if panel.name else ''}", HEADER, main_rows(panel))
    for line in footnotes(all_results(panels))[1:]:
        say(line)
    if all(result.planned == 1 for result in all_results(panels)):
        say("one seed an arm has no interval: add 'seed=range(10)'")
    page_file, figure, table = (output.path(name) for name in ("report.html", "compare.png", "compare.md"))
    say(f"page: {page_file}; figures: {figure} (and .svg), {output.path('times.svg')}")
    board = shlex.join(["tensorboard", "--logdir", str(output.folder)])
    say(f"tables: {table}, {output.path('compare.json')}; curves: {board}")
    if notice is not None:
        show_notice(notice, str(table))


def show_notice(notice: Notice, whole: str) -> None:
    """`whole`: the file that lists all that is missing."""
    say(notice.heading)
    for line in notice.lines[:MOST_LINES]:
        say(f"  {line}")
    if len(notice.lines) > MOST_LINES:
        say(f"  and more: {whole}")
    for command in notice.commands:
        say(f"resume it by: {command}")
