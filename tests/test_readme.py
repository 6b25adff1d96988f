"""Every command of README.md works, with runs cut to four steps."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from conftest import Bnexp

from bnexp.claims.registry import pick

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
LINES = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]
COMMANDS = [line for line in LINES if line.startswith("bnexp ")]
TARGETS = [line for line in LINES if line.startswith("make ")]
OTHERS = {  # the first word of what is neither → why it isn't run here
    "git": "fetches the source",
    "cd": "goes to it",
    "tensorboard": "serves until it is stopped",
    "torchrun": "starts processes: tests/test_parallel.py",
    "eval": "installs completion: tests/test_cli.py",
    "source": "activates the environment",
    ".": "activates the environment",
    "export": "sets a variable",
}


def needed_data(line: str) -> Path | None:
    """What a command reads of data/."""
    if (
        line.startswith(("bnexp report", "bnexp probe", "bnexp reproduce", "bnexp data", "bnexp --", "bnexp -sc"))
        or "experiment=demo" in line
    ):
        return None
    dataset = re.search(r"dataset=(\w+)", line)
    name = dataset[1] if dataset else "mnist"
    folders = {
        "digits": None,
        "mnist": "MNIST/raw/train-images-idx3-ubyte",
        "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
        "cifar10": "cifar-10-batches-py",
        "image_folder": "cifar10-jpeg",
    }
    folder = folders[name]
    return ROOT / "data" / folder if folder else None


def prepared(line: str) -> list[str]:
    """The words of a command, made short: few steps, two seeds, narrow convolutions; data/ is the checkout's."""
    words = shlex.split(re.sub(r"range\(\d+\)", "range(2)", line))[1:]
    words = [re.sub(r"=data(?=/|$)", f"={ROOT / 'data'}", word) for word in words]
    trains = words[0] in ("train", "compare") and not {"--help", "--cfg", "--info"} & set(words)
    if "hydra.launcher.submit=slurm" in words:
        words.append("dry_run=true")  # no cluster here: tests/test_launchers.py submits to this machine
    if words[0] == "reproduce":  # a claim that needs no runs, in place of those that are named
        names = [word for word in words[1:] if not word.startswith("--") and not word.isdecimal()]
        assert pick(names)
        return [*(word for word in words if word not in names), "wu_he.one_group"]
    narrow = ["arch.channels=[4,4]"] if "arch=convnet" in words else []
    return [*words, *narrow, "steps=4"] if trains else words


def few_photographs(folder: Path) -> list[str]:
    """Links to some of each class, which are decoded in no time; the words that choose them."""
    for part in (part for part in (ROOT / "data" / "cifar10-jpeg").glob("*/*") if part.is_dir()):
        place = folder / part.parent.name / part.name
        place.mkdir(parents=True)
        for name in sorted(os.listdir(part))[:20]:
            (place / name).symlink_to(part / name)
    return [f"dataset.path={folder}", "dataset.root=cache", "dataset.validation=50"]


def test_readme_holds_commands() -> None:
    assert any(line.startswith("bnexp train") for line in COMMANDS)
    assert any(line.startswith("bnexp compare") for line in COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_line_is_recognised(line: str) -> None:
    assert line in COMMANDS + TARGETS or line.split(maxsplit=1)[0] in OTHERS


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("line", sorted(COMMANDS, key=lambda line: str(needed_data(line))))
def test_command(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    needed = needed_data(line)
    if needed is not None and not needed.exists():
        pytest.skip(f"{needed.relative_to(ROOT)} is absent")
    monkeypatch.setenv("BNEXP_DATA", str(ROOT / "data"))
    words = [word.replace("results/runs/SOURCE", "source") for word in prepared(line)]
    if "dataset=image_folder" in words:
        words = [
            *(word for word in words if not word.startswith("dataset.path=")),
            *few_photographs(Path("photographs")),
        ]
    if "init_from=source" in words:
        assert bnexp("train", "steps=4", "hydra.run.dir=source").status == 0
    if words[0] in ("report", "probe"):
        folder = next(word for word in words[1:] if "=" not in word)
        words[words.index(folder)] = "mine"
        sweep = ("train", "-m", "dataset=digits", "steps=4", "norm=none,batch", "act=relu,sigmoid")
        assert bnexp(*sweep, "hydra.sweep.dir=mine").status == 0
    outcome = bnexp(*words)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("line", TARGETS)
def test_make_target(line: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
