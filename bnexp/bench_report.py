"""What `bnexp bench` measured, in words: tables on the console, bench.json, bench.md and the figure."""

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

from bnexp.bench import CONTROL, MODES, Options, Panel, Row
from bnexp.compiler import compiler_command, has_compiler
from bnexp.console import count, show_table
from bnexp.console import print_line as say
from bnexp.engine import pick_device
from bnexp.figures import Bar, BarGroup, rate_figure
from bnexp.files import write_whole
from bnexp.runs import PACKAGES, git_state, machine, to_json
from bnexp.stats import Spread, interval_words

DASH = "—"
TITLE = "Steps a second with and without normalization"


@dataclass(frozen=True)
class Quantity:
    """Which of a row's two rates, and its names."""

    title: str
    unit: str
    rate: Callable[[Row], Spread]
    ratio: Callable[[Row], Spread | None]


QUANTITIES = (
    Quantity("training step", "training steps/s", lambda row: row.steps_per_second, lambda row: row.step_ratio),
    Quantity("forward pass", "forward passes/s", lambda row: row.forwards_per_second, lambda row: row.forward_ratio),
)


def table(panel: Panel, rows: list[Row], quantity: Quantity) -> list[list[str]]:
    """A line a contender, and a dash for each mode that was left out."""
    lines = []
    for row in rows:
        ratio = quantity.ratio(row)
        share = f"{row.ratio}: {ratio.words(2)}" if ratio else "control"
        lines.append([f"{row.norm}, {row.mode}", quantity.rate(row).words(0), share])
    return lines + [[mode, DASH, DASH] for mode in MODES if mode in panel.left_out]


def header(quantity: Quantity) -> list[str]:
    return ["norm, mode", quantity.unit, f"ratio to {CONTROL}, same mode"]


def title_of(panel: Panel, rows: list[Row]) -> str:
    return f"{panel.title}, {count(rows[0].threads, 'thread')}" if rows else panel.title


def footnotes(panels: list[Panel], options: Options) -> list[str]:
    """What a reader has to know to trust the table."""
    modes = {
        "eager": "eager: one run, uncompiled",
        "compiled": "compiled: one run, compiled",
        "stacked": f"stacked: {options.stack} runs compiled as one, the steps of all of them counted",
    }
    lines = [
        f"Rates: {interval_words(options.rounds)}, {options.seconds:g} s a measurement. Rounds are interleaved, ratios "
        "taken round by round. Compilation, evaluation and the order of batches are not in them.",
        "Training step: gather the batch, forward, backward, update. Forward pass: in training mode, up to the loss.",
        "; ".join(modes[mode] for mode in options.modes) + ".",
    ]
    reasons = (f"{what} is left out: {why}" for panel in panels for what, why in panel.left_out.items())
    return lines + [f"{reason}." for reason in dict.fromkeys(reasons)]


def markdown(panels: list[Panel], rows: dict[str, list[Row]], facts: dict[str, Any], options: Options) -> str:
    lines = [f"# {TITLE}", "", "![rates of every norm and mode](bench.svg)", ""]
    for panel in panels:
        lines += [f"## {title_of(panel, rows[panel.title])}", ""]
        for quantity in QUANTITIES:
            cells = [header(quantity), *table(panel, rows[panel.title], quantity)]
            written = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells]
            lines += [f"{quantity.title.capitalize()}:", "", written[0], "|---|---:|---:|", *written[1:], ""]
    notes = [f"- {line}" for line in footnotes(panels, options)]
    return "\n".join([*lines, *notes, "", f"`{options.command}`", "", provenance(facts), ""])


def gather_facts(rows: list[Row], options: Options) -> dict[str, Any]:
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
    """The C++ compiler's name and version, as it says them."""
    if not has_compiler():
        return None
    command = [*shlex.split(compiler_command()), "--version"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    return next(iter(done.stdout.splitlines()), None)


def provenance(facts: dict[str, Any]) -> str:
    commit = str(facts["code"]["commit"])[:10] + (" with changes" if facts["code"]["dirty"] else "")
    threads = " or ".join(map(str, facts["threads"]))
    return (
        f"bnexp {facts['packages']['bnexp']} (commit {commit}), torch {facts['packages']['torch']} "
        f"({facts['compile']['cpu']}, {facts['compile']['compiler'] or 'no C++ compiler'}), Python {facts['python']}, "
        f"{facts['machine']}, {facts['cores']} cores, device {facts['device']}, {threads} thread(s); "
        f"{facts['created'][:10]}"
    )


def figure_groups(panel: Panel, rows: list[Row], quantity: Quantity) -> list[BarGroup]:
    """A group a mode, in the order of the table."""
    groups = []
    for mode in panel.modes:
        bars = []
        for row in (row for row in rows if row.mode == mode):
            rate, ratio = quantity.rate(row), quantity.ratio(row)
            note = f"{rate.median:,.0f}" + (f"   {ratio.words(2)} of {CONTROL}" if ratio else "")
            bars.append(Bar(row.norm, rate.median, rate.low, rate.high, note))
        members = next(row.members for row in rows if row.mode == mode)
        groups.append(BarGroup(mode if members == 1 else f"{mode}, {members} runs as one", bars))
    return groups + [BarGroup(f"{mode}: {DASH}", []) for mode in MODES if mode in panel.left_out]


def write(panels: list[Panel], rows: dict[str, list[Row]], options: Options) -> None:
    """bench.json, bench.md, bench.svg and bench.png."""
    every = [row for found in rows.values() for row in found]
    facts, out = gather_facts(every, options), options.out
    out.mkdir(parents=True, exist_ok=True)
    record = facts | {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "interval": interval_words(options.rounds),
        "left_out": [{"panel": p.title, "what": what, "why": why} for p in panels for what, why in p.left_out.items()],
        "rows": [asdict(row) for row in every],
    }
    write_whole(out / "bench.json", to_json(record))
    write_whole(out / "bench.md", markdown(panels, rows, facts, options))
    drawn = {
        title_of(panel, rows[panel.title]): {
            quantity.unit: figure_groups(panel, rows[panel.title], quantity) for quantity in QUANTITIES
        }
        for panel in panels
    }
    made_on = f"{facts['machine']}, {facts['cores']} cores, device {facts['device']}, torch {version('torch')}"
    caption = f"{interval_words(options.rounds)}\n{made_on}, {facts['created'][:10]}"
    rate_figure(TITLE, caption, drawn, [out / "bench.png", out / "bench.svg"])


def show(panels: list[Panel], rows: dict[str, list[Row]], options: Options) -> None:
    for panel, quantity in product(panels, QUANTITIES):
        found = rows[panel.title]
        show_table(f"{title_of(panel, found)}: {quantity.title}", header(quantity), table(panel, found, quantity))
    for line in footnotes(panels, options):
        say(line)
    out = options.out
    say(f"figure: {out / 'bench.png'} (and .svg); table: {out / 'bench.md'}, {out / 'bench.json'}")
