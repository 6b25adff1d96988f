"""`bnexp reproduce`: train the sweeps of published claims, and judge the claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnexp.claims.claim import Claim, ClaimSweep
    from bnexp.cli.plan import Plan
    from bnexp.runs.config import RunConfig
    from bnexp.sweeps.stacks import SweepPlan
from bnexp.cli.start import start


def reproduce(arguments: list[str]) -> int:
    """Run `bnexp reproduce`: train the remaining runs of the claims' sweeps, judge the claims, and write the records.

    With --list, only list the claims. A claim whose sweep cannot run here, as one on missing photographs, is reported
    and its record stays as it is. Return the exit status: 1 where a sweep failed or cannot run.
    """
    from bnexp.claims.judge import check_readme, judge, load_runs, show, sweeps_of, take_options, without, write
    from bnexp.cli.plan import check_place
    from bnexp.runs.config import ConfigError
    from bnexp.runs.console import print_error, print_line
    from bnexp.sweeps.run import SweepError

    options = take_options(arguments)
    check_place(options.out, "--out")
    check_readme(options.out)
    sweeps = sweeps_of(options.claims)
    if options.listed:
        list_claims(options.claims, sweeps, options.seeds)
        return 0
    planned: dict[str, list[RunConfig]] = {}
    failed, impossible = dict[str, str](), dict[str, str]()
    for number, sweep in enumerate(sweeps, 1):
        print_line(f"sweep {number} of {len(sweeps)}: {sweep.name}")
        try:
            planned[sweep.name] = run_claim(sweep, options.seeds)
        except SweepError as error:
            print_error(str(error))
            failed[sweep.name] = str(error)
        except ConfigError as error:
            print_error(f"{sweep.name} cannot run: {error}")
            impossible[sweep.name] = str(error)
    options = without(options, impossible)
    runs = load_runs(options.claims, planned)
    records = judge(options, runs, failed, planned)
    show(write(records, options, runs), options)
    return 1 if failed or impossible else 0


def list_claims(claims: list[Claim], sweeps: list[ClaimSweep], seeds: int) -> None:
    """Print about how long the remaining runs of each sweep and of all sweeps take, and a table of the claims.

    seeds: the number of seeds of each arm. A sweep whose runs start from those of another sweep cannot be planned
    before that one is finished.
    """
    from bnexp.claims.judge import show_list
    from bnexp.runs.config import ConfigError
    from bnexp.runs.console import count, duration_range, print_line

    plans: dict[str, SweepPlan] = {}
    times = {sweep.name: f"after {sweep.after.name}" for sweep in sweeps if sweep.after}
    for number, sweep in enumerate(sweeps, 1):
        start = plans.get(sweep.after.name) if sweep.after else None
        if sweep.after is None or (start and not start.stacks):
            try:
                plans[sweep.name] = plan = plan_claim(sweep, seeds).sweep
                times[sweep.name] = duration_range(plan.seconds) if plan.stacks else "done"
            except ConfigError:  # its data are missing
                times[sweep.name] = "cannot run here"
        print_line(f"sweep {number} of {len(sweeps)}, {sweep.name}: {times[sweep.name]}")
    show_list(claims, times)
    later = len(sweeps) - len(plans)
    unplanned = f", without {count(later, 'sweep')} that cannot be planned yet" if later else ""
    print_line(f"all remaining runs: about {duration_range(sum(plan.seconds for plan in plans.values()))}{unplanned}")


def plan_claim(sweep: ClaimSweep, seeds: int) -> Plan:
    """Plan the remaining runs of a claim's sweep. seeds: the number of seeds of each arm. Raises ConfigError."""
    from bnexp.claims.judge import folder_of, sweep_arguments
    from bnexp.cli.arguments import parse_arguments
    from bnexp.cli.plan import plan

    arguments = ["--multirun", *sweep_arguments(sweep, seeds), f"hydra.sweep.dir={folder_of(sweep)}"]
    return plan(parse_arguments(arguments), resume=True)


def run_claim(sweep: ClaimSweep, seeds: int) -> list[RunConfig]:
    """Train the remaining runs of a claim's sweep; return the configurations of all of its runs.

    Runs of an older version of the sweep that are in the way are deleted. Raises ConfigError and SweepError.
    """
    from bnexp.runs.lock import Lock
    from bnexp.sweeps.resume import remove_superseded_runs

    checked = plan_claim(sweep, seeds)
    if checked.sweep.stacks:
        with Lock(checked.directory):
            remove_superseded_runs(checked.directory, checked.jobs)
            start(checked)
    return checked.configs
