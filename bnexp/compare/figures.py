"""Draw figures with matplotlib: arrays in, files out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from bnexp.runs.files import replaced

# applied while a figure is drawn: whoever imports this, as a notebook does, keeps their own settings
STYLE: dict[Any, Any] = {"svg.hashsalt": "bnexp", "svg.fonttype": "none", "font.size": 10}
STYLE |= {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}

# Distinct for people with every kind of colour vision, and in grey: the lightness falls in steps, the dashes differ.
COLOURS = ("#d55e00", "#0b3c5d", "#56b4e9", "#7b2d66", "#9c7a00", "#4f9d69", "#000000")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))

WARNING = "#b3001b"
FEW = 12  # up to so many different x get a tick each
CHARACTERS = 10  # of a title in an inch of a figure's width

Plot = Callable[[Axes], None]  # draws one axis


@dataclass(frozen=True)
class Line:
    """A line with a band; all arrays are (points,).

    `mean` is a mean over seeds; the band from `low` to `high` usually spans the lowest to the highest seed.
    """

    name: str
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Curve(Line):
    """An arm's validation accuracy at each evaluation, with `x` in steps.

    `seconds` (points,) is the time of training until each evaluation, a mean over seeds.
    """

    seconds: NDArray[np.float64]


# ---- plots of one axis


@matplotlib.rc_context(STYLE)
def plot_figure(title: str, rows: dict[str, list[Plot]], files: list[Path], warning: str = "") -> None:
    """Draw a figure with one row of plots for each panel, and save it to every file.

    `rows`: name of a panel → its plots. A `warning` is added below the title, and turns the title red.
    """
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(5.5 * columns, 0.9 + 3.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, plots) in zip(axes, rows.items(), strict=True):
        for axis, plot in zip(row, plots, strict=True):
            plot(axis)
        row[0].set_title(plain(name), loc="left", fontsize=10)
    lines = wrap(title, int(5.5 * columns * CHARACTERS)) + ([warning] if warning else [])
    colour = WARNING if warning else "black"
    figure.suptitle(plain("\n".join(lines)), fontsize=11, fontweight="bold", color=colour)
    save(figure, files)


@matplotlib.rc_context(STYLE)
def plot_svg(plot: Plot) -> str:
    """Return a plot, drawn at 5.2 by 3.5 inches to suit a phone's screen, as the text of an <svg> element."""
    figure, buffer = Figure(figsize=(5.2, 3.5)), StringIO()
    plot(figure.subplots(gridspec_kw={"left": 0.13, "right": 0.96, "bottom": 0.14, "top": 0.97}))
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def accuracy_plot(curves: list[Curve], against: str, target: float = 0.9) -> Plot:
    """Return a plot of validation accuracy against "steps" or "seconds": a line with its band for each arm.

    A dotted line is at the accuracy `target`.
    """

    def plot(axis: Axes) -> None:
        draw_lines(axis, [replace(curve, x=curve.seconds) if against == "seconds" else curve for curve in curves])
        axis.axhline(target, color="0.5", linewidth=0.8, linestyle=":")
        axis.set(xlim=(0, None), ylim=(0, 1), ylabel="validation accuracy")
        axis.set_xlabel("iteration (updates)" if against == "steps" else "seconds of training")
        axis.legend(loc="best", frameon=False, fontsize=9)

    return plot


StepFunction = tuple[list[float], list[float]]  # times and values, both (points,)


def arrivals_plot(arms: dict[str, StepFunction], label: str, end: float) -> Plot:
    """Return a plot of the share of each arm's runs that have reached a target by each step.

    `arms`: name → steps and, for each, the share that has reached the target until then. `label` names the y axis, and
    `end` is the last step of the longest run. A line that reaches 1 is extended to `end`.
    """

    def plot(axis: Axes) -> None:
        for number, (name, (times, shares)) in enumerate(arms.items()):
            rest = shares[-1:] == [1.0]
            x, y = times + [end] * rest, shares + [1.0] * rest
            axis.step(x, y, where="post", label=plain(name), **style_of(number))
        axis.set(xlim=(0, end or None), ylim=(-0.03, 1.03), xlabel="iteration (updates)", ylabel=label)
        axis.legend(loc="best", frameon=False, fontsize=9)

    return plot


