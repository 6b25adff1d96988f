"""What one accelerator does with bnexp: a JSON of tests, agreement, speed and accuracies, in less than nine minutes.

    python scripts/device_check.py [--seconds 480] [--data FOLDER_OR_ARCHIVE] [--out results/device/NAME.json]
    python scripts/device_check.py --pack data.tar.gz     MNIST and CIFAR-10's photographs (31 MB), to take along

Every part is a process of its own (device_parts.py): one that hangs costs its time and nothing else. What is not timed
(the CUDA tests; how far a run's parameters are from the same run's in a stack; the published table) runs at once, while
what is timed compiles. Then rates are taken in rounds, one contender at work at a time, the others blocked: updates of
a model a second, those of all members of a stack counted. JAX takes part where it is installed, in full fp32, as
everybody does. Runs are made from RunConfig: Hydra has no part in it.
"""

import argparse
import json
import os
import queue
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bnexp.claims.sources.udacity import CELLS, COLUMNS
from bnexp.data.load import load_data
from bnexp.runs.config import DatasetConfig
from bnexp.runs.directory import git_state, machine

ROOT = Path(__file__).resolve().parent.parent
PACKED = ("MNIST/raw", "cifar10-jpeg")  # folders of data/
NORMS, ACTS = ("none", "batch"), ("relu", "sigmoid")
SIZES = (("1",), ("8",), ("64",), ("512",))  # of stacks; each group is compiled by a process
JAX_SIZES = (1, 64, 512)
ROUNDS, TIMED = 5, 0.7  # seconds of a measurement
PARTS = ("tests", "agreement", "table", "mlp", "images", "photographs")
UNTIMED_SHARE = 0.5  # of the seconds: for tests, agreement, table; meanwhile what is timed is prepared
TRAINING = 60.0  # seconds at most on the photographs, of a precision
MFLOP = 26.424  # of an update: see scripts/bench.py
MEGABYTES = 0.85  # of an update, at least: 99,710 parameters read and written, 60 images read
LATE = 5.0  # seconds over its time after which a measurement is given up

Record = dict[str, Any]


@dataclass
class Child:
    """A process and the lines that it prints, with the seconds since its start."""

    name: str
    command: list[str]
    log: Path
    lines: "queue.Queue[tuple[float, str] | None]" = field(default_factory=queue.Queue)

    def start(self) -> "Child":
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                start_new_session=True,
            )
        self.began = time.monotonic()
        threading.Thread(target=self.read, daemon=True).start()
        return self

    def read(self) -> None:
        for line in self.process.stdout:
            self.lines.put((time.monotonic() - self.began, line.strip()))
        self.lines.put(None)

    def line(self, until: float) -> str | None:
        """The next one, or None where there is none by then."""
        try:
            found = self.lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        return found[1] if found else None

    def printed(self) -> list[tuple[float, str]]:
        """What is left of its lines, which nobody has read."""
        found = []
        while not self.lines.empty():
            found.append(self.lines.get())
        return [line for line in found if line]

    def stop(self, until: float) -> str | None:
        """Wait for its end until then, and end it; what went wrong, or None."""
        try:
            status = self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = None
        if status is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        time.sleep(0.05)  # for its last lines
        if status == 0:
            return None
        return f"{'unfinished' if status is None else f'exit status {status}'}: {said(self.log)}"


