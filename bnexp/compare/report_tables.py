"""Make the text of a comparison: the cells of its tables, its footnotes, and tables in Markdown."""

from html import escape

from bnexp.compare.arms import ArmResult
from bnexp.compare.statistics import FEWEST_PAIRS, Estimate, TimeResult, TimeTo
from bnexp.runs.console import count, rate

Table = tuple[list[str], list[list[str]]]  # header, rows
TARGET = 0.90  # the validation accuracy of the table's column of steps
HEADER = ["arm", "n", "test accuracy", "− control, paired", "steps to 90%", "reached", "steps/s", "ratio"]
TIMES_HEADER = ["arm", "to", "reached", "median", "restricted mean", "− control, paired"]
DASH = "–"
TIMES_NOTE = (
    "Times: those of the first evaluation at the target. Reached and median: over all runs, each watched until its own "
    "end; a run that never reaches the target counts as never. Restricted mean: the mean of min(time, horizon), which "
    "is the area under the Kaplan-Meier curve up to the horizon, the last step (or second) that every finished run "
    "has; the paired difference is that of min(time, horizon), seed by seed. Horizons: "
)


def interval_text(estimate: Estimate | None, form: str, scale: float = 1.0) -> str:
    """Return "mean [low, high]", multiplied by `scale`, each in the format `form`, as ",.2f".

    Without an interval, only the mean; a dash for None.
    """
    if estimate is None:
        return DASH
    values = (estimate.mean, estimate.low, estimate.high)
    mean, *bounds = (format(scale * value, form) for value in values if value is not None)
    return f"{mean} [{', '.join(bounds)}]" if bounds else mean


def percent(estimate: Estimate | None, sign: str = "") -> str:
    """Return an accuracy in percent with its interval; with `sign` "+", positive numbers have a sign, too."""
    return interval_text(estimate, f"{sign},.2f", 100)


def arm_table(results: list[ArmResult], complete: bool) -> Table:
    """Return the main table of a panel: a row for each arm.

    Unless the report is `complete`, the cell of n also says how many runs of the arm were planned.
    """
    return HEADER, [arm_row(result, complete) for result in results]


def arm_row(result: ArmResult, complete: bool) -> list[str]:
    """Return an arm's cells under HEADER; `complete` as in `arm_table`."""
    runs = f"{result.n}" if complete else f"{result.n} of {result.planned}"
    diverged = f" ({result.diverged} diverged)" if result.diverged else ""
    return [
        result.arm,
        f"{runs}{diverged}",
        percent(result.test_accuracy),
        paired_text(result, result.difference, percent(result.difference, "+")),
        *reached_text(result.time(TARGET, "steps").times, ",.0f"),
        rate(result.steps_per_second) if result.steps_per_second is not None else DASH,
        f"{result.speed_ratio:.2f}" if result.speed_ratio is not None else DASH,
    ]


def times_table(results: list[ArmResult]) -> Table:
    """Return a panel's table of times: a row for each target, unit and arm."""
    arms_by_time = zip(*(result.times for result in results), strict=True)
    return TIMES_HEADER, [time_row(*arm) for times in arms_by_time for arm in zip(results, times, strict=True)]


def time_row(result: ArmResult, time: TimeResult) -> list[str]:
    """Return an arm's cells under TIMES_HEADER; `time` is one of its times, for one target and unit."""
    form = ",.0f" if time.unit == "steps" else ",.2f"
    median, reached = reached_text(time.times, form)
    return [
        result.arm,
        f"{time.target:.0%}, {time.unit}",
        reached,
        median,
        interval_text(time.restricted, form),
        paired_text(result, time.difference, interval_text(time.difference, form)),
    ]


def paired_text(result: ArmResult, difference: Estimate | None, text: str) -> str:
    """Return `text`, which formats `difference`, followed by the number of pairs where fewer than planned.

    For the control it is "control"; where there is no difference, "no pairs", or a dash for an arm without runs.
    """
    if result.control or difference is None:
        return "control" if result.control else "no pairs" if result.n else DASH
    fewer = difference.n < result.planned_pairs
    return f"{text}, {difference.n} of {result.planned_pairs} pairs" if fewer else text


