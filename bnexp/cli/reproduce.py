"""`bnexp reproduce`: train the sweeps of published claims, and judge the claims."""

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from bnexp.claims.claim import BLOCKS, TUNING, Claim, ClaimSweep, NoVerdictError, Runs
from bnexp.claims.judge import BOTH, is_identity
from bnexp.claims.readme import HEADING, block_text, markdown, ours_text, summary
from bnexp.claims.record import (
    RECORD,
    SWEEPS,
    Measured,
    Record,
    folder_of,
    measure,
    own_sweeps,
    seeds_of,
    sweep_arguments,
    sweeps_of,
    update,
)
from bnexp.claims.registry import CLAIMS, pick
from bnexp.cli.arguments import Parser, parse_arguments
from bnexp.cli.plan import Plan, check_place, plan, start
from bnexp.compare.planned import without_flaws
from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.console import count, duration_range, print_error, print_line, show_table
from bnexp.runs.directory import config_digest
from bnexp.runs.files import write_whole
from bnexp.runs.lock import Lock
from bnexp.runs.record import RunRecord, complete_runs
from bnexp.runs.tensors import DamagedFileError
from bnexp.sweeps.resume import remove_superseded_runs
from bnexp.sweeps.run import SweepError
from bnexp.sweeps.stacks import SweepPlan

RunsOf = dict[str, Runs]  # name of a sweep → its runs
MOST_SEEDS = 100  # of a block: those from 100 on choose rates


@dataclass(frozen=True)
class Options:
    """The arguments of `bnexp reproduce`.

    `listed`: print the claims and run nothing. `blocks`: the first seeds of the blocks to run. `seeds`: the number of
    seeds of an arm in a block, None for as many as each sweep says. `out`: the folder of the files.
    """

    claims: list[Claim]
    listed: bool
    blocks: list[int]
    seeds: int | None
    out: Path


def take_options(arguments: list[str]) -> Options:
    """Parse the arguments of `bnexp reproduce`. Raises ConfigError where they are invalid."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--block", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out", type=Path, default=SWEEPS)
    values = parser.parse_intermixed_args(arguments)
    require(values.block in (None, *BLOCKS), "--block", values.block, f"choose from {', '.join(map(str, BLOCKS))}")
    allowed = values.seeds is None or 1 <= values.seeds <= MOST_SEEDS
    require(allowed, "--seeds", values.seeds, f"a whole number from 1 to {MOST_SEEDS}")
    blocks = list(BLOCKS) if values.block is None else [values.block]
    return Options(pick(values.names), values.list, blocks, values.seeds, values.out)


def check_readme(out: Path) -> None:
    """Raise ConfigError where `out` holds a README.md that `bnexp reproduce` did not write and would replace."""
    path = out / "README.md"
    ours = not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    require(ours, "--out", out, f"a folder without a README.md, or with one that begins with {HEADING!r}")


def check_and_reproduce(arguments: list[str]) -> int:
    """Train the remaining runs of the claims' sweeps, judge the claims, and write the records.

    With --list, only list the claims. A claim whose sweep cannot run here, as one on missing photographs, is reported
    and its record stays as it is. Return the exit status: 1 where a sweep failed or cannot run, else 0; with --list
    always 0. Raises ConfigError for invalid arguments, and, without --list, where none of the claims can run.
    """
    options = take_options(arguments)
    check_place(options.out, "--out")
    check_readme(options.out)
    sweeps = sweeps_of(options.claims)
    if options.listed:
        list_claims(options, sweeps)
        return 0
    planned: dict[str, list[RunConfig]] = {}
    failed, impossible = dict[str, str](), dict[str, str]()
    for number, sweep in enumerate(sweeps, 1):
        print_line(f"sweep {number} of {len(sweeps)}: {sweep.name}")
        try:
            planned[sweep.name] = run_claim(sweep, options)
        except SweepError as error:
            print_error(str(error))
            failed[sweep.name] = str(error)
        except ConfigError as error:
            print_error(f"{sweep.name} cannot run: {error}")
            impossible[sweep.name] = str(error)
    options = without(options, impossible)
    runs = load_runs(options.claims, planned)
    options.out.mkdir(parents=True, exist_ok=True)
    records = update(options.out, CLAIMS, measure_all(options, runs, failed, planned))
    write_whole(options.out / "README.md", markdown(records, options.out))
    draw(options)
    show(records, options)
    return 1 if failed or impossible else 0


# ---- runs


def plan_claim(sweep: ClaimSweep, options: Options) -> Plan:
    """Plan the remaining runs of a claim's sweep, in the blocks asked for. Raises ConfigError where it cannot run."""
    words = sweep_arguments(sweep, options.blocks, options.seeds)
    return plan(parse_arguments(["--multirun", *words, f"hydra.sweep.dir={folder_of(sweep)}"]), resume=True)


