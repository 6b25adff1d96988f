"""Figures of claims: which runs make each line of each panel, and which metric the lines show."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bnexp.claims.claim import BLOCKS, PerSeed, Runs
from bnexp.claims.prediction import LOGIT, prediction_interval, trained
from bnexp.claims.published import AtChance, Divided, PublishedSample
from bnexp.claims.values import Arm, Metric, at_batch_size, by_value
from bnexp.compare.arms import UNITS, make_curve
from bnexp.compare.figures import Line, Points, Scales, accuracy_plot, line_figure, plot_figure, points_figure
from bnexp.runs.record import RunRecord

Layout = dict[str, dict[str, Arm]]  # title of a panel → label of a line → its arm
MetricAt = Callable[[RunRecord, float], float]  # a metric of a run, at one x
LABEL = "accuracy, % (grey: 95% prediction interval of one run of ours that trains)"
BAND = "line: mean over seeds, band: lowest to highest"


@dataclass(frozen=True)
class Drawing:
    """A figure of a claim.

    `name` is its file's name without the ending; `panels` is title of a panel → label → arm; the function `lines` makes
    the lines of an arm from its label and its runs.
    """

    name: str
    title: str
    panels: Layout
    scales: Scales
    lines: Callable[[str, Runs], list[Line]]

    def draw(self, runs: Runs, files: list[Path]) -> None:
        """Draw the panels and lines that have runs among these, into every file; without such runs write nothing."""
        picked = {panel: {label: arm.pick(runs) for label, arm in arms.items()} for panel, arms in self.panels.items()}
        if not any(arm_runs for arms in picked.values() for arm_runs in arms.values()):
            return
        sizes = [
            len({run.seed for run in arm_runs}) for arms in picked.values() for arm_runs in arms.values() if arm_runs
        ]
        seeds = f"{min(sizes)}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
        lines = {
            panel: [line for label, arm_runs in arms.items() if arm_runs for line in self.lines(label, arm_runs)]
            for panel, arms in picked.items()
            if any(arms.values())
        }
        line_figure(f"{self.title}\n{seeds} seeds an arm; {BAND}", lines, self.scales, files)


@dataclass(frozen=True)
class AccuracyFigure:
    """A figure of validation accuracy against iteration and, beside it, against seconds, with a row for each panel.

    `name`, `title` and `panels` are as in `Drawing`; a dotted line is at the accuracy `target`.
    """

    name: str
    title: str
    panels: Layout
    target: float

    def draw(self, runs: Runs, files: list[Path]) -> None:
        """Draw the rows that have runs among these, into every file; without such runs write nothing."""
        picked = {panel: {label: arm.pick(runs) for label, arm in arms.items()} for panel, arms in self.panels.items()}
        lines = {
            panel: [make_curve(label, arm_runs) for label, arm_runs in arms.items() if arm_runs]
            for panel, arms in picked.items()
        }
        rows = {
            panel: [accuracy_plot(arms, unit, self.target) for unit in UNITS] for panel, arms in lines.items() if arms
        }
        if rows:
            seeds = max(len(arm_runs) for arms in picked.values() for arm_runs in arms.values())
            plot_figure(f"{self.title}, {seeds} seeds; {BAND}", rows, files)


@dataclass(frozen=True)
class Strips:
    """A figure of a cell of a published table: our runs, block by block, and the reruns by others as points.

    The published runs are marked, and the prediction interval of one run of ours is shown. `rules`: title of a row →
    the rule that judges it; `published` and `edited`: title of a row → the published values,
    and those of reruns of a changed network.
    """

    name: str
    title: str
    rules: Mapping[str, PublishedSample | AtChance | Divided]
    published: Mapping[str, Sequence[float]]
    edited: Mapping[str, Sequence[float]]

    def draw(self, runs: Runs, files: list[Path]) -> None:
        """Draw the rows that have runs, and save the figure to every file; without any, write nothing."""
        rows = [self.row(title, rule, ours) for title, rule in self.rules.items() if (ours := rule.ours.of(runs))]
        if rows:
            points_figure(self.title, rows, LABEL, "published", files)

    def row(self, title: str, rule: PublishedSample | AtChance | Divided, ours: PerSeed) -> Points:
        """Return the row of one rule, from our values by seed."""
        groups: dict[str, Sequence[float]] = {
            f"ours, seeds from {first} on": values
            for first in BLOCKS
            if (values := [value for seed, value in ours.items() if (seed >= BLOCKS[1]) == (first >= BLOCKS[1])])
        }
        numbers = trained(list(ours.values()))
        band = prediction_interval(numbers, LOGIT) if len(numbers) else None
        ends = (band.low, band.high) if band else (None, None)
        groups |= {"theirs": rule.theirs} | ({"theirs, edited": self.edited[title]} if self.edited[title] else {})
        return Points(title, groups, self.published[title], *ends)


def curves(name: str, title: str, panels: Layout) -> Drawing:
    """Return a `Drawing` of validation accuracy against iteration, with one line for each arm."""

    def lines(label: str, runs: Runs) -> list[Line]:
        return [make_curve(label, runs)]

    return Drawing(name, title, panels, Scales("iteration (updates)", "validation accuracy", share=True), lines)


def by_batch_size(name: str, title: str, norms: dict[str, str], sizes: Iterable[int]) -> Drawing:
    """Return a `Drawing` of `curves` with a panel for each batch size; `norms` is label of a line → norm."""
    return curves(
        name,
        title,
        {f"batches of {size}": {label: at_batch_size(norm, size) for label, norm in norms.items()} for size in sizes},
    )


def against(name: str, title: str, panels: Layout, key: str, metric: Metric, scales: Scales) -> Drawing:
    """Return a `Drawing` of a metric against the configuration's number `key`, as optim.lr: a line for each arm."""

    def lines(label: str, runs: Runs) -> list[Line]:
        groups = by_value(runs, key)
        return [band_line(label, list(groups), [[metric(run) for run in arm_runs] for arm_runs in groups.values()])]

    return Drawing(name, title, panels, scales, lines)


