"""`bnexp probe`: show the loss around the checkpoints of runs as a table, a figure and probe.csv."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bnexp.compare.arms import Arms, arrange, only
from bnexp.compare.figures import Line, Plot, Scales, lines_plot, plot_figure
from bnexp.compare.landscape import Probe, probe_run
from bnexp.compare.planned import describe_missing, read_planned
from bnexp.compare.report import choose_output, title_of
from bnexp.compare.report_tables import interval_text
from bnexp.compare.statistics import mean_interval
from bnexp.runs.config import ConfigError
from bnexp.runs.console import console, count, print_error, print_line, show_table
from bnexp.runs.files import replaced
from bnexp.runs.record import RunRecord

ProbesByRun = dict[Path, list[Probe]]  # directory of a run → a probe at each of its checkpoints
Measure = Callable[[Probe], float]
Parts = tuple[tuple[Measure, Callable[[list[float]], Any]], ...]  # a measure, and its summary over runs, as the mean

MEASURES: dict[str, Measure] = {  # the last columns of the table, and plots of the figure
    "gradient distance": lambda probe: max(probe.distances),
    "effective smoothness": lambda probe: probe.smoothness,
    "internal covariate shift": lambda probe: float(np.mean(list(probe.shift.values()) or np.nan)),
}
HEADER = ["arm", "runs", "loss range", *MEASURES]


def loss_range(probe: Probe) -> float:
    """Return the highest minus the lowest of the probe's `losses`, those after a step along the gradient."""
    return max(probe.losses) - min(probe.losses)


def report_probes(directories: list[Path], by: str | None, out: Path | None) -> None:
    """Probe the runs in and below `directories` that can be compared; print a table for each panel, and which planned
    runs are missing; write probe.csv, .png and .svg.

    `by`, the key that makes the arms, and `out`, the folder of the files, are as for `report`; so is the suffix of the
    files' names. Raises ConfigError where no run can be probed, or `by` or `out` is invalid.
    """
    planned = read_planned(directories)
    key, output = choose_output(planned, by, out)  # raises before the long computation
    probes = probe_runs(planned.finished)
    panels = arrange(planned.runs, key)
    probed = only(panels, [run for run in planned.finished if run.directory in probes])
    complete = len(probes) == planned.size and planned.complete
    files = [output.path(f"probe.{kind}") for kind in ("csv", "png", "svg")]
    write_csv(files[0], probes)
    title = f"Along the gradient, ½ to 4 times the step. {title_of(planned.runs)}"
    warning = "" if complete else f"INCOMPLETE: {len(probes)} of {count(planned.size, 'planned run')} probed"
    sizes = {panel: sizes_of(arms, {} if complete else panels[panel]) for panel, arms in probed.items()}
    drawn = {panel: plots(arms, sizes[panel], probes, complete) for panel, arms in probed.items()}
    plot_figure(title, drawn, files[1:], warning)
    for panel, arms in probed.items():
        show_table(f"{title}{f', {panel}' if panel else ''}", HEADER, rows(arms, sizes[panel], probes))
    if all(len(run_probes) == 1 for run_probes in probes.values()):
        print_line("one checkpoint a run: train with eval.keep=true for one at every evaluation")
    print_line(", ".join(map(str, files)))
    commands = (f"finish it by: {command}" for command in planned.commands())
    for line in filter(None, (warning, *describe_missing(planned.missing_runs(panels)), *commands)):
        print_line(line)


def probe_runs(runs: list[RunRecord]) -> ProbesByRun:
    """Return the probes of the runs for which `probe_run` raises no ConfigError; print an error for each other run.

    Raises ConfigError where there is no such run.
    """
    probes, damaged = ProbesByRun(), list[str]()
    with console.status("probing", spinner="line") as status:
        for number, run in enumerate(runs, 1):
            status.update(f"probing run {number} of {len(runs)}")
            try:
                probes[run.directory] = probe_run(run)
            except ConfigError as error:
                damaged.append(str(error))
    if not probes:
        raise ConfigError("; ".join(damaged))
    for problem in damaged:
        print_error(f"left out: {problem}")
    return probes


