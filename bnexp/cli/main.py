"""The entry point: run the command that the first argument names, and print its errors.

Modules that need Hydra or torch are imported inside the functions, so that --help and --version are quick.
"""

from __future__ import annotations

import gc
import os
import sys

from bnexp.runs.config import ConfigError
from bnexp.runs.console import console, print_error
from bnexp.runs.log import set_up_logging
from bnexp.runs.streams import protect_streams

HELP = """\
bnexp: what does normalization do to training?

  bnexp train [OVERRIDE …]            one run: bnexp train norm=batch act=sigmoid
  bnexp train -m [OVERRIDE …]         a sweep: bnexp train -m norm=none,batch 'seed=range(5)'
  bnexp compare [OVERRIDE …] [by=KEY] a sweep, then the paired comparison: table, figure and page
  bnexp resume DIR … [dataset.root=DIR]   resume an interrupted run or sweep; the result is bit-identical
  bnexp status DIR … [--watch]        how far a sweep is, on whatever machine it trains
  bnexp report DIR … [by=KEY] [out=FOLDER]   the comparison of existing runs
  bnexp probe DIR … [by=KEY] [out=FOLDER]    the loss around checkpoints: smoothness, internal covariate shift
  bnexp reproduce [CLAIM …] [--list] [--block N]   published claims, judged
  bnexp bench [OVERRIDE …]            steps/s of every norm against none: eager, compiled, stacked
  bnexp data [status|fetch] [dataset=NAME] [dataset.root=DIR]
  bnexp check GROUP/NAME              whether a plugin does what bnexp relies on

bnexp COMMAND --help explains each; bnexp train --help lists every choice and key.
eval "$(bnexp -sc install=bash)" installs completion (or zsh, fish).
"""


def main() -> None:
    """Make the standard streams safe, run the command that the process's arguments name, and exit with its status."""
    gc.set_threshold(50_000)  # the imports create a million objects and no garbage, for which Python looks every 700
    protect_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command, print its errors, and return the exit status.

    The status is 0 where the command is done, 2 for invalid arguments and other ConfigErrors, 1 for any other error,
    failed runs of a sweep and a claim's sweep that cannot run, and 129, 130 or 143 after a signal.
    """
    set_up_logging()
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            init_torchrun(arguments)
        return dispatch(arguments)
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signum", 2)
    except Exception as error:
        from bnexp.cli.errors import explain

        status, line = explain(error)
        print_error(f"process {os.environ['RANK']}: {line}" if console.quiet else line)
        return status


def init_torchrun(arguments: list[str]) -> None:
    """Join the process group of torchrun, by which this process was started; ranks other than 0 print errors alone.

    arguments: the command line. Raises ConfigError for a sweep and for commands other than train.
    """
    from bnexp.runs import distributed

    console.quiet = os.environ["RANK"] != "0"
    if arguments[:1] != ["train"]:
        name = " ".join(arguments[:1])
        raise ConfigError(f"bnexp {name} is not for torchrun, whose processes share one run: bnexp train")
    if not {"-m", "--multirun"}.isdisjoint(arguments):
        raise ConfigError("a sweep is not allowed under torchrun: its processes share the batches of one run")
    distributed.init_process_group()


def dispatch(arguments: list[str]) -> int:
    """Run the command that the first argument names, or print help, version or completions; return the exit status.

    Raises ConfigError for an unknown command and, but for the overall help and the version, under python -O, and
    the errors of the command.
    """
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version  # takes longer than the rest of --help

        print(f"bnexp {version('bnexp')}")
        return 0
    if not __debug__:
        raise ConfigError("python -O and PYTHONOPTIMIZE are not allowed: they leave out what Hydra does in assertions")
    if arguments[0] in ("-sc", "--shell-completion"):
        complete(arguments)
        return 0
    from bnexp.cli.commands import COMMANDS
    from bnexp.cli.errors import unknown_command
    from bnexp.cli.help import command_help

    if arguments[0] not in COMMANDS:
        raise unknown_command(arguments[0], list(COMMANDS))
    if not {"--help", "-h"}.isdisjoint(arguments[1:]):
        print(command_help(arguments[0]), end="")
        return 0
    return COMMANDS[arguments[0]](arguments[1:]) or 0


def complete(arguments: list[str]) -> None:
    """Complete a command line: print the names of commands, or let Hydra print overrides.

    Hydra knows no commands, so the command is removed from the line first.
    """
    from bnexp.cli.commands import COMMANDS
    from bnexp.cli.help import complete_by_hydra

    line = os.environ.get("COMP_LINE", "")
    parts = line.split()
    if any(argument.startswith("query=") for argument in arguments):
        if len(parts) < 2 or (len(parts) == 2 and not line.endswith(" ")):
            print(*(name for name in COMMANDS if name.startswith("".join(parts[1:2]))), sep="\n")
            return
        shorter = line.replace(f"{parts[1]} ", "", 1)
        point = int(os.environ.get("COMP_POINT", len(line)))
        os.environ.update(COMP_LINE=shorter, COMP_POINT=str(point - len(line) + len(shorter)))
    complete_by_hydra(arguments)
