"""Words that are off: exit status 2, one line that says what and what is allowed, and nothing made."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import Bnexp
from PIL import Image
from torchvision import datasets

from bnexp.data.load import _loaded
from bnexp.data.torchvision_sets import MNIST_MD5, idx_header

TRAIN = ("train", "dataset=digits", "steps=2")


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def refuse(bnexp: Bnexp, folder: Path, words: tuple[str, ...], *parts: str) -> str:
    """The line of a command that is refused; checks that it holds the parts and that no file was made."""
    before = listing(folder)
    outcome = bnexp(*words)
    assert outcome.status == 2, outcome
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for part in parts:
        assert part in lines[0]
    assert listing(folder) == before
    return lines[0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("trian", ["trian", "did you mean train?", "report"]),
        ("--foo", ["--foo", "train"]),
        ("data foo", ["data foo", "status", "fetch"]),
        ("data fetch mnist", ["data fetch mnist", "dataset=NAME"]),
        ("data dataset=digits fetch", ["data status fetch", "dataset=NAME"]),
        ("data dataset=foo", ["dataset=foo", "digits"]),
        ("data fetch dataset=foo", ["dataset=foo", "digits"]),
        ("report", ["report needs a directory"]),
        ("report nowhere", ["nowhere is not a directory"]),
        ("report .", ["no run has finished"]),
        ("report . foo=1", ["foo=1", "by=", "out="]),
        ("report . --json", ["--json", "by=", "out="]),
        ("report . act=relu", ["act=relu", "by="]),
        ("report . by=", ["by="]),
        ("probe . steps=3", ["steps=3", "by=", "out="]),
        ("probe . out=", ["out="]),
        ("resume . by=norm", ["by=norm", "directories"]),
        ("resume . out=x", ["out=x", "directories"]),
        ("resume . -v", ["-v", "directories"]),
        ("compare dataset=digits steps=2 norm=none,batch by=foo", ["by=foo", "choose from norm"]),
        ("compare dataset=digits steps=2 seed=0,1 by=norm", ["by=norm", "no key but the seed"]),
    ],
)
def test_command(bnexp: Bnexp, tmp_path: Path, words: str, parts: list[str]) -> None:
    refuse(bnexp, tmp_path, tuple(words.split()), *parts)


@pytest.mark.parametrize(
    ("word", "choice"),
    [
        ("norm=foo", "instance"),
        ("act=foo", "leaky_relu"),
        ("arch=foo", "convnet"),
        ("dataset=foo", "fashion_mnist"),
        ("optim=foo", "adamw"),
        ("init=foo", "kaiming"),
        ("experiment=foo", "udacity"),
        ("hydra/launcher=foo", "inline"),
        ("precision=fp8", "bf16"),
        ("device=foo", "cuda"),
        ("optim.schedule=foo", "cosine"),
    ],
)
def test_unknown_choice(bnexp: Bnexp, tmp_path: Path, word: str, choice: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, word), word, "hoose from" if "hydra" not in word else "use", choice)


@pytest.mark.parametrize("group", ["norm", "act", "arch", "dataset", "optim", "init"])
def test_unknown_name_in_a_choice(bnexp: Bnexp, tmp_path: Path, group: str) -> None:
    path = tmp_path / "conf" / group / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("name: foo\n")
    words = (*TRAIN, "--config-dir", "conf", f"{group}=mine")
    refuse(bnexp, tmp_path, words[:1] + words[2:] if group == "dataset" else words, f"{group}=foo is unknown: choose")


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("optim.lrr=1", "optim.lr?"),
        ("stpes=3", "steps?"),
        ("nrom=batch", "norm?"),
        ("hydra.foo=1", "hydra.run.dir"),
        ("+foo=1", "foo"),
        ("++foo=1", "foo"),
        ("+_target_=os.system", "_target_"),
        ("+norm._target_=os.system", "norm._target_"),
        ("norm._target_=os.system", "norm._target_"),
    ],
)
def test_unknown_key(bnexp: Bnexp, tmp_path: Path, word: str, hint: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, word), word.split("=", maxsplit=1)[0].lstrip("+"), hint)


@pytest.mark.parametrize(
    "word", ["norm@=none", "norm@=../x", "norm@=../norm/none", "+norm@arch=../x", "norm=../norm/none"]
)
def test_choice_by_another_way(bnexp: Bnexp, tmp_path: Path, word: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, word), word.lstrip("+").partition("=")[0])


@pytest.mark.parametrize("words", ["optim=sgd optim.momentum=0.5", "norm=none norm.eps=1", "norm.groups=2"])
def test_key_of_another_choice_is_not_its_own_suggestion(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    key = words.rsplit(maxsplit=1)[-1].split("=", maxsplit=1)[0]
    line = refuse(bnexp, tmp_path, (*TRAIN, *words.split()), key)
    assert f"did you mean {key}?" not in line


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("steps=abc", "a whole number from 1 to 1000000000"),
        ("steps=", "a whole number"),
        ("optim.lr=fast", "a finite number above 0"),
        ("batch_size=1.5", "a whole number"),
        ("seed=1.5", "a whole number"),
        ("compile=2", "auto, true or false"),
        ("threads=1.5", "auto or a whole number"),
    ],
)
def test_wrong_type(bnexp: Bnexp, tmp_path: Path, word: str, allowed: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, word), word, allowed)


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        ("optim.lr=0.0", "a finite number above 0"),
        ("optim.lr=-1.0", "a finite number above 0"),
        ("optim.lr=nan", "a finite number above 0"),
        ("optim.lr=inf", "a finite number above 0"),
        ("optim.weight_decay=-1.0", "a finite number of at least 0"),
        ("optim=momentum optim.momentum=1.0", "1"),
        ("optim=adam optim.beta2=1.0", "1"),
        ("norm.eps=0.0", "above 0"),
        ("norm.momentum=0.0", "above 0"),
        ("init.std=-1.0", "at least 0"),
        ("batch_size=1238", "at most the 1237 training images"),
        ("batch_size=0", "at least 1"),
        ("batch_size=1", "norm=batch"),
        ("steps=0", "from 1"),
        ("steps=-1", "from 1"),
        ("seed=-1", "from 0"),
        ("eval.every=0", "at least 1"),
        ("eval.first_every=0", "at least 1"),
        ("threads=0", "auto or a whole number from 1"),
        ("compile=maybe", "auto, true or false"),
        ("arch.bias=maybe", "auto, true or false"),
        ("arch.hidden=[]", "1 to 1000 widths"),
        ("arch.depth=0", "null or a number from 1 to 1000"),
        ("norm=group norm.groups=7", "choose from 1, 2, 4"),
        ("norm=instance", "arch=convnet"),
        ("dataset.validation=1437", "fewer than the 1437"),
        ("dataset.limit=0", "at least 1"),
        ("dataset.augment=flip_crop", "colour images"),
        ("arch=convnet arch.channels=[8,8,8,8]", "at least 16×16 pixels"),
    ],
)
def test_range(bnexp: Bnexp, tmp_path: Path, words: str, allowed: str) -> None:
    word = words.rsplit(maxsplit=1)[-1].replace(",", ", ")  # as Python prints a list
    refuse(bnexp, tmp_path, (*TRAIN, *words.split()), word, allowed)


@pytest.mark.parametrize(
    "words",
    [
        "norm.eps=1e-300",  # 0 in single precision
        "norm.eps=1e-45",  # what is so close to 0 is computed as 0
        "norm.momentum=1e-46",
        "norm=noisy_batch norm.noise_shift=1e39",  # infinite
        "norm=noisy_batch norm.noise_scale=1e300",
        "init.std=1e-40",
        "optim.lr=1e308",
        "optim.lr=1e308 optim.schedule=cosine",
        "optim.lr=1e-39",
        "optim.weight_decay=1e-50",
        "optim=momentum optim.momentum=0.99999999",  # 1
        "optim=adam optim.beta1=0.999999999999",
        "optim=adamw optim.beta2=0.99999999",
        "optim=adam optim.eps=1e-60",
    ],
)
def test_numbers_that_single_precision_cannot_hold(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    key = next(word.split("=")[0] for word in words.split() if "." in word)
    refuse(bnexp, tmp_path, (*TRAIN, *words.split()), f"{key}=", "single precision")
    refuse(bnexp, tmp_path, (*TRAIN, "-m", "seed=0,1", *words.split()), f"{key}=", "single precision")


@pytest.mark.parametrize(
    "words", ["norm.eps=1.2e-38", "optim=adam optim.beta1=0.9999999", "optim.lr=3e38", "optim.weight_decay=0"]
)
def test_numbers_that_it_just_holds(bnexp: Bnexp, words: str) -> None:
    assert bnexp(*TRAIN, *words.split(), "dry_run=true").status == 0


@pytest.mark.parametrize(
    "words",
    [
        "norm.name=layer",
        "norm=batch norm.name=batch",
        "+norm.name=layer",
        "++act.name=sigmoid",
        "dataset.name=mnist",
        "optim.name=adam",
        "norm={name:layer}",
        "-m norm.name=layer,batch",
        "-m norm={name:layer},{eps:0.1}",
    ],
)
def test_the_name_of_a_choice_is_fixed(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, *words.split()), words.rsplit(maxsplit=1)[-1])


@pytest.mark.parametrize(
    "words", ["norm=[none,batch]", "act=[relu,tanh]", "optim=[sgd]", "arch=[]", "-m norm=[none,batch],layer"]
)
def test_a_list_is_no_choice(bnexp: Bnexp, tmp_path: Path, words: str) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, *words.split()), words.rsplit(maxsplit=1)[-1].partition("=")[0])


@pytest.mark.parametrize(
    ("file", "words", "found"),
    [
        ("experiment/mine.yaml", ("experiment=mine",), "norm.name=layer"),
        ("mine.yaml", ("--config-name", "mine"), "norm.name=layer"),
        ("experiment/mine.yaml", ("-m", "experiment=mine", "norm=none,group"), "norm.name=layer"),
    ],
)
def test_a_file_does_not_rename_a_choice(
    bnexp: Bnexp, tmp_path: Path, file: str, words: tuple[str, ...], found: str
) -> None:
    path = tmp_path / "conf" / file
    path.parent.mkdir(parents=True)
    defaults = "defaults:\n  - config\n  - _self_\n" if file == "mine.yaml" else ""
    path.write_text(f"# @package _global_\n{defaults}norm:\n  name: layer\n")
    refuse(bnexp, tmp_path, (*TRAIN, "--config-dir", "conf", *words), found)


def test_a_choice_of_ones_own_has_its_own_name(bnexp: Bnexp, tmp_path: Path) -> None:
    path = tmp_path / "conf" / "norm" / "careful.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("name: batch\neps: 0.1\nmomentum: 0.1\nunbiased: true\naffine: true\n")
    assert bnexp(*TRAIN, "--config-dir", "conf", "norm=careful", "hydra.run.dir=mine").status == 0
    assert '"eps": 0.1' in (tmp_path / "mine" / "run.json").read_text()


WHOLE = ["seed", "steps", "batch_size", "threads", "norm.groups", "arch.hidden", "dataset.validation", "dataset.limit"]
WHOLE += ["dataset.classes", "eval.first_every", "eval.first_until", "eval.every"]
HUGE = ["9" * 400, "-" + "9" * 400, str(2**63)]
HEXADECIMAL = "0x" + "f" * 6000  # which YAML reads; Python writes it in no decimals


@pytest.mark.parametrize("key", [*WHOLE, "optim.lr", "init.std", "norm.eps"])
def test_a_number_that_is_too_large(bnexp: Bnexp, tmp_path: Path, key: str) -> None:
    """Typed and in a file; shown shortened."""
    value = "[{}]" if key in ("arch.hidden", "dataset.classes") else "{}"
    words = ("train", "dataset=digits", "dry_run=true", "norm=group")
    for number in HUGE[: None if key in WHOLE else 2]:
        assert len(refuse(bnexp, tmp_path, (*words, f"{key}={value.format(number)}"), key)) < 600
    group, _, name = key.rpartition(".")
    (tmp_path / "own/experiment").mkdir(parents=True)
    for number in (*HUGE[:1], HEXADECIMAL):
        line = f"{name}: {value.format(number)}"
        content = f"{group}:\n  {line}\n" if group else f"{line}\n"
        (tmp_path / "own/experiment/mine.yaml").write_text(f"# @package _global_\n{content}")
        assert len(refuse(bnexp, tmp_path, (*words, "--config-dir", "own", "experiment=mine"), name)) < 600


def test_the_largest_numbers(bnexp: Bnexp) -> None:
    often = ("eval.every", "eval.first_every", "eval.first_until", "dataset.limit", "seed")
    assert bnexp(*TRAIN, "threads=1", "arch.hidden=[2]", *(f"{key}={2**63 - 1}" for key in often)).status == 0


def test_device_that_is_not_there(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse(bnexp, tmp_path, (*TRAIN, "device=cuda"), "device=cuda", "choose from cpu")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("norm", ["norm", "KEY=VALUE"]),
        ("=x", ["=x", "KEY=VALUE"]),
        ("norm=[", ["norm=[", "KEY=VALUE"]),
        ("--foo", ["--foo"]),
        ("--cfg foo", ["foo", "job"]),
        ("--config-name foo", ["foo"]),
        ("--config-dir nowhere", ["--config-dir nowhere", "not found"]),
        ("--resolve", ["--resolve", "--cfg"]),
        ("steps=${foo}", ["foo", "not found"]),
        ("norm=none,batch", ["norm=none,batch", "-m"]),
        ("seed=range(3)", ["seed=range(3)", "-m"]),
        ("-m seed=range(0)", ["seed"]),
        ("-m seed=0,0", ["seed=0"]),
    ],
)
def test_grammar(bnexp: Bnexp, tmp_path: Path, recwarn: pytest.WarningsRecorder, words: str, parts: list[str]) -> None:
    refuse(bnexp, tmp_path, (*TRAIN, *words.split()), *parts)
    assert not recwarn.list  # a warning would be further lines on stderr


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize(
    ("word", "part"),
    [("optim.lr=0.1,-1", "optim.lr=-1.0"), ("norm=none,foo", "norm=foo"), ("batch_size=60,2000", "batch_size=2000")],
)
def test_bad_value_in_a_sweep_is_found_before_its_first_job(
    bnexp: Bnexp, tmp_path: Path, command: str, word: str, part: str
) -> None:
    refuse(bnexp, tmp_path, (command, *TRAIN[1:], "-m", word), part)


# ---- data sets


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An image folder of two classes with four 8×8 images each in either split."""
    for split in ("train", "test"):
        for shade, name in ((40, "dark"), (200, "light")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (shade + number,) * 3).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def folder_words(path: Path | str) -> tuple[str, ...]:
    return ("train", "dataset=image_folder", f"dataset.path={path}", "dataset.size=8", "dataset.validation=2")


