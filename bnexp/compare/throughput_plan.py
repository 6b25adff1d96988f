"""The plan of `bnexp bench`: its options, and the networks, norms and modes that can be measured."""

import math
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bnexp.data.load import load_data
from bnexp.models.norm_registry import NORMS
from bnexp.models.registry import check_model, stacks
from bnexp.runs.config import ConfigError, RunConfig, require, require_choice
from bnexp.runs.parse import pop_options
from bnexp.training.check import check
from bnexp.training.compiler import compiler_problem
from bnexp.training.device import pick_device

CONTROL = "none"
MODES = ("eager", "compiled", "stacked")
DEFAULTS = {"rounds": "9", "seconds": "0.3", "stack": "8", "modes": ",".join(MODES)}
TITLED = ("dataset", "arch", "act", "batch_size", "norm")  # keys that a benchmark's title or its rows name


@dataclass(frozen=True)
class BenchOptions:
    """The arguments of `bnexp bench` that are no overrides of a run.

    `seconds` is the length of a measurement, `stack` the number of runs in a stack, `out` the directory of the files,
    `command` the whole command. Where `norms_named`, the arguments name norms, and one that does not fit the network is
    an error; otherwise a norm that does not fit is left out.
    """

    rounds: int
    seconds: float
    stack: int
    modes: list[str]
    out: Path
    norms_named: bool
    command: str


def take_options(arguments: list[str]) -> tuple[BenchOptions, list[str]]:
    """Split arguments into options and overrides of a run. Raises ConfigError for an invalid option or for compile=."""
    defaults = DEFAULTS | {"out": f"results/bench/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"}
    given, overrides = pop_options(arguments, *defaults)
    values = defaults | {key: value for key, value in given.items() if value is not None}
    for override in overrides:
        key, _, value = override.partition("=")
        require(key != "compile", key, value, f"choose modes= from {', '.join(MODES)}")
    modes = values["modes"].split(",")
    for mode in modes:
        require_choice("modes", mode, MODES)
    require(values["out"] != "", "out", "", "a directory")
    options = BenchOptions(
        rounds=whole_number("rounds", values["rounds"], 1, 1000),
        seconds=seconds_of(values["seconds"]),
        stack=whole_number("stack", values["stack"], 2, 1024),
        modes=list(dict.fromkeys(modes)),
        out=Path(values["out"]),
        norms_named=any(key_of(override) == "norm" for override in overrides),
        command=shlex.join(["bnexp", "bench", *arguments]),
    )
    return options, overrides


def whole_number(key: str, value: str, low: int, high: int) -> int:
    """Parse a value of `key` as a whole number from `low` to `high`. Raises ConfigError where it is none."""
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    require(low <= number <= high, key, value, f"a whole number from {low} to {high}")
    return number


def seconds_of(value: str) -> float:
    """Parse the seconds of a measurement, above 0 and up to 60. Raises ConfigError for any other value."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    require(0 < seconds <= 60, "seconds", value, "a number above 0 and up to 60")
    return seconds


def key_of(override: str) -> str:
    """Return the key of an override: norm for norm=batch and for +norm=batch."""
    return override.split("=", maxsplit=1)[0].lstrip("+")


def with_norms(jobs: list[list[str]]) -> list[list[str]]:
    """Return the overrides of the runs to measure: each job with every norm that is named for it, else with all norms.

    Jobs that differ in their norms alone are merged. The control, norm=none, is added and comes first.
    """
    named: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        others = tuple(override for override in job if key_of(override) != "norm")
        named.setdefault(others, []).extend(override for override in job if key_of(override) == "norm")
    return [
        [*others, norm]
        for others, norms in named.items()
        for norm in dict.fromkeys([f"norm={CONTROL}", *(norms or (f"norm={norm}" for norm in NORMS))])
    ]


@dataclass(frozen=True)
class Benchmark:
    """Runs that are measured together: one for each norm, of the same network and batch size.

    `left_out`: what is not measured, either a mode or "norm=NAME" → the reason.
    """

    title: str
    runs: list[RunConfig]
    modes: list[str]
    left_out: dict[str, str]


def make_benchmarks(jobs: list[list[str]], runs: list[RunConfig], options: BenchOptions) -> list[Benchmark]:
    """Group runs, whose overrides are `jobs` (from `with_norms`), into benchmarks: the runs of one differ in their norm
    alone, and one of them has norm=none.

    A norm that does not fit its network and was not named is left out, as is a mode that can't be measured. Raises
    ConfigError where a control or a named norm is invalid, or no benchmark has a mode that can be measured.
    """
    grouped: dict[tuple[str, ...], list[RunConfig]] = {}
    for job, run in zip(jobs, runs, strict=True):
        others = (override for override in job if key_of(override) not in TITLED)
        title = (run.dataset.name, run.arch.name, run.act.name, f"batch {run.batch_size}", *others)
        grouped.setdefault(title, []).append(run)
    benchmarks = [make_benchmark(", ".join(title), group, options) for title, group in grouped.items()]
    if not any(benchmark.modes for benchmark in benchmarks):
        reasons = dict.fromkeys(benchmarks[0].left_out[mode] for mode in options.modes)
        raise ConfigError(f"modes={','.join(options.modes)} is not allowed: {'; '.join(reasons)}")
    return benchmarks


def make_benchmark(title: str, runs: list[RunConfig], options: BenchOptions) -> Benchmark:
    """Return a benchmark without the norms and modes that can't be measured.

    Raises ConfigError where the control is invalid, or a norm that the user named does not fit the network.
    """
    left_out: dict[str, str] = {}
    control = next(run for run in runs if run.norm.name == CONTROL)
    check(control)
    data, fitting = load_data(control.dataset), []
    for run in runs:
        try:
            check_model(run, data.shape, data.classes)
            fitting.append(run)
        except ConfigError as error:
            if options.norms_named:
                raise
            left_out[f"norm={run.norm.name}"] = str(error)
    for mode in options.modes:
        reason = mode_problem(mode, control)
        left_out |= {mode: reason} if reason else {}
    return Benchmark(title, fitting, [mode for mode in options.modes if mode not in left_out], left_out)


def mode_problem(mode: str, config: RunConfig) -> str | None:
    """Return why a run can't be measured in this mode, or None where it can."""
    problem = compiler_problem(pick_device(config.device).type) if mode != "eager" else None
    if problem:
        return problem
    return f"arch={config.arch.name} doesn't stack" if mode == "stacked" and not stacks(config) else None
