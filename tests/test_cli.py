"""Commands that are right: help, flags, completion, every configuration, every norm with every activation."""

import os
import shlex
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from conftest import Bnexp
from PIL import Image

from bnexp.activations import ACTIVATIONS
from bnexp.archs.registry import ARCHS
from bnexp.composition import compose_run, conf_dir, configurations
from bnexp.data import DATASETS
from bnexp.init import INITS
from bnexp.norms import CONDITIONAL, IMAGES_ONLY, NORMS
from bnexp.optim import OPTIMIZERS
from bnexp.runs import find_runs

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
    code = f"import sys, bnexp.cli\ntry: bnexp.cli.run({words})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_train_help_lists_choices_and_keys(bnexp: Bnexp) -> None:
    outcome = bnexp("train", "--help")
    assert outcome.status == 0
    for _, choice in CHOICES:
        assert choice in outcome.out
    assert "batch_size: 60" in outcome.out


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
    for words in (("compare", "--cfg", "job"), ("train", "-m", "--cfg", "job"), ("compare", "--help")):
        outcome = bnexp(*words, "norm=layer,none", "seed=5,6")
        assert (outcome.status, outcome.err) == (0, ""), words
        assert "name: layer" in outcome.out
        assert "seed: 5" in outcome.out
    assert bnexp("report", "--help").out == bnexp("--help").out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["seed=0,1 -m", "-m seed=0,1", "seed=0,1 --multirun", "hydra.sweep.dir=mine seed=0,1 -m"]
)
def test_flags_anywhere(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    outcome = bnexp(*TRAIN, *words.split())
    assert (outcome.status, outcome.err) == (0, "")
    assert [run.seed for run in find_runs([tmp_path])] == [0, 1]


def test_own_config_dir_adds_a_choice(bnexp: Bnexp, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text("# @package _global_\nbatch_size: 7\n")
    assert bnexp(*TRAIN, "experiment=short", "--config-dir", "mine").status == 0
    assert find_runs([tmp_path])[0].config["batch_size"] == 7


# ---- every configuration


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    with configurations():
        config = compose_run([f"{group}={choice}"])
    if group != "experiment":
        assert getattr(config, group).name == choice


@pytest.mark.parametrize(
    ("group", "known"),
    [
        ("norm", NORMS),
        ("act", ACTIVATIONS),
        ("arch", ARCHS),
        ("optim", OPTIMIZERS),
        ("init", INITS),
        ("dataset", DATASETS),
    ],
)
def test_each_choice_has_a_file(group: str, known: dict[str, object]) -> None:
    assert {choice for name, choice in CHOICES if name == group} == set(known)


@pytest.mark.parametrize("experiment", [choice for group, choice in CHOICES if group == "experiment"])
@pytest.mark.parametrize("norm", ["none", "batch"])
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


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains(bnexp: Bnexp, tmp_path: Path, norm: str) -> None:
    """With two activations; tests/test_archs.py has every combination."""
    words = ["arch=convnet", "arch.channels=[4]", "threads=1"] if norm in IMAGES_ONLY else []
    words += ["dataset.conditions=[plain,inverted]"] if norm in CONDITIONAL else []
    outcome = bnexp(*TRAIN, *words, f"norm={norm}", "act=relu,sigmoid", "-m")
    assert (outcome.status, outcome.err) == (0, "")
    runs = find_runs([tmp_path])
    assert [run.config["act"]["name"] for run in runs] == ["relu", "sigmoid"]
    assert {run.summary["status"] for run in runs} == {"finished"}


@pytest.mark.parametrize("word", [*(f"optim={o}" for o in OPTIMIZERS), *(f"init={i}" for i in INITS), "precision=bf16"])
def test_every_optimizer_and_init_trains(bnexp: Bnexp, tmp_path: Path, word: str) -> None:
    assert bnexp(*TRAIN, word).status == 0
    assert find_runs([tmp_path])[0].summary["status"] == "finished"


def test_data_status_lists_every_set(bnexp: Bnexp, tmp_path: Path) -> None:
    outcome = bnexp("data", "status")
    assert (outcome.status, outcome.err) == (0, "")
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line.split()}
    assert set(DATASETS) <= set(rows)
    assert "ready" in rows["digits"]
    assert "ready" not in rows["mnist"]
    assert not list(tmp_path.iterdir())


# ---- completion


@pytest.mark.parametrize(
    ("shell", "part"), [("bash", "complete -o nospace"), ("zsh", "complete -o nospace"), ("fish", "complete ")]
)
def test_completion_installs(shell: str, part: str, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        [BIN / "bnexp", "-sc", f"install={shell}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert part in done.stdout
    assert "bnexp" in done.stdout


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
    lines = [
        "bnexp train norm=",
        "bnexp tr",
        "bnexp train -m ac",
        "bnexp compare norm=gr",
        "bnexp train norm=batch dat",
    ]
    script = SCRIPT.format(lines=" ".join(map(shlex.quote, lines)))
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    found = dict(zip(lines, done.stdout.splitlines(), strict=True))
    for norm in NORMS:
        assert f"norm={norm}" in found["bnexp train norm="].split()
    assert found["bnexp tr"].split() == ["train"]
    assert set(found["bnexp train -m ac"].split()) == {"act=", "act."}
    assert found["bnexp compare norm=gr"].split() == ["norm=group"]
    assert set(found["bnexp train norm=batch dat"].split()) == {"dataset=", "dataset."}