def run_claim(sweep: ClaimSweep, options: Options) -> list[RunConfig]:
    """Train the remaining runs of a claim's sweep; return the configurations of all of its runs.

    If runs remain, those of an older version of the sweep that are in the way are deleted first. Raises ConfigError
    where the sweep cannot run here, and SweepError where runs failed.
    """
    checked = plan_claim(sweep, options)
    if checked.sweep.stacks:
        with Lock(checked.directory):
            remove_superseded_runs(checked.directory, checked.jobs)
            start(checked)
    return checked.configs


def without(options: Options, impossible: dict[str, str]) -> Options:
    """Return the options without the claims that have an impossible sweep of their own.

    `impossible`: name of a sweep → why it cannot run. Raises ConfigError where no claim is left.
    """
    claims = [claim for claim in options.claims if impossible.keys().isdisjoint(sweep.name for sweep in claim.sweeps)]
    if not claims:
        raise ConfigError(next(iter(impossible.values())))
    return replace(options, claims=claims)


def load_runs(claims: list[Claim], planned: dict[str, list[RunConfig]]) -> RunsOf:
    """Return the runs of the claims' own sweeps: name of the sweep → its planned runs that can be compared.

    Only runs that the installed versions made are returned; an error is printed for each that is damaged. planned: name
    of a sweep → its configurations, since its directory may hold other runs, as of more seeds.
    """
    runs: RunsOf = {}
    for sweep in own_sweeps(claims):
        complete = complete_runs(folder_of(sweep))
        digests = [config_digest(config) for config in planned.get(sweep.name, [])]
        runs[sweep.name] = without_flaws([complete[digest] for digest in digests if digest in complete])
    return runs


def measure_all(
    options: Options, runs: RunsOf, failed: dict[str, str], planned: dict[str, list[RunConfig]]
) -> dict[str, dict[str, Measured]]:
    """Return id of a claim → block → what was measured of it; identities are measured once, in the first block.

    `failed`: name of a sweep → what went wrong with some of its runs.
    """
    return {
        claim.id: {
            str(block): measure(
                claim,
                [
                    run
                    for sweep in claim.sweeps
                    for run in runs[sweep.name]
                    if in_block(run.seed, sweep, block, options)
                ],
                sum(
                    in_block(config.seed, sweep, block, options)
                    for sweep in claim.sweeps
                    for config in planned.get(sweep.name, [])
                ),
                failed,
            )
            for block in (BLOCKS[:1] if is_identity(claim) else options.blocks)
        }
        for claim in options.claims
    }


def in_block(seed: int, sweep: ClaimSweep, block: int, options: Options) -> bool:
    """Return whether a run with this seed serves to judge a block: as one of its seeds, or to choose a rate."""
    return seed in seeds_of(sweep, block, options.seeds) or (sweep.tuned and seed in TUNING)


# ---- what is drawn and printed


