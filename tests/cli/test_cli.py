"""Commands that are right: help, flags, completion, every configuration, every norm with every activation."""

import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from builders import CONDITIONAL, IMAGES_ONLY
from conftest import Bnexp
from PIL import Image

from bnexp.cli.commands import COMMANDS
from bnexp.cli.overrides import conf_dir
from bnexp.data.load import DATASETS
from bnexp.models.activations import ACTIVATIONS
from bnexp.models.init import INITS
from bnexp.models.norm_registry import NORMS
from bnexp.runs.config import DatasetConfig, explain_keys
from bnexp.runs.record import find_runs
from bnexp.training.optim import OPTIMIZERS

BIN = Path(sys.executable).parent
CHOICES = sorted((path.parent.name, path.stem) for path in conf_dir().glob("[!h]*/*.yaml"))
TRAIN = ("train", "dataset=digits", "steps=2")


@pytest.mark.parametrize("words", ["", "--help", "-h", "help"])
def test_help_names_every_command(bnexp: Bnexp, words: str) -> None:
    outcome = bnexp(*words.split())
    assert outcome.status == 0
    for command in ("train", "train -m", "compare", "report", "data"):
        assert f"bnexp {command} " in outcome.out


def test_version(bnexp: Bnexp) -> None:
    outcome = bnexp("--version")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("bnexp 0.")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]])
