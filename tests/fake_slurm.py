"""A stand-in for the commands of Slurm, whose jobs are processes of this machine; tests/cluster has the real one.

This file is the program behind all of them. Its folder is in FAKE_SLURM, and the names of files in it say how it
behaves: `unreachable`, `full` (it takes no further job), `nothing starts`.
"""

import os
import re
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

NAMES = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the commands on the path, and return the folder of their files."""
    state, programs = folder / "slurm", folder / "bin"
    for path in (state, programs):
        path.mkdir(parents=True)
    for name in NAMES:
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setattr("bnexp.sweeps.slurm._settings", {})
    return state


def sbatch(state: Path, options: dict[str, str]) -> None:
    number = 1 + len(list(state.glob("*.script")))
    if (state / "full").exists() and number > 1:
        sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: a limit")
    first, last = map(int, options["array"].split("-"))
    if (state / "at most 1").exists() and last > 0:
        sys.exit("sbatch: error: Batch job submission failed: a limit of jobs")
    script = state / f"{number}.script"
    script.write_text(sys.stdin.read())
    (state / f"{number}.options").write_text(" ".join(sys.argv[2:]))
    for index in range(first, last + 1):
        name = f"{number}_{index}"
        environment = os.environ | {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(index)}
        with open(options["output"].replace("%a", str(index)).replace("%%", "%"), "ab") as log:
            program = "sleep 60" if (state / "nothing starts").exists() else f'bash "{script}"'
            line = f'trap : TERM; {program}; echo $? > "{state}/{name}.status"'
            job = subprocess.Popen(
                ["bash", "-c", line], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        (state / f"{name}.pid").write_text(str(job.pid))
    print(number)


def squeue(state: Path, options: dict[str, str]) -> None:
    for path in sorted(state.glob("*.pid")):
        array, _, index = path.stem.partition("_")
        if array in options.get("jobs", "").split(","):
            status = path.with_suffix(".status")
            name = "RUNNING" if not status.exists() else "FAILED" if status.read_text() != "0\n" else "COMPLETED"
            if path.with_suffix(".cancelled").exists() and name != "RUNNING":
                name = "CANCELLED"
            print(array, index, name, 0, "None")


def scancel(state: Path, options: dict[str, str]) -> None:
    for name in (word for word in sys.argv[2:] if not word.startswith("-")):
        for path in [*state.glob(f"{name}.pid"), *state.glob(f"{name}_*.pid")]:
            path.with_suffix(".cancelled").touch()
            with suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGTERM)


def scontrol(state: Path, options: dict[str, str]) -> None:
    if sys.argv[2:4] == ["show", "config"]:
        print("MaxArraySize            = 3\nAccountingStorageType   = accounting_storage/none")
    elif sys.argv[2:4] == ["show", "hostnames"]:
        print("\n".join(sys.argv[4].split(",")))


def sinfo(state: Path, options: dict[str, str]) -> None:
    print("n1\nn2\nn3")


def main() -> None:
    state = Path(os.environ["FAKE_SLURM"])
    if (state / "unreachable").exists():
        if any(word.startswith("--jobs=") for word in sys.argv):
            (state / "asked for jobs").touch()
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    options = dict(match.groups() for word in sys.argv if (match := re.fullmatch(r"--([\w-]+)=(.*)", word)))
    globals()[sys.argv[1]](state, options)


if __name__ == "__main__":
    main()
