"""Show and write what `bnexp bench` measured: tables on the console, bench.json, bench.md and the figure."""

import os
import platform
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from typing import Any

import torch

from bnexp.compare.figures import Bar, rate_figure
from bnexp.compare.report_tables import Table, markdown_table
from bnexp.compare.throughput import Row, Spread, interval_description
from bnexp.compare.throughput_plan import CONTROL, MODES, Benchmark, BenchOptions
from bnexp.runs.console import count, print_line, rate, show_table
from bnexp.runs.directory import PACKAGES, git_state, machine, to_json
from bnexp.runs.files import write_whole
from bnexp.training.compiled import compiler_command
from bnexp.training.compiler import has_compiler
from bnexp.training.device import pick_device

DASH = "—"
Rows = dict[str, list[Row]]  # title of a benchmark → its rows
TITLE = "Steps a second with and without normalization"


@dataclass(frozen=True)
class Quantity:
    """A rate of training steps or forward passes: its names, and functions that get it, and its ratio, from a row."""

    title: str
    unit: str
    rate: Callable[[Row], Spread]
    ratio: Callable[[Row], Spread | None]


QUANTITIES = (
    Quantity("training step", "training steps/s", lambda row: row.steps_per_second, lambda row: row.step_ratio),
    Quantity("forward pass", "forward passes/s", lambda row: row.forwards_per_second, lambda row: row.forward_ratio),
)


def table(benchmark: Benchmark, rows: list[Row], quantity: Quantity) -> Table:
    """Return a quantity's table: a row for each contender, and one of dashes for each mode left out."""
    header = ["norm, mode", quantity.unit, f"ratio to {CONTROL}, same mode"]
    cells = []
    for row in rows:
        ratio = quantity.ratio(row)
        share, speed = f"{row.ratio}: {ratio.text(2)}" if ratio else "control", quantity.rate(row)
        cells.append([f"{row.norm}, {row.mode}", speed.text(int(speed.median < 10)), share])
    return header, cells + [[mode, DASH, DASH] for mode in MODES if mode in benchmark.left_out]


def title_of(benchmark: Benchmark, rows: list[Row]) -> str:
    """Return a benchmark's title with the number of its threads, if any of it was measured."""
    return f"{benchmark.title}, {count(rows[0].threads, 'thread')}" if rows else benchmark.title


def footnotes(benchmarks: list[Benchmark], options: BenchOptions) -> list[str]:
    """Return the footnotes: how the rates were measured, what the modes mean, and what was left out."""
    modes = {
        "eager": "eager: one run, uncompiled",
        "compiled": "compiled: one run, compiled",
        "stacked": f"stacked: {options.stack} runs compiled as one, the steps of all of them counted",
    }
    lines = [
        f"Rates: {interval_description(options.rounds)}, {options.seconds:g} s a measurement. Rounds are interleaved, "
        "ratios taken round by round. Compilation, evaluation and the order of batches are not in them.",
        "Training step: gather the batch, forward, backward, update. Forward pass: in training mode, up to the loss.",
        "; ".join(modes[mode] for mode in options.modes) + ".",
    ]
    reasons = (f"{what} is left out: {why}" for benchmark in benchmarks for what, why in benchmark.left_out.items())
    return lines + [f"{reason}." for reason in dict.fromkeys(reasons)]


def markdown(benchmarks: list[Benchmark], rows: Rows, facts: dict[str, Any], options: BenchOptions) -> str:
    """Return the content of bench.md; `facts` are those that `gather_facts` returns."""
    lines = [f"# {TITLE}", "", "![rates of every norm and mode](bench.svg)", ""]
    for benchmark in benchmarks:
        lines += [f"## {title_of(benchmark, rows[benchmark.title])}", ""]
        for quantity in QUANTITIES:
            cells = table(benchmark, rows[benchmark.title], quantity)
            lines += [f"{quantity.title.capitalize()}:", "", *markdown_table(*cells), ""]
    notes = [f"- {line}" for line in footnotes(benchmarks, options)]
    return "\n".join([*lines, *notes, "", f"`{options.command}`", "", provenance(facts), ""])