def said(log: Path) -> str:
    """The end of what a process complained of, or where it was."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-50:])[-4000:]


def environment() -> dict[str, str]:
    """Of a part: JAX in full fp32 and without all of the memory; a few compilers each, since many compile at once."""
    found = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts" / "peers"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    return dict(found)


# ---- what is not timed


def test_results(lines: list[tuple[float, str]]) -> Record:
    """Of pytest's lines with -vv and xdist: a test's name as it begins, its outcome as it ends."""
    begun, ended = list[str](), dict[str, tuple[str, float]]()
    for seconds, line in lines:
        if found := re.match(r"(?:\[gw\d+\].*?)?(PASSED|FAILED|ERROR|SKIPPED) (tests/\S+::\S+)", line):
            ended[found[2]] = found[1].lower(), seconds
        elif re.match(r"tests/\S+::\S+", line):
            begun.append(line.split()[0])
    outcomes = [outcome for outcome, _ in ended.values()]
    return {
        "passed": outcomes.count("passed"),
        "skipped": outcomes.count("skipped"),
        "failed": [name for name, (outcome, _) in ended.items() if outcome in ("failed", "error")],
        "unfinished": [name for name in begun if name not in ended],
        "errors": [line for _, line in lines if line.startswith("E  ")][:20],
        "ended_after_seconds": {name: round(seconds, 1) for name, (_, seconds) in ended.items()},
    }


def json_lines(lines: list[tuple[float, str]]) -> list[Record]:
    return [json.loads(line) for _, line in lines if line.startswith("{")]


def table_cells(runs: list[Record]) -> list[Record]:
    """Of the runs of each cell: mean accuracies beside the published ones."""
    found = []
    for std, lr, act, norm in product((0.05, 5), (0.01, 1, 2), ACTS, NORMS):
        cell = {"norm": norm, "act": act, "std": std, "lr": lr}
        of_cell = [run for run in runs if all(run[key] == value for key, value in cell.items())]
        if of_cell:
            found.append(cell | {"runs": len(of_cell)} | accuracies(of_cell) | published(std, lr, act, norm))
    return found


def accuracies(runs: list[Record]) -> Record:
    scores = {
        "test": [run["test"]["accuracy"] for run in runs],
        "validation": [run["validation"]["final"] for run in runs],
        "validation_at_2000": [run["validation_at_2000"] for run in runs if run["validation_at_2000"] is not None],
    }
    summed = {name: [statistics.mean(v), min(v), max(v)] if v else None for name, v in scores.items()}
    return summed | {"diverged": sum(run["status"] == "diverged" for run in runs)}


def published(std: float, lr: float, act: str, norm: str) -> Record:
    """Published accuracies of a cell after 50,000 steps, once or twice each."""
    splits = {split: number for number, (of, split) in enumerate(COLUMNS) if of == norm}
    cells = [accuracy for where, accuracy in CELLS if where == (std, lr, act, 50_000)]
    return {f"published_{split}": [cell[number] for cell in cells] for split, number in splits.items()}


# ---- what is timed


@dataclass
class Server(Child):
    """A process that answers requests for rates: scripts/peers/serve.py. `tasks`: what is asked for, by its label."""

    section: str = ""
    tasks: dict[str, str] = field(default_factory=dict)
    ready: bool = False

    def await_ready(self, until: float, record: Record) -> None:
        """Until then; what it has prepared is noted."""
        while (line := self.line(until)) is not None:
            if line == "ready":
                self.ready = True
                return
            if line.startswith('{"task"'):
                found = json.loads(line)
                label = f"{self.name}: {found['task']}"
                self.tasks |= {} if found["problem"] else {label: found["task"]}
                record["problems"] |= {label: found["problem"]} if found["problem"] else {}
                record["prepared"][label] = found["seconds"]

    def ask(self, until: float, **request: str | float) -> float | None:
        """None: it gave no answer, and is asked no more."""
        if not self.ready:
            return None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            line = self.line(until)
            return float(line)
        except (OSError, TypeError, ValueError):
            self.ready = False
            return None


def take_rounds(servers: list[Server], until: float, seconds: float, rates: Record) -> None:
    """Rounds as long as there is time, the first one in any case."""
    for _ in range(ROUNDS):
        began = time.monotonic()
        for server in servers:
            for label, task in server.tasks.items() if server.ready else ():
                rate = server.ask(time.monotonic() + seconds + LATE, task=task, seconds=seconds)
                if rate is not None:
                    rates.setdefault(server.section, {}).setdefault(label, []).append(rate)
        if 2 * time.monotonic() - began > until:
            return


def shares_of_limits(rates: Record) -> Record:
    """Of the device's arithmetic and memory, what updates of the lesson's network take at their median rate."""
    limits = {label.rpartition(": ")[2]: statistics.median(found) for label, found in rates.get("limits", {}).items()}
    if not {"copy, GB/s", "sgemm, TFLOP/s"} <= set(limits):
        return {}
    medians = {label: statistics.median(found) for label, found in rates.get("mlp", {}).items()}
    return {
        label: {
            "of_sgemm": round(rate * MFLOP / 1e6 / limits["sgemm, TFLOP/s"], 4),
            "of_memory": round(rate * MEGABYTES / 1e3 / limits["copy, GB/s"], 4),
        }
        for label, rate in medians.items()
    }


def train_photographs(servers: list[Server], until: float) -> list[Record]:
    """ResNet-20's test accuracy after some seconds of training, by precision, one after the other."""
    found = []
    for number, server in enumerate(servers):
        left = (until - time.monotonic()) / (len(servers) - number) - 3
        seconds = min(TRAINING, left)
        for label, task in server.tasks.items() if server.ready and seconds > 0 else ():
            rate = server.ask(time.monotonic() + seconds + LATE, task=task, seconds=seconds)
            accuracy = server.ask(time.monotonic() + 3 * LATE, task=task, updates=0)
            found.append({"run": label, "seconds": seconds, "images_per_second": rate, "test_accuracy": accuracy})
    return found