def test_words_alone_need_no_torch(words: list[str], tmp_path: Path) -> None:
    code = f"import sys, bnexp.cli.main\ntry: bnexp.cli.main.run({words})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_train_help_lists_choices_and_keys(bnexp: Bnexp) -> None:
    outcome = bnexp("train", "--help")
    assert outcome.status == 0
    for _, choice in CHOICES:
        assert choice in outcome.out
    for key in explain_keys():
        assert f"  {key.name}={key.default}" in outcome.out, "with its default"
    assert max(map(len, outcome.out.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_of_its_own(bnexp: Bnexp, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (50, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        outcome = bnexp(command, "--help")
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.out.startswith(f"bnexp {command} ")
        assert "\nExample:\n  bnexp" in outcome.out
    assert len({bnexp(name, "--help").out for name in COMMANDS}) == len(COMMANDS)


def test_cfg_job_prints_the_configuration(bnexp: Bnexp, tmp_path: Path) -> None:
    outcome = bnexp("train", "norm=group", "norm.groups=10", "--cfg", "job")
    assert (outcome.status, outcome.err) == (0, "")
    assert "groups: 10" in outcome.out
    assert not list(tmp_path.iterdir())


def test_info_defaults(bnexp: Bnexp) -> None:
    outcome = bnexp("train", "norm=layer", "--info", "defaults")
    assert outcome.status == 0
    assert "norm/layer" in outcome.out


def test_questions_of_sweeps(bnexp: Bnexp, tmp_path: Path) -> None:
    for words in (("compare", "--cfg", "job"), ("train", "-m", "--cfg", "job")):
        outcome = bnexp(*words, "norm=layer,none", "seed=5,6")
        assert (outcome.status, outcome.err) == (0, ""), words
        assert "name: layer" in outcome.out
        assert "seed: 5" in outcome.out
    assert not list(tmp_path.iterdir())


def test_questions_of_an_empty_sweep(bnexp: Bnexp) -> None:
    for words in (("train", "-m", "norm=glob(zzz)", "--cfg", "job"), ("compare", "norm=glob(zzz)", "--info")):
        outcome = bnexp(*words)
        assert (outcome.status, outcome.out) == (2, ""), words
        assert "norm=glob(zzz) is an empty sweep" in outcome.err


@pytest.mark.parametrize(
    "words", ["seed=0,1 -m", "-m seed=0,1", "seed=0,1 --multirun", "hydra.sweep.dir=mine seed=0,1 -m"]
)
def test_flags_anywhere(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    outcome = bnexp(*TRAIN, *words.split(), "dry_run=true")
    assert (outcome.status, outcome.err) == (0, "")
    assert "2 runs: " in outcome.out
    assert not list(tmp_path.iterdir())


def test_own_config_dir_adds_a_choice(bnexp: Bnexp, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text("# @package _global_\nbatch_size: 7\n")
    assert bnexp(*TRAIN, "experiment=short", "--config-dir", "mine").status == 0
    assert find_runs([tmp_path])[0].config["batch_size"] == 7


# ---- every configuration


EXPERIMENTS = sorted(path.stem for path in conf_dir().glob("experiment/*.yaml"))


@pytest.mark.parametrize(("experiment", "norm"), [*((name, "batch") for name in EXPERIMENTS), ("udacity", "none")])
def test_every_experiment_trains(bnexp: Bnexp, tmp_path: Path, experiment: str, norm: str) -> None:
    """On a few colour images, which every architecture and augmentation takes."""
    for part, name, number in product(("train", "test"), ("a", "b"), range(8)):
        path = tmp_path / "pictures" / part / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((32, 32), 10 * number).convert("RGB").save(path)
    data = ("dataset=image_folder", "dataset.path=pictures", "dataset.validation=4", "batch_size=4")
    outcome = bnexp("train", f"experiment={experiment}", f"norm={norm}", *data, "steps=2")
    assert (outcome.status, outcome.err) == (0, "")
    assert find_runs([tmp_path])[0].summary["steps"] == 2


def every_choice() -> list[str]:
    """As few lines as have every norm, activation, optimizer and init; tests/test_archs.py has the combinations."""
    groups = {"norm": NORMS, "act": ACTIVATIONS, "optim": OPTIMIZERS, "init": INITS}
    lines = range(max(map(len, groups.values())))
    return [" ".join(f"{name}={[*group][n % len(group)]}" for name, group in groups.items()) for n in lines]


@pytest.mark.parametrize("words", [*every_choice(), "precision=bf16"])
def test_every_choice_trains(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    norm = words.split(maxsplit=1)[0].removeprefix("norm=")
    needed = ["arch=convnet", "arch.channels=[4]", "threads=1"] if norm in IMAGES_ONLY else []
    needed += ["dataset.conditions=[plain,inverted]"] if norm in CONDITIONAL else []
    outcome = bnexp(*TRAIN, *needed, *words.split())
    assert (outcome.status, outcome.err) == (0, "")
    [run] = find_runs([tmp_path])
    assert run.summary["status"] == "finished"


def test_data_status_lists_every_set(bnexp: Bnexp, tmp_path: Path) -> None:
    outcome = bnexp("data", "status")
    assert (outcome.status, outcome.err) == (0, "")
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line.split()}
    assert set(DATASETS) <= set(rows)
    assert "ready" in rows["digits"]
    assert "ready" not in rows["mnist"]
    assert not list(tmp_path.iterdir())


def rows_of(out: str) -> dict[str, str]:
    return {line.split()[0]: line for line in out.splitlines() if line.split()}


def test_data_status_takes_what_some_data_sets_have(bnexp: Bnexp, tmp_path: Path) -> None:
    """A key that a data set lacks is not about it."""
    rows = rows_of(bnexp("data", "status", "dataset.root=else where").out)
    assert set(DATASETS) <= set(rows)
    assert all("else where/" in rows[name] for name in ("mnist", "fashion_mnist", "cifar10"))
    rows = rows_of(bnexp("data", "dataset.path=C++ [x]").out)
    assert "C++ [x]" in rows["image_folder"]
    assert "C++" not in rows["mnist"]
    assert "else where/" in bnexp("data", "dataset=mnist", "dataset.root=else where").out
    for words in (
        ["dataset.rot=x"],
        ["dataset.root=x", "dataset.foo=1"],
        ["dataset=mnist", "dataset.path=x"],
        ["foo=1"],
    ):
        assert bnexp("data", "status", *words).status == 2, words
    assert not list(tmp_path.iterdir())


def test_data_fetch_takes_a_root(bnexp: Bnexp, fake_mnist: DatasetConfig, tmp_path: Path) -> None:
    (tmp_path / "MNIST").rename(tmp_path / "C++ [x]")
    Path("it's").mkdir()
    Path("it's/MNIST").symlink_to(tmp_path / "C++ [x]")
    outcome = bnexp("data", "fetch", "dataset=mnist", "dataset.root=it's", "dataset.validation=50")
    assert (outcome.status, outcome.err) == (0, "")


# ---- the interpreter


@pytest.mark.parametrize("setting", [{"PYTHONOPTIMIZE": "1"}, {"PYTHONOPTIMIZE": "2"}])
@pytest.mark.parametrize("words", [["train", "-m", "seed=range(2)"], ["resume", "."], ["--version"], ["--help"]])
def test_without_assertions_nothing_is_run(tmp_path: Path, setting: dict[str, str], words: list[str]) -> None:
    """Hydra's grammar does work in assertions."""
    command = [sys.executable, "-m", "bnexp", *words]
    environment = os.environ | setting | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: PLW1510
    assert done.returncode == (0 if words[0].startswith("--") else 2)
    assert len(done.stderr.splitlines()) == (done.returncode == 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.extra
@pytest.mark.parametrize(
    "setting", ["PYTHONWARNINGS=error", "PYTHONSAFEPATH=1", "PYTHONDEVMODE=1", "PYTHONINTMAXSTRDIGITS=640"]
)
def test_other_settings_of_the_interpreter(tmp_path: Path, setting: str) -> None:
    words = ["train", "-m", *TRAIN[1:], "arch.hidden=[2]", "seed=range(2)"]
    name, _, value = setting.partition("=")
    environment = os.environ | {name: value, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-m", "bnexp", *words], cwd=tmp_path, env=environment, check=True)
    assert len(find_runs([tmp_path])) == 2


# ---- completion


@pytest.mark.parametrize(("shell", "part"), [("zsh", "complete -o nospace"), ("fish", "complete ")])
def test_completion_installs(shell: str, part: str, bnexp: Bnexp) -> None:
    """In bash it is tried below."""
    outcome = bnexp("-sc", f"install={shell}")
    assert outcome.status == 0
    assert part in outcome.out
    assert "bnexp" in outcome.out


SCRIPT = """
eval "$(bnexp -sc install=bash)"
drive=$(complete -p bnexp | sed 's/.*-F \\([^ ]*\\).*/\\1/')
for line in {lines}; do
  COMP_LINE="$line" COMP_POINT=${{#line}}
  read -ra COMP_WORDS <<< "$line"
  COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )) COMPREPLY=()
  "$drive" bnexp
  echo "${{COMPREPLY[@]}}"
done
"""


def test_completion_in_bash(tmp_path: Path) -> None:
    lines = ["bnexp tr", "bnexp train -m ac"]
    script = SCRIPT.format(lines=" ".join(map(shlex.quote, lines)))
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = dict(zip(lines, done.stdout.splitlines(), strict=True))
    assert found["bnexp tr"].split() == ["train"]
    assert set(found["bnexp train -m ac"].split()) == {"act=", "act."}


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("bnexp train norm=", {f"norm={norm}" for norm in NORMS}),
        ("bnexp compare norm=gr", {"norm=group"}),
        ("bnexp train norm=batch dat", {"dataset=", "dataset."}),
    ],
)
def test_completion(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, line: str, answers: set[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert set(bnexp("-sc", "query=bash").out.split()) == answers