def test_image_folder_without_a_path(bnexp: Bnexp, tmp_path: Path) -> None:
    refuse(bnexp, tmp_path, ("train", "dataset=image_folder"), "dataset.path", "not set", "train/CLASS")


def test_image_folder_missing(bnexp: Bnexp, tmp_path: Path) -> None:
    refuse(bnexp, tmp_path, folder_words("nowhere"), "dataset.path=nowhere", "nowhere/train", "No such file")


def test_image_folder_empty(bnexp: Bnexp, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "empty" / split).mkdir(parents=True)
    refuse(bnexp, tmp_path, folder_words("empty"), "dataset.path=empty", "CLASS/*.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_broken_image_is_named(bnexp: Bnexp, tmp_path: Path, pictures: Path, content: bytes) -> None:
    broken = pictures / "train" / "dark" / "2.png"
    broken.write_bytes(content)
    refuse(bnexp, tmp_path, folder_words("pictures"), "pictures/train/dark/2.png", "not an image")


def test_truncated_image_is_named(bnexp: Bnexp, tmp_path: Path, pictures: Path) -> None:
    broken = pictures / "test" / "light" / "0.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    refuse(bnexp, tmp_path, folder_words("pictures"), "pictures/test/light/0.png", "not an image")


def test_class_that_is_in_test_alone(bnexp: Bnexp, tmp_path: Path, pictures: Path) -> None:
    shutil.copytree(pictures / "test" / "dark", pictures / "test" / "grey")
    refuse(bnexp, tmp_path, folder_words("pictures"), "test/grey")


@pytest.fixture
def mnist_files(tmp_path: Path) -> Path:
    """MNIST's four files with the right headers and sizes, and zeros for pixels and labels."""
    folder = tmp_path / "given" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in MNIST_MD5:
        count = 60_000 if name.startswith("train") else 10_000
        with (folder / name).open("wb") as file:
            file.write(idx_header(name))
            file.truncate(len(idx_header(name)) + count * (784 if "images" in name else 1))
    return folder


def test_mnist_with_changed_bytes_is_refused(bnexp: Bnexp, tmp_path: Path, mnist_files: Path) -> None:
    parts = (str(mnist_files / "train-images-idx3-ubyte"), "damaged", "MD5")
    refuse(bnexp, tmp_path, ("train", f"dataset.root={tmp_path / 'given'}"), *parts)


def test_mnist_cut_short_is_refused(bnexp: Bnexp, tmp_path: Path, mnist_files: Path) -> None:
    (mnist_files / "train-images-idx3-ubyte").write_bytes(idx_header("train-images-idx3-ubyte"))
    parts = (str(mnist_files / "train-images-idx3-ubyte"), "damaged", "size")
    refuse(bnexp, tmp_path, ("train", f"dataset.root={tmp_path / 'given'}"), *parts)


def test_mnist_that_cannot_be_fetched(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    _loaded.clear()
    refuse(bnexp, tmp_path, ("train", "dataset.root=nowhere"), "nowhere/MNIST/raw", "idx3-ubyte", "dataset=digits")


# ---- directories


@pytest.mark.parametrize("folder", ["/proc/x/y", "/dev/null/x", "file/x"])
def test_directory_that_cannot_be_made(bnexp: Bnexp, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    refuse(bnexp, tmp_path, (*TRAIN, f"hydra.run.dir={folder}"), folder)
    refuse(bnexp, tmp_path, (*TRAIN, "-m", f"hydra.sweep.dir={folder}", "seed=0,1"), folder)


def test_full_disk(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    refuse(bnexp, tmp_path, TRAIN, "1.0 MiB are free", "results/runs")


def test_directory_that_holds_another_run(bnexp: Bnexp, tmp_path: Path) -> None:
    assert bnexp(*TRAIN, "hydra.run.dir=mine").status == 0
    refuse(bnexp, tmp_path, (*TRAIN, "hydra.run.dir=mine", "seed=7"), "mine holds another run already")


def test_sweep_directory_that_holds_another_sweep(bnexp: Bnexp, tmp_path: Path) -> None:
    words = (*TRAIN, "-m", "hydra.sweep.dir=mine")
    assert bnexp(*words, "seed=0,1").status == 0
    refuse(bnexp, tmp_path, (*words, "seed=1,2"), "mine", "holds another run already")


@pytest.mark.parametrize("content", ["0", "[]", "text", "a: [", "a: 1\na: 2"])
def test_a_configuration_file_that_is_no_table(bnexp: Bnexp, tmp_path: Path, content: str) -> None:
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text(content)
    refuse(bnexp, tmp_path, (*TRAIN, "--config-dir", "own", "experiment=mine"))


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr=0.1", "did you mean optim.lr?"),
        ("learning_rate=0.1", "did you mean optim.lr?"),
        ("optim.learning_rate=0.1", "did you mean optim.lr?"),
        ("activation=relu", "did you mean act?"),
        ("model=mlp", "did you mean arch?"),
        ("bn=true", "did you mean norm=batch?"),
        ("groups=4", "did you mean norm.groups?"),
        ("norm.epz=1", "did you mean norm.eps?"),
        ("sead=1", "did you mean seed?"),
        ("norm=bacth", "did you mean norm=batch? Choose from batch, "),
        ("norm=layernorm", "did you mean norm=layer?"),
        ("act=swish", "did you mean act=silu?"),
        ("dataset=cifar", "did you mean dataset=cifar10?"),
        ("init=he", "did you mean init=kaiming?"),
        ("--lr=0.1", "--lr=0.1 is not allowed: an override has no dashes, as optim.lr=0.1"),
        ("--epochs", "--epochs is not allowed: an override has no dashes, as steps=…"),
        ("--gpu", "as device=cuda"),
    ],
)
def test_what_was_probably_meant(bnexp: Bnexp, tmp_path: Path, word: str, meant: str) -> None:
    """The field's aliases first, then spelling within the group."""
    outcome = bnexp(*TRAIN, word)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert meant in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["dropout=0.1", "norm=dropout", "foo.bar=1", "--frobnicate", "arch.droprate=1"])
def test_nothing_is_guessed_where_nothing_is_near(bnexp: Bnexp, word: str) -> None:
    outcome = bnexp(*TRAIN, word)
    assert outcome.status == 2
    assert "did you mean" not in outcome.err
    assert "as " not in outcome.err


@pytest.mark.parametrize("value", ["1e3", "1000.0", "1_000"])
def test_a_whole_number_may_be_written_as_a_float(bnexp: Bnexp, value: str) -> None:
    outcome = bnexp("train", "dataset=digits", f"steps={value}", "--cfg", "job")
    assert (outcome.status, outcome.err) == (0, "")
    assert "\nsteps: 1000\n" in outcome.out