def write_csv(path: Path, probes: ProbesByRun) -> None:
    """Write probe.csv to `path`: one row for each checkpoint, with NaN for layers that its network lacks."""
    layers = list(dict.fromkeys(layer for run in probes.values() for probe in run for layer in probe.shift))
    header = ["run", "step", "loss", "lowest", "highest", "distance", "smoothness"]
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*header, *(f"shift/{layer}" for layer in layers), *(f"cosine/{layer}" for layer in layers)])
        for directory, run in probes.items():
            for probe in run:
                numbers = [probe.loss, min(probe.losses), max(probe.losses), max(probe.distances), probe.smoothness]
                numbers += [values.get(layer, np.nan) for values in (probe.shift, probe.cosine) for layer in layers]
                table.writerow([directory.name, probe.step, *(f"{number:.6g}" for number in numbers)])


def sizes_of(arms: Arms, planned: Arms) -> dict[str, str]:
    """Return arm → how many runs were probed, as text: "3", or "3 of 10" where the `planned` arms are given."""
    return {arm: f"{len(runs)} of {len(planned[arm])}" if planned else str(len(runs)) for arm, runs in arms.items()}


# ---- the figure: a row for each panel, with a plot of the loss and one of each measure


def plots(arms: Arms, sizes: dict[str, str], probes: ProbesByRun, complete: bool) -> list[Plot]:
    """Return a panel's plots against the iteration: of the loss along the gradient, and of each of MEASURES.

    Unless the probes are `complete`, an arm is labelled with its size.
    """
    labelled = {arm if complete else f"{arm} ({sizes[arm]})": runs for arm, runs in arms.items()}
    along: Parts = ((lambda p: p.loss, np.mean), (lambda p: min(p.losses), np.mean), (lambda p: max(p.losses), np.mean))
    quantities: dict[str, Parts] = {"loss; band: along the gradient": along}
    quantities |= {name: ((measure, np.mean), (measure, min), (measure, max)) for name, measure in MEASURES.items()}
    made = []
    for name, parts in quantities.items():
        lines = [make_line(label, runs, probes, parts) for label, runs in labelled.items()]
        made.append(lines_plot(lines, Scales("iteration (updates)", name, "y")))
    return made


def make_line(name: str, runs: list[RunRecord], probes: ProbesByRun, parts: Parts) -> Line:
    """Return the line of an arm, at the steps at which all of its runs were probed.

    parts: three pairs, for the line and for the lower and the upper edge of its band. A pair is a measure of a probe,
    and its summary over the runs.
    """
    by_step = [{probe.step: probe for probe in probes[run.directory]} for run in runs]
    steps = sorted(set.intersection(*map(set, by_step))) if runs else []
    line = ([take([measure(run[step]) for run in by_step]) for step in steps] for measure, take in parts)
    return Line(name, np.array(steps, dtype=np.float64), *map(np.array, line))


# ---- the table


def rows(arms: Arms, sizes: dict[str, str], probes: ProbesByRun) -> list[list[str]]:
    """Return the rows of the table, under HEADER: an arm's name, size and measures."""
    measures = (loss_range, *MEASURES.values())
    return [[arm, sizes[arm], *(cell(measure, runs, probes) for measure in measures)] for arm, runs in arms.items()]


def cell(measure: Measure, runs: list[RunRecord], probes: ProbesByRun) -> str:
    """Return, as text, the mean of a measure over runs with its 95% interval, or a dash without runs.

    A run's value is the mean over its checkpoints.
    """
    means = [float(np.mean([measure(probe) for probe in probes[run.directory]])) for run in runs]
    return interval_text(mean_interval(means, np.random.default_rng(0)) if means else None, ".4g")