def reached_text(times: TimeTo, form: str) -> list[str]:
    """Return the cells of the median time, in the format `form` or "never", and of how many runs arrived.

    Both are dashes without runs.
    """
    median = "never" if times.median is None else format(times.median, form)
    return [median, f"{times.reached} of {times.n}"] if times.n else [DASH, DASH]


# ---- footnotes


def times_note(results: list[ArmResult]) -> str:
    """Return the footnote of the table of times, with the horizons of each panel that has runs to compare."""
    parts = []
    for result in results:
        horizons = {time.unit: time.horizon for time in result.times}  # those of its panel
        if horizons["steps"] is not None and horizons["seconds"] is not None:
            text = f"{horizons['steps']:,.0f} steps, {horizons['seconds']:,.2f} s"
            parts.append(f"{result.panel}: {text}" if result.panel else text)
    return f"{TIMES_NOTE}{'; '.join(dict.fromkeys(parts))}."


def footnotes(results: list[ArmResult]) -> list[str]:
    """Return the footnotes of the table: what its columns mean, and the notes and tests of its arms."""
    lines = [
        f"Test accuracy in percent: mean over seeds with its 95% bootstrap-t interval (of fewer than {FEWEST_PAIRS} "
        f"Student's t); the paired difference is taken seed by seed. Steps to {TARGET:.0%} of validation accuracy: "
        "median over seeds, where a run that never reaches it counts as never. Steps/s: median, evaluation and "
        "compilation excluded.",
    ]
    tests = sum(result.p is not None for result in results)
    for result in results:
        lines += arm_notes(result, tests)
    pairs = min((result.difference.n for result in results if result.difference), default=FEWEST_PAIRS)
    return list(dict.fromkeys([*lines, *([too_few(pairs)] if pairs < FEWEST_PAIRS else [])]))


def too_few(pairs: int) -> str:
    """Return the footnote for fewer pairs than a test needs."""
    return (
        f"With {count(pairs, 'pair')} there is no p-value: the interval of the difference is what can be read, if the "
        f"values are normal. A test takes {FEWEST_PAIRS} seeds an arm."
    )


def arm_notes(result: ArmResult, tests: int) -> list[str]:
    """Return the footnotes of one arm: its notes, recalibrated accuracy and test against the control.

    There is one for each of these that the arm has; for the test, it takes 6 pairs. `tests` is the number of arms that
    have a p-value.
    """
    name = ", ".join(part for part in (result.panel, result.arm) if part)
    lines = [f"{result.arm} besides: {', '.join(result.notes)}."] if result.notes else []
    if result.recalibrated:
        text = f"test accuracy {percent(result.recalibrated)} with statistics of a whole epoch"
        lines.append(f"{name}: {text} in place of running averages.")
    if result.p is not None and result.difference:
        lines.append(f"{name}: {test_text(result, result.difference.n, tests)}.")
    return lines


def test_text(result: ArmResult, pairs: int, tests: int) -> str:
    """Return as text an arm's p-value, p_holm if `tests` > 1, interquartile mean, and gain from pairing, if any."""
    assert result.interquartile_mean is not None
    text = f"bootstrap-t p = {result.p:.3g} at {pairs} pairs"
    text += f" ({result.p_holm:.3g} after Holm over {tests} comparisons)" if tests > 1 else ""
    text += f"; interquartile mean {100 * result.interquartile_mean:.2f}%"
    if result.pairing and result.pairing.variance_ratio is not None:
        text += (
            f"; the pairs correlate at {result.pairing.correlation:.2f}, so that the difference's variance is "
            f"{result.pairing.variance_ratio:.2f} times that of unpaired runs"
        )
    return text


# ---- Markdown


def markdown_table(header: list[str], rows: list[list[str]], align: str = "---:") -> list[str]:
    """Return the lines of a Markdown table, with every cell escaped.

    `align` is the delimiter of all columns but the first: `---:` aligns right.
    """
    lines = ["| " + " | ".join(map(marked_down, cells)) + " |" for cells in [header, *rows]]
    return [lines[0], "|---" + f"|{align}" * (len(header) - 1) + "|", *lines[1:]]


def marked_down(text: str) -> str:
    """Escape text for Markdown: no HTML, no link or image, no end of a table's cell. Emphasis is not escaped."""
    return escape(text, quote=False).replace("|", "\\|").replace("](", "]\\(")