def speed_plot(speeds: dict[str, list[float]]) -> Plot:
    """Return a plot with a bar for each arm: its median updates a second, and the range over its runs.

    `speeds`: name of an arm → updates a second of each run. For an arm without runs only its name is drawn.
    """

    def plot(axis: Axes) -> None:
        for number, (name, values) in enumerate(speeds.items()):
            axis.text(0, number - 0.29, plain(name), fontsize=9)
            if values:
                bar = Bar(name, float(np.median(values)), min(values), max(values))
                draw_bars(axis, [number], [bar], 0.5, [COLOURS[number % len(COLOURS)]])
        axis.set(yticks=[], ylim=(len(speeds) - 0.6, -0.6), xlabel="updates a second")
        axis.grid(visible=False, axis="y")
        axis.set_axisbelow(True)

    return plot


def style_of(number: int) -> dict[str, Any]:
    """Return colour, dashes and width of the line with this number; the first 22 styles are different."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[(number + 2 * (number // len(COLOURS))) % len(DASHES)],
        "linewidth": 1.8,
    }


def plain(text: str) -> str:
    """Escape dollar signs, so that matplotlib does not read text as a formula."""
    return text.replace("$", r"\$")


def draw_lines(axis: Axes, lines: Sequence[Line]) -> None:
    """Draw lines with their bands on an axis."""
    for number, line in enumerate(lines):
        style = style_of(number)
        axis.plot(line.x, line.mean, label=plain(line.name), **style)
        axis.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.18, linewidth=0)


# ---- lines on scales


@dataclass(frozen=True)
class Scales:
    """The axes of a plot: the labels `x` and `y`, and how each is scaled.

    `log` names the logarithmic ones ("", "x", "y" or "xy"); with `share`, y runs from 0 to 1.
    """

    x: str
    y: str
    log: str = ""
    share: bool = False


@matplotlib.rc_context(STYLE)
def line_figure(title: str, panels: dict[str, list[Line]], scales: Scales, files: list[Path]) -> None:
    """Draw panels of lines, two to a row and with one y scale, and save the figure to every file.

    `panels`: title → lines. A panel whose lines have the names of those in the panel before gets no legend.
    """
    columns = min(len(panels), 2)
    rows, width = -(-len(panels) // columns), 11 if columns == 2 else 7
    explained: list[str] = []
    figure = Figure(figsize=(width, 0.9 + 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    for axis, (name, lines) in zip(axes, panels.items(), strict=False):
        draw_scaled(axis, lines, scales)
        axis.set_title(plain(name), loc="left", fontsize=10)
        axis.set_xlabel(scales.x)
        if explained != (names := [line.name for line in lines]):
            axis.legend(frameon=False, fontsize=9)
            explained = names
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(scales.y)
    lines_of_title = [line for part in title.splitlines() for line in wrap(part, width * CHARACTERS)]
    figure.suptitle("\n".join(lines_of_title), fontsize=11, fontweight="bold")
    save(figure, files)


def lines_plot(lines: list[Line], scales: Scales) -> Plot:
    """Return a plot of lines with their bands, labels of both axes and a legend."""

    def plot(axis: Axes) -> None:
        draw_scaled(axis, lines, scales)
        axis.set(xlabel=scales.x, ylabel=scales.y)
        axis.legend(loc="best", frameon=False, fontsize=9)

    return plot


def draw_scaled(axis: Axes, lines: list[Line], scales: Scales) -> None:
    """Draw lines with their bands, and scale the axes; where at most FEW x are different, each has a tick."""
    draw_lines(axis, lines)
    if "x" in scales.log:
        axis.set_xscale("log")
    values = sorted({float(x) for line in lines for x in line.x})
    if len(values) <= FEW:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.minorticks_off()
    if "y" in scales.log:
        axis.set_yscale("log")
    if scales.share:
        axis.set_ylim(0, 1)


# ---- points


@dataclass(frozen=True)
class Points:
    """A row of points: `groups` is name of a group → its values; `marked` are values of their own, which get a star.

    `low` and `high` are the ends of an interval, None without one.
    """

    title: str
    groups: dict[str, Sequence[float]]
    marked: Sequence[float]
    low: float | None
    high: float | None


@matplotlib.rc_context(STYLE)
def points_figure(title: str, rows: list[Points], label: str, star: str, files: list[Path]) -> None:
    """Draw each row on an axis of its own, one line for each group, and save the figure to every file.

    `label` names the horizontal axis, `star` what the marked values are. The interval is a grey band.
    """
    figure = Figure(figsize=(8, 0.8 + 1.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        draw_points(axis, row, star)
    axes[-1].set_xlabel(label, fontsize=9)
    figure.suptitle("\n".join(wrap(plain(title), 8 * CHARACTERS)), fontsize=11, fontweight="bold")
    save(figure, files)


def draw_points(axis: Axes, row: Points, star: str) -> None:
    """Draw a row of points: its groups from the top down, the interval behind them, the marked values at the top."""
    if row.low is not None and row.high is not None:
        axis.axvspan(row.low, row.high, color="0.88", zorder=0)
    for place, values in enumerate(row.groups.values()):
        axis.plot(values, [place] * len(values), "o", color=COLOURS[place], alpha=0.55, markersize=5, markeredgewidth=0)
    axis.plot(row.marked, [-0.8] * len(row.marked), "*", color="black", markersize=9)
    axis.set_yticks([-0.8, *range(len(row.groups))], [star, *row.groups], fontsize=8)
    axis.set_ylim(len(row.groups) - 0.4, -1.4)
    axis.set_title(plain(row.title), loc="left", fontsize=9)
    axis.grid(visible=False, axis="y")


# ---- bars


@dataclass(frozen=True)
class Bar:
    """A bar of length `value`, with an interval from `low` to `high` and a note, which may be written next to it."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""


