"""Attempts to have something executed, written elsewhere, or shown as what it isn't.

`make test` does a twentieth of them; `make test-faults` all.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
import yaml
from conftest import Bnexp, Outcome, Tell, Times
from PIL import Image

from bnexp.data import torchvision_sets
from bnexp.data.load import _loaded
from bnexp.runs.config import DatasetConfig, RunConfig

pytestmark = pytest.mark.faults

SHORT = ("train", "dataset=digits", "steps=1", "eval.first_every=1", "threads=1", "arch.hidden=[8]")
TOUCH = "touch pwned"
MADE = {"_target_": "os.makedirs", "name": "pwned"}  # Hydra itself refuses os.system, but not this
LOGGED = {"class": "logging.FileHandler", "filename": "pwned", "()": "os.makedirs", "name": "pwned"}
Attempt = Callable[[Bnexp], Outcome]
Attempts = dict[str, Attempt]


def by_words(*words: str) -> Attempt:
    return lambda bnexp: bnexp(*SHORT, *words)


def refused(attempt: Attempt) -> Attempt:
    def checked(bnexp: Bnexp) -> Outcome:
        outcome = attempt(bnexp)
        assert outcome.status == 2, outcome
        return outcome

    return checked


# ---- words and configuration files

NODES = [
    "",
    "norm",
    "act",
    "arch",
    "optim",
    "init",
    "dataset",
    "eval",
    "hydra",
    "hydra.launcher",
    "hydra.sweeper",
    "executor",
]
NODES += ["hydra.callbacks.x", "hydra.job_logging", "hydra.job_logging.handlers.file", "hydra.hydra_logging.handlers.x"]
NODES += ["hydra.help", "hydra.run", "hydra.job", "hydra.job.env_set", "executor.slurm", "hydra.launcher.x"]
SHELL = [f"$({TOUCH})", f"`{TOUCH}`", f"; {TOUCH}", f"| {TOUCH}", f"${{system:{TOUCH}}}", "${eval:__import__('os')}"]
SHELL += ["${python:os.system}", "${oc.env:HOME}", "${oc.create:{_target_:os.system}}", "{{7*7}}", "%x%x%n"]
FREE = "hydra.help"  # nothing in there is made
WRITTEN = ["hydra.sweep.subdir", "hydra.job.config.override_dirname.kv_sep", "hydra.output_subdir", "hydra.job.name"]
WRITTEN += ["hydra.job_logging.handlers.file.filename"]


def by_file(content: str, *words: str) -> Attempt:
    def attempt(bnexp: Bnexp) -> Outcome:
        Path("own/experiment").mkdir(parents=True)
        Path("own/experiment/mine.yaml").write_text(f"# @package _global_\n{content}\n")
        return bnexp(*SHORT, *words, "--config-dir", "own", "experiment=mine")

    return attempt


def nested(node: str, value: dict[str, Any]) -> str:
    for key in reversed(node.split(".") if node else []):
        value = {key: value}
    return yaml.safe_dump(value)


def attempts_at_nodes(node: str) -> Attempts:
    dot, tag = f"{node}." if node else "", f"!!python/object/apply:os.system ['{TOUCH}']"
    sweep = ("-m", "seed=0,1", "executor.workers=1")
    words = {
        f"word {sign}{node}": by_words(*sweep, f"{sign}{dot}_target_=os.makedirs", f"+{dot}name=pwned")
        for sign in ("", "+", "++")
    }
    found = words | {
        f"table {node}": by_words(*sweep, f"++{node or 'x'}={{_target_:os.makedirs,name:pwned}}"),
        f"list {node}": by_words(*sweep, f"++{dot}x=[{{_target_:os.makedirs,name:pwned}}]"),
        f"file {node}": by_file(nested(node, MADE)),
        f"file {node} tag": by_file(nested(node, {"x": "TAG"}).replace("TAG", tag)),
    }
    logged = by_file(nested(node, LOGGED))
    return {name: refused(attempt) for name, attempt in found.items()} | {
        f"asked {node}": by_words("--cfg", "all", f"++{node or 'x'}={{class:logging.FileHandler,filename:pwned}}"),
        f"file {node} log": logged if node.startswith(FREE) else refused(logged),
    }


def attempts_to_submit() -> Attempts:
    """In a file: texts that Slurm would hand to a shell, or take as an option."""
    line = f"x\n{TOUCH}\n"
    submitted = ("-m", "seed=0,1", "executor=slurm")
    contents = {
        "setup": nested("executor", {"setup": TOUCH}),
        "inserted": nested("executor", {"setup": "${oc.env:HOME}"}),
        "key": nested("executor", {line: True}),
        "path": "executor: {partition: !!python/object/apply:pathlib.Path [" + json.dumps(line) + "]}",
        "partition": nested("executor", {"partition": line}),
        "account": nested("executor", {"account": f"x --wrap={TOUCH}"}),
        "nodelist": nested("executor", {"nodelist": f"$({TOUCH})"}),
        "directory": nested("hydra.sweep", {"dir": f"mine{line}"}),
    }
    return {f"file submitted {name}": refused(by_file(content, *submitted)) for name, content in contents.items()}


def attempts_of_shells(text: str) -> Attempts:
    return {
        f"init_from={text}": by_words(f'init_from="{text}"'),
        f"hydra.run.dir={text}": by_words(f'hydra.run.dir="inside/{text}"'),
        f"file {text}": by_file(yaml.safe_dump({"seed": text})),
        f"record {text}": by_record("run.json", in_config("act", "name", text), "resume", "mine"),
    }


def attempts_to_write(key: str) -> Attempts:
    sweep = ("-m", "seed=0,1", "hydra.sweep.dir=mine", "executor.workers=1")
    places = ("../out", "../../out", "${oc.env:HOME}/../out", "mine/../../out")
    return {f"{key}={place}": refused(by_words(*sweep, f"{key}='{place}'")) for place in places}


# ---- what a run has left

READ = ("checkpoint.safetensors", "resume-000000001.safetensors", "metrics.csv", "run.json", "summary.json")
COMMANDS = (
    ("resume", "mine"),
    ("report", "mine"),
    ("probe", "mine"),
    (*SHORT, "init_from=mine", "hydra.run.dir=other"),
)
DIGITS = RunConfig(DatasetConfig("digits", validation=200), steps=1)
JOB = {"words": [TOUCH], "overrides": ["../../out"], "config": DIGITS.as_dict()}
SWEEP = {"executor": {"name": "processes", "workers": 1, "max_stack": 1}, "jobs": [JOB]}


class Evil:
    """As a pickle: what unpickles it runs a command."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (TOUCH,)


