"""Every command of README.md and docs/ works: a page's commands run in their order in one folder, cut to four steps.

README.md is part of `make test`, the other pages of `make test-extra`.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fake_slurm
import pytest
from conftest import Bnexp

from bnexp.claims.registry import pick
from bnexp.runs.config import explain_keys

ROOT = Path(__file__).parent.parent
DATA = ROOT / "data"
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {  # the first word of what isn't run here → why
    "make": "test_make_target",
    "tensorboard": "serves until it is stopped",
    "torchrun": "starts processes: tests/sweeps/test_parallel.py",
    "eval": "installs completion: tests/cli/test_cli.py",
    ".": "activates the environment",
}
FOLDERS = {  # data set → the place in data/ that holds it
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-py",
    "image_folder": "cifar10-jpeg",
}
SHORTER = {"train": ["steps=4"], "compare": ["steps=4"], "bench": ["rounds=1", "seconds=0.05", "modes=eager"]}


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks of a language, with continued lines joined."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ") for block in found]


def commands(page: Path) -> list[str]:
    """The page's command lines, without comments."""
    lines = [
        line.split("  #")[0].split(" # ")[0].strip() for block in blocks(page, "bash") for line in block.split("\n")
    ]
    return [line for line in lines if line]


TARGETS = sorted({line for page in (README, *PAGES) for line in commands(page) if line.startswith("make ")})


def missing_data(line: str) -> str | None:
    """What a command would read of data/ that isn't there."""
    trains = line.startswith(("bnexp train", "bnexp compare")) and "experiment=demo" not in line
    dataset = re.search(r"dataset=(\w+)", line)
    folder = FOLDERS.get(dataset[1] if dataset else "mnist")
    return folder if trains and folder and not (DATA / folder).exists() else None


def prepared(line: str) -> list[str]:
    """The arguments of a command, made short: few steps, two seeds, narrow convolutions; data/ is the checkout's."""
    command, *arguments = shlex.split(re.sub(r"range\(\d+\)", "range(2)", line))[1:]
    arguments = [re.sub(r"=data(?=/|$)", f"={DATA}", argument) for argument in arguments]
    if command == "reproduce":  # a claim that needs no runs, in place of those that are named
        names = [argument for argument in arguments if re.match(r"[a-z]", argument)]
        assert pick(names)
        arguments = [*(argument for argument in arguments if argument not in names), "wu_he.one_group"]
    if "executor=slurm" in arguments or "executor=ray" in arguments:
        arguments.append("dry_run=true")  # no cluster here: tests of the executors have one
    if "arch=convnet" in arguments:
        arguments.append("arch.channels=[4,4]")
    return [command, *arguments, *SHORTER.get(command, [])]


def with_few_photographs(arguments: list[str]) -> list[str]:
    """The same with 20 images of each class, which are decoded in no time."""
    for part in (part for part in (DATA / "cifar10-jpeg").glob("*/*") if part.is_dir()):
        place = Path("photographs", part.parent.name, part.name)
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(os.listdir(part))[:20]:
            (place / name).symlink_to(part / name)
    kept = [argument for argument in arguments if not argument.startswith("dataset.path=")]
    return [*kept, "dataset.path=photographs", "dataset.root=cache", "dataset.validation=50"]


def run_page(page: Path, bnexp: Bnexp) -> None:
    """Run the page's commands and Python in this folder. Skips the page where data are absent."""
    lines = commands(page)
    absent = [folder for folder in map(missing_data, lines) if folder]
    if absent:
        pytest.skip(f"data/{absent[0]} is absent")
    for line in lines:
        program = line.split(maxsplit=1)[0]
        if program == "bnexp":
            arguments = prepared(line)
            outcome = bnexp(*(with_few_photographs(arguments) if "dataset=image_folder" in arguments else arguments))
            assert outcome.status == 0, f"{line}: {outcome.err}"
        elif program not in ELSEWHERE:
            subprocess.run(shlex.split(line), check=True)
    script = "\n".join(blocks(page, "python"))
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the pages' commands find: the data, and the commands of a Slurm."""
    monkeypatch.setenv("BNEXP_DATA", str(DATA))
    fake_slurm.install(tmp_path_factory.mktemp("cluster"), monkeypatch)


@pytest.mark.usefixtures("no_figures", "environment")
def test_commands_of_the_readme(bnexp: Bnexp) -> None:
    assert any(line.startswith("bnexp compare") for line in commands(README))
    run_page(README, bnexp)


@pytest.mark.extra
@pytest.mark.usefixtures("no_figures", "environment")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_of_a_page(bnexp: Bnexp, page: Path) -> None:
    run_page(page, bnexp)


@pytest.mark.parametrize("line", TARGETS)
def test_make_target(line: str) -> None:
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 100
    assert max(len(line) for line in lines if line.startswith("|")) <= 120


def test_reference_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/configuration.md is what `python scripts/write_reference.py` writes."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import write_reference  # noqa: PLC0415

    assert write_reference.PAGE.read_text() == write_reference.render()


def test_every_key_is_explained_in_half_a_line() -> None:
    for key in explain_keys():
        assert key.help, key.name
        assert key.allowed, key.name
        assert len(key.help) <= 100, key.name


def test_links_of_the_readme_lead_to_files() -> None:
    for page in (README, CONTRIBUTING):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_named_files_exist() -> None:
    """`bnexp/models/norms.py` in a page is a file."""
    for page in (README, *PAGES):
        for named in re.findall(r"`((?:bnexp|conf|scripts|docs)/[a-z_/.]*)`", page.read_text()):
            assert (ROOT / named).exists(), f"{page.name}: {named}"


@pytest.mark.extra
def test_pages_are_built(tmp_path: Path) -> None:
    """Links and their anchors lead somewhere, and no page loads anything from a network."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\" >]+)", page.read_text())
        assert not loaded, f"{page.name}: {loaded}"