# ---- all of it


@dataclass(frozen=True)
class Check:
    """device: cpu or cuda; folder: of logs and of data that was unpacked; seconds: for all that is prepared."""

    device: str
    data: Path
    folder: Path
    small: bool
    seconds: float
    parts: tuple[str, ...] = PARTS

    def part(self, *words: str) -> list[str]:
        script = str(Path(__file__).with_name("device_parts.py"))
        small = ["--small"] if self.small else []
        return [sys.executable, script, *words, self.device, str(self.data), str(self.seconds), *small]

    def log(self, name: str) -> Path:
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.log"

    def untimed(self) -> list[Child]:
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "tests/training/test_cuda.py",
            "-vv",
            "-n",
            "8",
            "-p",
            "no:cacheprovider",
        ]
        commands = {"tests": tests} if not self.small else {}
        commands |= {f"agreement, {norm}": self.part("agreement", norm) for norm in NORMS}
        commands |= {f"table, {norm}, {act}": self.part("table", norm, act) for norm, act in product(NORMS, ACTS)}
        wanted = {name: command for name, command in commands.items() if name.partition(",")[0] in self.parts}
        return [Child(name, command, self.log(name)) for name, command in wanted.items()]

    def timed(self) -> list[Server]:
        sizes = (("1", "2"),) if self.small else SIZES
        found = [Server("limits", self.part("limits"), self.log("limits"), section="limits")]
        for part, norm, group in product(("mlp", "graphs") if self.device == "cuda" else ("mlp",), NORMS, sizes):
            name = f"{part} {norm} {'+'.join(group)}"
            found.append(Server(norm, self.part(part, norm, *group), self.log(name), section="mlp"))
        for precision in ("fp32", "bf16"):
            found.append(Server(precision, self.part("images", precision), self.log(precision), section="images"))
        found += self.jax() if find_spec("jax") and not self.small else []
        return [server for server in found if server.section in (*self.parts, "limits")]

    def jax(self) -> list[Server]:
        data = load_data(DatasetConfig("mnist", str(self.data)))
        splits = ((part.pixels.flatten(1).numpy(), part.labels.numpy()) for part in (data.train, data.test))
        images = self.folder / "images.npz"
        np.savez(images, *(array for split in splits for array in split))
        script, found = str(ROOT / "scripts" / "peers" / "jax_scan.py"), []
        for size in JAX_SIZES:
            name = f"JAX, vmap(scan) of {size}"
            tasks = {f"{norm}: {name}": norm for norm in NORMS}
            command = [sys.executable, script, str(images), str(size), "0"]
            found.append(Server(name, command, self.log(name), section="mlp", tasks=tasks))
        return found

    def photographs(self) -> list[Server]:
        if self.small or "photographs" not in self.parts or not (self.data / PACKED[1]).is_dir():
            return []
        names = {f"ResNet-20 {precision}": precision for precision in ("bf16", "fp32")}
        return [Server(name, self.part("photographs", p), self.log(name)) for name, p in names.items()]