def at_each(name: str, title: str, arm: Arm, reads: dict[str, MetricAt], x: Sequence[float], scales: Scales) -> Drawing:
    """Return a `Drawing` of several metrics of one arm against x, with a line for each metric.

    `reads`: label → metric, a function of a run and of one value of `x`.
    """

    def lines(label: str, runs: Runs) -> list[Line]:
        return [band_line(label, x, [[reads[label](run, at) for run in runs] for at in x])]

    return Drawing(name, title, {"": dict.fromkeys(reads, arm)}, scales, lines)


def percentiles(name: str, title: str, panels: Layout, layer: str) -> Drawing:
    """Return a `Drawing` of the 15th, 50th and 85th percentile of the inputs to a layer's activation against iteration.

    The inputs are those of the layer's first unit or channel. Each percentile is a line, the mean over an arm's runs,
    in a band from the lowest to the highest of them. Only steps at which all runs of the arm were evaluated are shown.
    """

    def lines(label: str, runs: Runs) -> list[Line]:
        steps = sorted(set.intersection(*(set(run.validation) for run in runs)))
        return [
            band_line(f"{p}th", steps, [[run.validation[step][f"{layer}/p{p}"] for run in runs] for step in steps])
            for p in (85, 50, 15)
        ]

    return Drawing(name, title, panels, Scales("iteration (updates)", "input to the sigmoid"), lines)


def by_layer(name: str, title: str, panels: Layout, read: Callable[[RunRecord], list[float]], y: str) -> Drawing:
    """Return a `Drawing` of a value for each hidden layer, on a logarithmic scale.

    `read` gives a run's values, in the order of the layers; `y` is the label of the axis.
    """

    def lines(label: str, runs: Runs) -> list[Line]:
        values = np.array([read(run) for run in runs]).T
        return [band_line(label, range(1, len(values) + 1), values.tolist())]

    return Drawing(name, title, panels, Scales("hidden layer", y, log="y"), lines)


def band_line(label: str, x: Iterable[float], values: list[list[float]]) -> Line:
    """Return the line of the mean over seeds, its band from lowest to highest; values[i] are the seeds' at x[i]."""
    low, mean, high = (np.array([take(seeds) for seeds in values]) for take in (min, np.mean, max))
    return Line(label, np.array(list(x), dtype=np.float64), mean, low, high)
