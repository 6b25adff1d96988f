"""`bnexp probe`: the loss around the checkpoints of runs, as a table, probe.csv and a figure."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnexp.comparison import Arms, arrange, only
from bnexp.config import ConfigError
from bnexp.console import console, count, show_table
from bnexp.console import print_error as complain
from bnexp.console import print_line as say
from bnexp.figures import Line, Plot, Scales, lines_plot, plot_figure
from bnexp.files import replaced
from bnexp.planned import describe_missing, read_planned
from bnexp.probe import Probe, probe_run
from bnexp.report import DASH, choose_output, title_of
from bnexp.runs import RunRecord
from bnexp.stats import mean_interval

Found = dict[Path, list[Probe]]  # of each run, at each of its checkpoints
Measure = Callable[[Probe], float]

MEASURES: dict[str, Measure] = {  # of the figure's columns but the first, and of the table
    "gradient distance": lambda probe: max(probe.distances),
    "effective smoothness": lambda probe: probe.smoothness,
    "internal covariate shift": lambda probe: float(np.mean(list(probe.shift.values()) or np.nan)),
}


def loss_range(probe: Probe) -> float:
    return max(probe.losses) - min(probe.losses)


def report_probes(directories: list[Path], by: str | None, out: Path | None) -> None:
    """Raises ConfigError where there is nothing to probe."""
    planned = read_planned(directories)
    key, output = choose_output(planned, by, out)  # before what takes long
    found = probe_runs(planned.finished)
    panels = arrange(planned.runs, key)
    probed = only(panels, [run for run in planned.finished if run.directory in found])
    whole = len(found) == planned.size and planned.complete
    files = [output.path(f"probe.{kind}") for kind in ("csv", "png", "svg")]
    write_csv(files[0], found)
    title = f"Along the gradient, ½ to 4 times the step. {title_of(planned.runs)}"
    warning = "" if whole else f"INCOMPLETE: {len(found)} of {count(planned.size, 'planned run')} probed"
    figure = {panel: plots(labelled(arms, panels[panel], whole), found) for panel, arms in probed.items()}
    plot_figure(title, figure, files[1:], warning)
    for panel, arms in probed.items():
        table = rows(arms, panels[panel], found, whole)
        show_table(f"{title}{f', {panel}' if panel else ''}", HEADER, table)
    if all(len(probes) == 1 for probes in found.values()):
        say("one checkpoint a run: train with eval.keep=true for one at every evaluation")
    say(", ".join(map(str, files)))
    missing = describe_missing(planned.lacking(panels))
    for line in (warning, *missing, *(f"resume it by: {command}" for command in planned.commands())):
        if line:
            say(line)


def probe_runs(runs: list[RunRecord]) -> Found:
    """Those whose checkpoints can be read; the others are named. Raises ConfigError where none can."""
    found, damaged = Found(), list[str]()
    with console.status("probing", spinner="line") as status:
        for number, run in enumerate(runs, 1):
            status.update(f"probing run {number} of {len(runs)}")
            try:
                found[run.directory] = probe_run(run)
            except ConfigError as error:
                damaged.append(str(error))
    if not found:
        raise ConfigError("; ".join(damaged))
    for problem in damaged:
        complain(f"left out: {problem}")
    return found


def write_csv(path: Path, found: Found) -> None:
    layers = list(dict.fromkeys(layer for probes in found.values() for probe in probes for layer in probe.shift))
    header = ["run", "step", "loss", "lowest", "highest", "distance", "smoothness"]
    with replaced(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*header, *(f"shift/{layer}" for layer in layers), *(f"cosine/{layer}" for layer in layers)])
        for directory, probes in found.items():
            for probe in probes:
                numbers = [probe.loss, min(probe.losses), max(probe.losses), max(probe.distances), probe.smoothness]
                numbers += [values.get(layer, np.nan) for values in (probe.shift, probe.cosine) for layer in layers]
                table.writerow([directory.name, probe.step, *(f"{number:.6g}" for number in numbers)])


# ---- the figure: a row a panel; the range of the loss, then a column a measure


def labelled(arms: Arms, planned: Arms, whole: bool) -> Arms:
    """Where runs are missing, an arm's name says how many of its own are there."""
    return {name if whole else f"{name} ({runs_words(name, arms, planned)})": runs for name, runs in arms.items()}


def runs_words(name: str, arms: Arms, planned: Arms) -> str:
    return f"{len(arms[name])} of {len(planned[name])}"


def plots(arms: Arms, found: Found) -> list[Plot]:
    x = "iteration (updates)"
    columns = [
        lines_plot([loss_line(*arm, found) for arm in arms.items()], Scales(x, "loss; band: along the gradient", "y"))
    ]
    for words, measure in MEASURES.items():
        lines = [measure_line(*arm, found, measure) for arm in arms.items()]
        columns.append(lines_plot(lines, Scales(x, words, "y")))
    return columns


def loss_line(name: str, runs: list[RunRecord], found: Found) -> Line:
    """Means over runs: the loss, its lowest and its highest along the gradient."""
    steps, at = by_step(runs, found)
    parts: tuple[Measure, ...] = (lambda p: p.loss, lambda p: min(p.losses), lambda p: max(p.losses))
    loss, low, high = (np.array([np.mean([part(probe) for probe in probes]) for probes in at]) for part in parts)
    return Line(name, steps, loss, low, high)


def measure_line(name: str, runs: list[RunRecord], found: Found, measure: Measure) -> Line:
    """Mean over runs, the lowest and the highest of them."""
    steps, at = by_step(runs, found)
    mean, low, high = (
        np.array([take([measure(probe) for probe in probes]) for probes in at]) for take in (np.mean, min, max)
    )
    return Line(name, steps, mean, low, high)


def by_step(runs: list[RunRecord], found: Found) -> tuple[NDArray[np.float64], list[list[Probe]]]:
    """Steps at which all of these runs have a checkpoint, and the runs' probes at each."""
    own = [{probe.step: probe for probe in found[run.directory]} for run in runs]
    steps = sorted(set.intersection(*(set(probes) for probes in own))) if own else []
    return np.array(steps, dtype=np.float64), [[probes[step] for probes in own] for step in steps]


# ---- the table

HEADER = ["arm", "runs", "loss range", *MEASURES]


def rows(arms: Arms, planned: Arms, found: Found, whole: bool) -> list[list[str]]:
    """Means over a run's checkpoints, their mean over runs."""
    measures = (loss_range, *MEASURES.values())
    return [
        [
            name,
            str(len(runs)) if whole else runs_words(name, arms, planned),
            *(cell(measure, runs, found) for measure in measures),
        ]
        for name, runs in arms.items()
    ]


def cell(measure: Measure, runs: list[RunRecord], found: Found) -> str:
    if not runs:
        return DASH
    means = [float(np.mean([measure(probe) for probe in found[run.directory]])) for run in runs]
    estimate = mean_interval(np.array(means), np.random.default_rng(0))
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.4g}"
    return f"{estimate.mean:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"