def by_record(name: str, change: Callable[[str], str], *command: str) -> Attempt:
    """A finished run whose file says something else, then a command that reads it."""

    def attempt(bnexp: Bnexp) -> Outcome:
        assert bnexp(*SHORT, "hydra.run.dir=mine").status == 0
        path = Path("mine", name)
        path.write_text(change(path.read_text() if path.exists() else ""))
        if "resume" in command:
            Path("mine/summary.json").unlink()
        return bnexp(*command)

    return attempt


def in_config(group: str, key: str, value: object) -> Callable[[str], str]:
    def change(text: str) -> str:
        record = json.loads(text)
        record["config"][group][key] = value
        return json.dumps(record)

    return change


def by_pickle(place: str, *command: str) -> Attempt:
    """A pickle in place of a file."""

    def attempt(bnexp: Bnexp) -> Outcome:
        assert bnexp(*SHORT, "hydra.run.dir=mine").status == 0
        if "resume" in command:
            Path("mine/summary.json").unlink()
        write_pickle(Path(place))
        return bnexp(*command)

    return attempt


def write_pickle(path: Path) -> None:
    """With the digest that belongs to it."""
    content = pickle.dumps(Evil())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def attempts_on_runs(command: Sequence[str]) -> Attempts:
    def before(text: str) -> str:
        return f"{yaml.safe_dump(MADE)}{text}"

    found = {
        "_target_ as a name": by_record("run.json", in_config("norm", "name", MADE), *command),
        "_target_ as a key": by_record("run.json", in_config("norm", "_target_", "os.system"), *command),
        "sweep.json": by_record("sweep.json", lambda _: json.dumps(SWEEP), *command),
    }
    found |= {name: by_record(f".hydra/{name}.yaml", before, *command) for name in ("config", "hydra", "overrides")}
    found |= {f"pickle {name}": by_pickle(f"mine/{name}", *command) for name in READ}
    return {f"{command[0]} {name}": attempt for name, attempt in found.items()}