def draw(options: Options) -> None:
    """Draw the figures of these claims from all runs of their sweeps, of whichever block, where that is possible.

    An existing file is left as it is where a sweep that the figure shows has no runs here.
    """
    folder = options.out / "figures"
    folder.mkdir(exist_ok=True)
    runs: RunsOf = {}
    for figure in {claim.figure.name: claim.figure for claim in options.claims if claim.figure}.values():
        sharing = [claim for claim in CLAIMS if claim.figure and claim.figure.name == figure.name]
        sweeps = own_sweeps(sharing)
        runs |= {sweep.name: drawable_runs(sweep) for sweep in sweeps if sweep.name not in runs}
        by_sweep = [runs[sweep.name] for sweep in sweeps]
        file = folder / f"{figure.name}.svg"
        if all(by_sweep) or not file.exists():
            with suppress(NoVerdictError, ConfigError, DamagedFileError, FileNotFoundError):  # the records say why
                figure.draw(list(chain.from_iterable(by_sweep)), [file])


def drawable_runs(sweep: ClaimSweep) -> list[RunRecord]:
    """Return the complete runs in a sweep's directory that are not damaged."""
    return without_flaws(list(complete_runs(folder_of(sweep)).values()))


def show(records: list[Record], options: Options) -> None:
    """Print the verdict on each of these claims, that of each block first, their tally, and the paths of the files."""
    ids = {claim.id for claim in options.claims}
    mine = [entry for entry in records if entry["id"] in ids]
    for entry in mine:
        print_line(f"{entry['verdict']:<12}  {entry['id']}: published {entry['published']}, ours {ours_text(entry)}")
        for block in entry["blocks"] if entry["kind"] == "fact" else []:
            print_line(f"{'':12}    {block_line(entry, block)}")
        if entry["why"]:
            print_line(f"{'':12}    {entry['why']}")
    print_line(f"{summary(mine)} {options.out / RECORD}, {options.out / 'README.md'}, {options.out / 'figures'}")


def block_line(entry: Record, block: str) -> str:
    """Return the line of a claim's block: its seeds, the verdicts of its rules, and what they found."""
    results = [result for result in entry["results"] if result["block"] == block and block != BOTH]
    verdicts = ", ".join(dict.fromkeys(result["verdict"] for result in results))
    missing = entry["blocks"][block]["planned_runs"] - entry["blocks"][block]["runs"]
    fewer = f" ({count(missing, 'run')} missing)" if missing else ""
    return f"seeds from {block} on{fewer}: {verdicts}; {entry['blocks'][block]['problem'] or block_text(entry, block)}"


def list_claims(options: Options, sweeps: list[ClaimSweep]) -> None:
    """Print about how long the remaining runs of each sweep and of all planned ones take, and a table of the claims.

    A sweep whose runs start from those of another sweep cannot be planned before that one is finished.
    """
    plans: dict[str, SweepPlan] = {}
    times: dict[str, str] = {}
    for number, sweep in enumerate(sweeps, 1):
        first = sweep.after
        if first and (first.name not in plans or plans[first.name].stacks):
            times[sweep.name] = f"after {first.name}"
        else:
            try:
                plans[sweep.name] = remaining = plan_claim(sweep, options).sweep
                times[sweep.name] = duration_range(remaining.seconds) if remaining.stacks else "done"
            except ConfigError:  # its data are missing
                times[sweep.name] = "cannot run here"
        print_line(f"sweep {number} of {len(sweeps)}, {sweep.name}: {times[sweep.name]}")
    rows = [
        [
            claim.id,
            claim.statement,
            ", ".join(f"{sweep.name} ({times[sweep.name]})" for sweep in claim.sweeps) or "no runs",
        ]
        for claim in options.claims
    ]
    show_table("claims", ["claim", "statement", "sweep (still to run here, about)"], rows, numbers=False)
    later = sum(text.startswith("after") for text in times.values())
    unplanned = f", without {count(later, 'sweep')} that cannot be planned yet" if later else ""
    print_line(f"all remaining runs: about {duration_range(sum(each.seconds for each in plans.values()))}{unplanned}")