def gather_facts(rows: list[Row], options: BenchOptions) -> dict[str, Any]:
    """Return when, by which command, with which versions, commit and settings of the compiler, and on which machine
    and device this was measured.
    """
    device = pick_device(rows[0].config["device"])
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": options.command,
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cores": os.cpu_count(),
        "threads": sorted({row.threads for row in rows}),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "code": git_state(),
        "compile": {
            "backend": "inductor",
            "fullgraph": True,
            "dynamic": False,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "compiler": compiler(),
        },
    }


def compiler() -> str | None:
    """Return the first line that the C++ compiler prints of its version; None without a compiler or a line."""
    if not has_compiler():
        return None
    command = [*shlex.split(compiler_command()), "--version"]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False).stdout
    return next(iter(answer.splitlines()), None)


def provenance(facts: dict[str, Any]) -> str:
    """Return the main facts of `gather_facts` in one line."""
    commit = str(facts["code"]["commit"])[:10] + (" with changes" if facts["code"]["dirty"] else "")
    threads = " or ".join(map(str, facts["threads"]))
    return (
        f"bnexp {facts['packages']['bnexp']} (commit {commit}), torch {facts['packages']['torch']} "
        f"({facts['compile']['cpu']}, {facts['compile']['compiler'] or 'no C++ compiler'}), Python {facts['python']}, "
        f"{facts['machine']}, {facts['cores']} cores, device {facts['device']}, {threads} thread(s); "
        f"{facts['created'][:10]}"
    )


def figure_groups(benchmark: Benchmark, rows: list[Row], quantity: Quantity) -> list[list[Bar]]:
    """Return a quantity's bars: a group for each mode, and one with an empty bar for each mode left out."""
    groups: dict[str, list[Bar]] = {}
    for row in rows:
        speed, ratio = quantity.rate(row), quantity.ratio(row)
        note = rate(speed.median) + (f"   {ratio.text(2)} of {CONTROL}" if ratio else "")
        name = f"{row.norm}, {row.mode}" + (f", {row.members} runs as one" if row.members > 1 else "")
        groups.setdefault(row.mode, []).append(Bar(name, speed.median, speed.low, speed.high, note))
    left_out = [[Bar(f"{mode}: {DASH}", 0, 0, 0)] for mode in MODES if mode in benchmark.left_out]
    return [*groups.values(), *left_out]


def write(benchmarks: list[Benchmark], rows: Rows, options: BenchOptions) -> None:
    """Write bench.json, bench.md, bench.svg and bench.png into the directory `options.out`, which is made."""
    all_rows = [row for group in rows.values() for row in group]
    facts, out = gather_facts(all_rows, options), options.out
    out.mkdir(parents=True, exist_ok=True)
    record = facts | {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "interval": interval_description(options.rounds),
        "left_out": [
            {"panel": p.title, "what": what, "why": why} for p in benchmarks for what, why in p.left_out.items()
        ],
        "rows": [asdict(row) for row in all_rows],
    }
    write_whole(out / "bench.json", to_json(record))
    write_whole(out / "bench.md", markdown(benchmarks, rows, facts, options))
    drawn = {}
    for benchmark in benchmarks:
        own_rows = rows[benchmark.title]
        groups = {quantity.unit: figure_groups(benchmark, own_rows, quantity) for quantity in QUANTITIES}
        drawn[title_of(benchmark, own_rows)] = groups
    made_on = f"{facts['machine']}, {facts['cores']} cores, device {facts['device']}, torch {version('torch')}"
    caption = f"{interval_description(options.rounds)}\n{made_on}, {facts['created'][:10]}"
    rate_figure(TITLE, caption, drawn, [out / "bench.png", out / "bench.svg"])


def show(benchmarks: list[Benchmark], rows: Rows, options: BenchOptions) -> None:
    """Print the tables, the footnotes and the paths of the files."""
    for benchmark, quantity in product(benchmarks, QUANTITIES):
        own_rows = rows[benchmark.title]
        title = f"{title_of(benchmark, own_rows)}: {quantity.title}"
        show_table(title, *table(benchmark, own_rows, quantity))
    for line in footnotes(benchmarks, options):
        print_line(line)
    out = options.out
    print_line(f"figure: {out / 'bench.png'} (and .svg); table: {out / 'bench.md'}, {out / 'bench.json'}")