def attempts_on_data() -> Attempts:
    """Pickles in place of every file of a data set."""

    def attempt(name: str) -> Attempt:
        def pickled(bnexp: Bnexp) -> Outcome:
            sets = {"mnist": torchvision_sets.MNIST, "cifar10": torchvision_sets.CIFAR10}
            folder = sets[name].folder_of(DatasetConfig(name, root="here"))
            for file in (*sets[name].files, "../processed/training.pt", "../processed/test.pt"):
                write_pickle(folder / file)
            return bnexp("train", f"dataset={name}", "dataset.root=here")

        return refused(pickled)

    return {f"data {name}": attempt(name) for name in ("mnist", "cifar10")}


# ---- names

MARKUP = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"]
MARKUP += ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202egnp.exe"]
PICTURES = ("dataset=image_folder", "dataset.path=pictures", "dataset.size=8", "dataset.validation=2", "batch_size=4")


def by_name(markup: str, place: str) -> Attempt:
    """Markup and steering of the terminal, where a person will look at it."""

    def attempt(bnexp: Bnexp) -> Outcome:
        name = markup.replace("/", "|")
        for split, shade in ((split, shade) for split in ("train", "test") for shade in (40, 200)):
            folder = Path("pictures", split, f"{name}{shade}" if place == "class" else str(shade))
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (shade + number,) * 3).save(folder / f"{number}.png")
        target = f"runs{name}" if place == "directory" else "runs"
        first = bnexp(*SHORT, *PICTURES, f"hydra.run.dir='{target}'")
        if place == "value":
            path = Path("runs/run.json")
            record = json.loads(path.read_text())
            record["config"]["act"]["name"] = record["machine"] = record["overrides"][0] = markup
            path.write_text(json.dumps(record))
        second = bnexp("report", target)
        return Outcome(second.status, first.out + second.out, first.err + second.err)

    return attempt


# ---- all of them


def attempts() -> Attempts:
    groups = [attempts_at_nodes(node) for node in NODES] + [attempts_of_shells(text) for text in SHELL]
    groups += [attempts_to_write(key) for key in WRITTEN] + [attempts_on_runs(command) for command in COMMANDS]
    groups += [{f"{p} {text!r}": by_name(text, p) for text in MARKUP for p in ("class", "directory", "value")}]
    return {
        name: attempt
        for group in [*groups, attempts_to_submit(), attempts_on_data()]
        for name, attempt in group.items()
    }


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


@pytest.mark.usefixtures("no_network")
def test_attempts(
    bnexp: Bnexp,
    tmp_path: Path,
    times: Times,
    tell: Tell,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> None:
    """None executes anything, leaves the directory of its run, or lets markup or control characters through."""
    if times(10) < 10:
        request.getfixturevalue("no_figures")
    fake_slurm.install(tmp_path_factory.mktemp("slurm"), monkeypatch)
    every = attempts()
    for name in random.Random(7).sample(sorted(every), count := times(len(every))):
        folder = tmp_path / "deep" / "down"
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        _loaded.clear()
        outcome = every[name](bnexp)
        assert outcome.status in (0, 1, 2), (name, outcome)
        assert "Traceback" not in outcome.out + outcome.err, (name, outcome)
        assert not {"\x1b", "\x07", "\u202e"} & {*outcome.out, *outcome.err}, name
        assert not [path for path in tmp_path.rglob("*") if path.name in ("pwned", "out")], name
        assert [path.name for path in (*tmp_path.iterdir(), *(tmp_path / "deep").iterdir())] == ["deep", "down"], name
        for page in (*folder.rglob("report.html"), *folder.rglob("compare.md")):
            text = page.read_text()
            assert not [part for part in ("<script", "<img", "\x1b", "\u202e") if part in text], name
        shutil.rmtree(tmp_path / "deep")
    tell(f"{count} injection attempts: nothing executed, nothing written outside the run's directory")
    assert len(every) >= 200
