"""`bnexp reproduce`: train the sweeps of published claims, and judge the claims."""

from bnexp.claims import judge
from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.cli.arguments import parse_arguments
from bnexp.cli.plan import Plan, check_place, plan, start
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.console import count, duration_range, print_error, print_line
from bnexp.runs.lock import Lock
from bnexp.sweeps.resume import remove_superseded_runs
from bnexp.sweeps.run import SweepError
from bnexp.sweeps.stacks import SweepPlan


def check_and_reproduce(arguments: list[str]) -> int:
    """Train the remaining runs of the claims' sweeps, judge the claims, and write the records.

    With --list, only list the claims. A claim whose sweep cannot run here, as one on missing photographs, is reported
    and its record stays as it is. Return the exit status: 1 where a sweep failed or cannot run, else 0; with --list
    always 0. Raises ConfigError for invalid arguments, and, without --list, where none of the claims can run.
    """
    options = judge.take_options(arguments)
    check_place(options.out, "--out")
    judge.check_readme(options.out)
    sweeps = judge.sweeps_of(options.claims)
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
    options = judge.without(options, impossible)
    runs = judge.load_runs(options.claims, planned)
    records = judge.judge(options, runs, failed, planned)
    judge.show(judge.write(records, options, runs), options)
    return 1 if failed or impossible else 0


def list_claims(claims: list[Claim], sweeps: list[ClaimSweep], seeds: int) -> None:
    """Print about how long the remaining runs of each sweep and of all planned ones take, and a table of the claims.

    seeds: as in `plan_claim`. A sweep whose runs start from those of another sweep cannot be planned
    before that one is finished.
    """
    plans: dict[str, SweepPlan] = {}
    times: dict[str, str] = {}
    for number, sweep in enumerate(sweeps, 1):
        first = sweep.after
        if first and (first.name not in plans or plans[first.name].stacks):
            times[sweep.name] = f"after {first.name}"
        else:
            try:
                plans[sweep.name] = remaining = plan_claim(sweep, seeds).sweep
                times[sweep.name] = duration_range(remaining.seconds) if remaining.stacks else "done"
            except ConfigError:  # its data are missing
                times[sweep.name] = "cannot run here"
        print_line(f"sweep {number} of {len(sweeps)}, {sweep.name}: {times[sweep.name]}")
    judge.show_list(claims, times)
    later = len(sweeps) - len(plans)
    unplanned = f", without {count(later, 'sweep')} that cannot be planned yet" if later else ""
    print_line(f"all remaining runs: about {duration_range(sum(each.seconds for each in plans.values()))}{unplanned}")


def plan_claim(sweep: ClaimSweep, seeds: int) -> Plan:
    """Plan the remaining runs of a claim's sweep. Raises ConfigError where it cannot run here.

    seeds: the number of seeds of each arm, if the sweep does not limit it to fewer.
    """
    arguments = ["--multirun", *judge.sweep_arguments(sweep, seeds), f"hydra.sweep.dir={judge.folder_of(sweep)}"]
    return plan(parse_arguments(arguments), resume=True)


def run_claim(sweep: ClaimSweep, seeds: int) -> list[RunConfig]:
    """Train the remaining runs of a claim's sweep; return the configurations of all of its runs.

    If runs remain, those of an older version of the sweep that are in the way are deleted first. Raises ConfigError
    where the sweep cannot run here, and SweepError where runs failed.
    """
    checked = plan_claim(sweep, seeds)
    if checked.sweep.stacks:
        with Lock(checked.directory):
            remove_superseded_runs(checked.directory, checked.jobs)
            start(checked)
    return checked.configs