def run_check(check: Check, seconds: float, out: Path, archive: Path | None) -> Record:
    """Everything; the JSON is written whenever something is known."""
    began = time.monotonic()
    end, record = began + seconds, facts(check, seconds)
    unpack(archive, check.data, PACKED[0])
    untimed, servers = [child.start() for child in check.untimed()], [server.start() for server in check.timed()]
    if "photographs" in check.parts:
        unpack(archive, check.data, PACKED[1])
    photographs = [server.start() for server in check.photographs()]
    problems = record["problems"]
    try:
        for child in untimed:
            problem = child.stop(began + check.seconds)
            problems |= {child.name: problem} if problem else {}
            keep(record, child)
            write(record, out)
        until = time.monotonic() + (end - time.monotonic()) / 2
        for server in [*servers, *photographs]:
            server.await_ready(until, record)
            problems |= {} if server.ready else {f"{server.name}, {server.log.stem}": f"not ready: {said(server.log)}"}
        record["prepared_after_seconds"] = round(time.monotonic() - began, 1)
        reserved = min(2 * TRAINING, (end - time.monotonic()) / 3) if photographs else 0
        take_rounds(servers, end - reserved, 0.01 if check.small else TIMED, record["rates"])
        record["shares_of_limits"] = shares_of_limits(record["rates"])
        write(record, out)
        record["photographs"] = train_photographs(photographs, end)
    finally:
        for server in [*servers, *photographs]:
            server.stop(0)
        record["took_seconds"] = round(time.monotonic() - began, 1)
        record["table"] = table_cells(record.pop("runs"))
        write(record, out)
    return record


def keep(record: Record, child: Child) -> None:
    """What an untimed part has found, as far as it came."""
    part, lines = child.name.partition(",")[0], child.printed()
    if part == "tests":
        record["tests"] = test_results(lines)
    else:
        record["agreement" if part == "agreement" else "runs"] += json_lines(lines)


def facts(check: Check, seconds: float) -> Record:
    cuda = check.device == "cuda"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if cuda else machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "cores": os.cpu_count(),
        "machine": machine(),
        "code": git_state(),
        "seconds": seconds,
        "unit": "rates: updates of a model (limits: as named; images: images) a second, one value a round",
        "problems": {},
        "prepared": {},
        "agreement": [],
        "runs": [],
        "rates": {},
    }


def write(record: Record, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def show(record: Record) -> None:
    """Medians, and what went wrong."""
    for section, rates in record["rates"].items():
        for label, found in sorted(rates.items()):
            print(f"{section:7} {label:55} {statistics.median(found):14,.1f}  {len(found)} rounds")
    for name in ("tests", "agreement", "photographs", "problems"):
        print(name, json.dumps(record.get(name), indent=1))


def pack(data: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz", dereference=True, encoding="utf-8") as tar:
        for folder in PACKED:
            tar.add(data / folder, folder)


def unpack(archive: Path | None, folder: Path, prefix: str) -> None:
    if archive is not None:
        with tarfile.open(archive, encoding="utf-8") as tar:
            members = [member for member in tar if member.name.startswith(prefix)]
            tar.extractall(folder, members, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder, or what --pack made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of these, as in table,images")
    parser.add_argument("--pack", type=Path, metavar="ARCHIVE")
    parser.add_argument("--small", action="store_true", help="digits, few steps: to try it on a CPU")
    options = parser.parse_args()
    if options.pack:
        pack(options.data, options.pack)
        return
    archive = options.data.resolve() if options.data.is_file() else None
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    out = options.out or Path("results/device", f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json")
    with TemporaryDirectory() as folder:
        data = Path(folder, "data") if archive else options.data.resolve()
        check = Check(
            options.device,
            data,
            Path(folder),
            options.small,
            UNTIMED_SHARE * options.seconds,
            tuple(options.parts.split(",")),
        )
        show(run_check(check, options.seconds, out, archive))


if __name__ == "__main__":
    main()