EDGED = {"linewidth": 1.6, "path_effects": [Stroke(linewidth=3.2, foreground="white"), Normal()]}


@matplotlib.rc_context(STYLE)
def rate_figure(title: str, caption: str, panels: dict[str, dict[str, list[list[Bar]]]], files: list[Path]) -> None:
    """Draw groups of horizontal bars, and save the figure to every file.

    `panels`: title of a row → quantity, which labels a column → its groups. `caption` is written below the rows.
    """
    heights = [1 + 0.28 * max(sum(map(len, groups)) for groups in columns.values()) for columns in panels.values()]
    figure = Figure(figsize=(14, 0.85 + sum(heights)), layout="constrained")
    columns = max(map(len, panels.values()))
    axes = figure.subplots(len(panels), columns, squeeze=False, sharey="row", height_ratios=heights)
    for row, (name, quantities) in zip(axes, panels.items(), strict=True):
        row[0].set_title(plain(name), loc="left", fontsize=10)
        row[0].invert_yaxis()  # of the whole row
        for axis, (quantity, groups) in zip(row, quantities.items(), strict=True):
            draw_groups(axis, groups)
            axis.set_xlabel(quantity, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="0.35")
    save(figure, files)


def draw_groups(axis: Axes, groups: list[list[Bar]]) -> None:
    """Draw bars from the top down, with their names and notes; the colours begin anew with each group."""
    for bars in groups:
        drawn = draw_bars(axis, [bar.name for bar in bars], bars, 0.76, COLOURS)
        axis.bar_label(drawn, [bar.note for bar in bars], padding=5, fontsize=8.5)
    longest = max(bar.high for bars in groups for bar in bars)
    axis.set_xlim(0, 1.68 * longest or 1.0)  # with room for the notes
    axis.margins(y=0.02)
    axis.grid(visible=False, axis="y")
    axis.set_axisbelow(True)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def draw_bars(
    axis: Axes, places: Sequence[str | float], bars: list[Bar], height: float, colours: Sequence[str]
) -> BarContainer:
    """Draw bars with their intervals, black edged with white, which is visible on every colour."""
    low, high = ([bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars])
    values = [bar.value for bar in bars]
    return axis.barh(places, values, height, xerr=[low, high], color=colours, error_kw=EDGED)


def save(figure: Figure, files: list[Path]) -> None:
    """Write a figure to each file, in the format that its ending names. SVG and PDF files have no date.

    The layout is computed for the first file and then fixed.
    """
    for file in files:
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix)
        with replaced(file) as temporary:
            figure.savefig(temporary, format=file.suffix[1:], dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # for the other files: computing it takes as long as drawing
