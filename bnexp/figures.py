"""matplotlib figures: arrays in, files out."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "bnexp", "svg.fonttype": "none", "font.size": 10, "axes.grid": True})
matplotlib.rcParams.update({"grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False})

# Told apart by people with every kind of colour vision, and in grey: the lightness falls in steps, the dashes differ.
COLOURS = ("#d55e00", "#0b3c5d", "#56b4e9", "#7b2d66", "#9c7a00", "#4f9d69", "#000000")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1, 1, 1)), (0, (8, 2)), (0, (2, 2)))


@dataclass(frozen=True)
class Curve:
    """An arm's validation accuracy over its seeds at each evaluation: all arrays (evaluations,)."""

    name: str
    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]  # mean over seeds
    mean: NDArray[np.float64]
    low: NDArray[np.float64]  # lowest and highest seed
    high: NDArray[np.float64]
    n: int


def accuracy_figure(title: str, panels: dict[str, list[Curve]], files: list[Path]) -> None:
    """A row a panel: accuracy against iteration and against seconds, a line an arm with the range of its seeds."""
    figure = Figure(figsize=(11, 0.9 + 3.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False, sharey=True)
    for row, (name, curves) in zip(axes, panels.items(), strict=True):
        for axis, against in zip(row, ("steps", "seconds"), strict=True):
            draw(axis, curves, against)
        row[0].set_ylabel("validation accuracy")
        row[0].set_title(name, loc="left", fontsize=10)
        row[1].legend(loc="center right", frameon=False)
    axes[-1][0].set_xlabel("iteration (updates)")
    axes[-1][1].set_xlabel("seconds of training")
    figure.suptitle(title, fontsize=11, fontweight="bold")
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=150, metadata=metadata)


def draw(axis: Axes, curves: list[Curve], against: str) -> None:
    for number, curve in enumerate(curves):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        x = getattr(curve, against)
        axis.plot(x, curve.mean, color=colour, linestyle=dash, linewidth=1.8, label=curve.name)
        axis.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axis.axhline(0.9, color="0.5", linewidth=0.8, linestyle=":")
    axis.set_ylim(0, 1)
    axis.set_xlim(left=0)
