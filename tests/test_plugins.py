"""Plugins: the example of examples/plugin, built, installed and used from the command line, and plugins with faults."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bnexp
from sklearn.datasets import load_digits

from bnexp.cli import compose
from bnexp.models import registry
from bnexp.runs import plugins
from bnexp.runs.record import find_runs
from bnexp.training.compiler import has_compiler

EXAMPLE = Path(__file__).parents[1] / "examples" / "plugin"
TRAIN = ("train", "dataset=digits", "steps=40", "eval.first_every=20", "device=cpu", "compile=false", "hydra.run.dir=r")
SWEEP = ("train", "-m", "dataset=digits", "norm=none,switchable", "seed=0,1", "steps=40", "device=cpu")
Install = Callable[..., None]


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which the example is installed."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(EXAMPLE, source / "plugin")
    command = ["uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", *command, "--target", place, source / "plugin"], check=True)
    return place


def forget() -> None:
    """Let the process look for plugins again, as a new one does."""
    for function in (plugins.plugins, plugins.load, plugins.plugin_places):
        function.cache_clear()
    compose._shipped.clear()
    registry._checked.clear()
    for name in [name for name in sys.modules if name.startswith(("bnexp_example", "faulty"))]:
        del sys.modules[name]


@pytest.fixture
def installed(example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(example))
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one plugin: what its module holds, and the file of its configuration."""

    def write(code: str, group: str = "norm", name: str = "faulty", yaml: str = "", package: str = "faulty") -> None:
        folder = tmp_path / f"site-{package}"
        meta = folder / f"{package}-1.0.dist-info"
        for path in (folder / package / "conf" / group, meta):
            path.mkdir(parents=True)
        (folder / package / "__init__.py").write_text(code)
        (folder / package / "conf" / group / f"{name}.yaml").write_text(yaml or f"name: {name}\n")
        (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (meta / "entry_points.txt").write_text(f"[{plugins.POINTS[group]}]\n{name} = {package}:entry\n")
        monkeypatch.syspath_prepend(str(folder))
        forget()

    yield write
    monkeypatch.undo()
    forget()


# ---- the example


@pytest.mark.usefixtures("installed")
def test_a_norm_is_swept_resumed_and_reported(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP, "compile=false", "hydra.sweep.dir=s").status == 0
    record = json.loads(Path("s/norm=switchable,seed=0/run.json").read_text())
    assert record["plugins"] == {"norm": "bnexp-example 0.1.0"}
    assert "plugins" not in json.loads(Path("s/norm=none,seed=0/run.json").read_text())
    shutil.rmtree("s/norm=switchable,seed=1")
    assert bnexp("resume", "s").status == 0
    outcome = bnexp("report", "s")
    assert outcome.status == 0
    assert "norm=switchable" in outcome.out


@pytest.mark.extra
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
@pytest.mark.usefixtures("installed")
def test_a_norm_is_stacked_in_worker_processes(bnexp: Bnexp) -> None:
    """With the bytes that each of its runs has alone."""
    rates = ("norm=switchable", "norm.eps=1e-5,1e-3", "compile=true", "executor.workers=2")
    assert bnexp(*SWEEP[:3], *SWEEP[4:], *rates, "hydra.sweep.dir=s").status == 0
    runs = find_runs([Path("s")])
    assert {run.record["stack"] for run in runs} == {2}
    alone = ("train", "dataset=digits", "norm=switchable", "norm.eps=1e-3", "seed=1", *SWEEP[5:], "compile=true")
    assert bnexp(*alone, "hydra.run.dir=alone").status == 0
    same = Path("s/norm.eps=0.001,seed=1")
    assert same.exists(), [run.directory for run in runs]
    assert (same / "metrics.csv").read_bytes() == Path("alone/metrics.csv").read_bytes()


@pytest.mark.usefixtures("installed")
def test_the_norm_is_the_mean_of_batch_layer_and_instance_at_the_start() -> None:
    from bnexp_example import SwitchableNorm  # noqa: PLC0415

    from bnexp.plugin import NormConfig  # noqa: PLC0415

    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = SwitchableNorm(NormConfig("switchable"), 3).double()
    means = (x.mean((0, 2, 3), keepdim=True) + x.mean((1, 2, 3), keepdim=True) + x.mean((2, 3), keepdim=True)) / 3
    variances = [x.var(axes, correction=0, keepdim=True) for axes in ((0, 2, 3), (1, 2, 3), (2, 3))]
    torch.testing.assert_close(norm(x), (x - means) / (sum(variances) / 3 + 1e-5).sqrt())


@pytest.mark.usefixtures("installed")
def test_an_architecture_and_a_data_set(bnexp: Bnexp) -> None:
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)
    parts = {"train_images": images[:600], "test_images": images[600:700]}
    np.savez("digits.npz", **parts, train_labels=digits.target[:600], test_labels=digits.target[600:700])
    words = ("dataset=npz", "dataset.path=digits.npz", "arch=plain20", "arch.channels=[4,4,4]", "norm=batch", "steps=4")
    outcome = bnexp("train", *words, "device=cpu", "threads=1", "init=kaiming", "hydra.run.dir=r")
    assert (outcome.status, outcome.err) == (0, "")
    record = json.loads(Path("r/run.json").read_text())
    assert record["plugins"] == {"arch": "bnexp-example 0.1.0", "dataset": "bnexp-example 0.1.0"}
    assert record["dataset"]["shape"] == [1, 8, 8]
    for path, reason in (("null", "it names no archive"), ("nowhere.npz", "there is no such file")):
        refused = bnexp("train", "dataset=npz", f"dataset.path={path}", "hydra.run.dir=q")
        assert refused.status == 2
        assert reason in refused.err


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays of an archive of 300 training images and 20 test images, 8×8 grey."""
    images, labels = np.zeros((300, 8, 8), np.uint8), np.arange(300) % 10
    return {
        "train_images": images,
        "train_labels": labels,
        "test_images": images[:20],
        "test_labels": labels[:20],
    } | changes


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_images": np.zeros((300, 8, 8))}, "pixels are uint8 (N, C, H, W), not torch.float64 (300, 1, 8, 8)"),
        ({"test_images": np.zeros((20, 9, 9), np.uint8)}, "of test images, all images have the shape (1, 8, 8)"),
        ({"train_labels": np.arange(299) % 10}, "labels are int64 (N,), not torch.int64 (299,)"),
        ({"test_labels": np.full(20, 10)}, "of test images, labels are from 0 to 9"),
        ({"test_images": np.zeros((0, 8, 8), np.uint8), "test_labels": np.zeros(0, int)}, "at least one image"),
    ],
)
def test_images_of_another_kind(bnexp: Bnexp, changes: dict[str, np.ndarray], line: str) -> None:
    np.savez("images.npz", **arrays(**changes))
    outcome = bnexp("train", "dataset=npz", "dataset.path=images.npz", "device=cpu", "hydra.run.dir=r")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome
    assert outcome.err.startswith("bnexp: dataset=npz cannot be used: ")
    assert line in outcome.err


@pytest.mark.usefixtures("installed")
def test_choices_are_completed_and_suggested(bnexp: Bnexp) -> None:
    assert "switchable" in bnexp("train", "--help").out
    outcome = bnexp(*TRAIN, "norm=swichable")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "did you mean norm=switchable?" in outcome.err


def test_without_it_the_norm_is_unknown(bnexp: Bnexp) -> None:
    outcome = bnexp(*TRAIN, "norm=switchable")
    assert outcome.status == 2
    assert outcome.err.startswith("bnexp: norm=switchable is unknown")


@pytest.mark.usefixtures("installed")
def test_another_version_does_not_resume_a_run(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bnexp(*TRAIN, "norm=switchable").status == 0
    Path("r/summary.json").unlink()
    monkeypatch.setattr("bnexp.runs.plugins.package_of", lambda point: "bnexp-example 0.2.0")
    outcome = bnexp("resume", "r")
    assert outcome.status == 2
    assert "bnexp-example 0.1.0" in outcome.err
    assert "bnexp-example 0.2.0" in outcome.err


# ---- plugins with faults

IDENTITY = "import torch\n\ndef entry(config, features):\n    return torch.nn.Identity()\n"
WIDER = """import torch

class Wider(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)

def entry(config, features):
    return Wider()
"""
FAULTS = {
    "raises at import": (
        "raise OSError('no licence')",
        "norm=faulty of faulty 1.0 cannot be imported: OSError: no licence",
    ),
    "lacks the name": ("other = 1", "norm=faulty of faulty 1.0 cannot be imported: AttributeError"),
    "is no function": (
        "entry = 3",
        "norm=faulty of faulty 1.0 cannot be used: TypeError: 'int' object is not callable",
    ),
    "makes no module": (
        "def entry(config, features):\n    return 3\n",
        "norm=faulty of faulty 1.0 cannot be used: TypeError: ",
    ),
    "gives another shape": (WIDER, "norm=faulty of faulty 1.0 cannot be used: RuntimeError: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plugin_with_a_fault_is_refused_in_a_line(bnexp: Bnexp, install: Install, fault: str) -> None:
    code, line = FAULTS[fault]
    install(code)
    outcome = bnexp(*TRAIN, "norm=faulty")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome
    assert outcome.err.startswith(f"bnexp: {line}")
    assert not Path("r").exists()
    assert bnexp(*TRAIN, "norm=batch").status == 0, "others are not affected"


def test_a_name_that_bnexp_has(bnexp: Bnexp, install: Install) -> None:
    install(IDENTITY, name="layer")
    outcome = bnexp(*TRAIN, "norm=layer")
    line = "norm=layer is ambiguous: bnexp and faulty 1.0 have it: uninstall what is not meant"
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")
    assert bnexp(*TRAIN, "norm=batch").status == 0


def test_a_name_that_two_plugins_have(bnexp: Bnexp, install: Install) -> None:
    install(IDENTITY)
    install(IDENTITY, package="faulty_too")
    outcome = bnexp(*TRAIN, "norm=faulty")
    assert outcome.status == 2
    assert outcome.err.startswith("bnexp: norm=faulty is ambiguous: ")


GLOBAL = "# @package _global_\nnorm:\n  name: faulty\n"


@pytest.mark.parametrize(
    ("yaml", "line"),
    [
        ("name: batch\n", "norm.name=batch is not allowed: norm=faulty is chosen, whose name is faulty"),
        ("name: faulty\nwidth: 3\n", "norm.width"),
        (
            "# @package _global_\nnorm:\n  name: faulty\nhydra:\n  callbacks: {x: {_target_: os.system}}\n",
            "hydra.callbacks",
        ),
        ("# @package _global_\nnorm:\n  name: faulty\nexecutor:\n  setup: ls\n", "executor"),
    ],
)
def test_a_file_with_a_fault(bnexp: Bnexp, install: Install, yaml: str, line: str) -> None:
    install(IDENTITY, yaml=yaml)
    outcome = bnexp(*TRAIN, "norm=faulty")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1), outcome
    assert line in outcome.err


def test_an_activation_an_optimizer_and_an_initialization(bnexp: Bnexp, install: Install) -> None:
    install("import torch\nentry = torch.nn.Softplus", group="act", name="softplus", package="faulty_act")
    sign = "def update(parameter, gradient, slots, numbers):\n    parameter.sub_(numbers['lr'] * gradient.sign())\n"
    optimizer = f"from bnexp.plugin import Optimizer\n{sign}entry = Optimizer(update)\n"
    install(optimizer, "optim", "sign", "name: sign\nlr: 0.01\nweight_decay: 0.0\nschedule: constant\n", "faulty_optim")
    install(
        "def entry(config, weight, random):\n    return weight.fill_(0.01)\n", "init", "same", package="faulty_init"
    )
    outcome = bnexp(*TRAIN, "act=softplus", "optim=sign", "init=same", "norm=batch")
    assert (outcome.status, outcome.err) == (0, "")
    plugins_used = json.loads(Path("r/run.json").read_text())["plugins"]
    assert plugins_used == {"act": "faulty_act 1.0", "optim": "faulty_optim 1.0", "init": "faulty_init 1.0"}


# ---- bnexp check

NORM = """import torch
from bnexp.plugin import Norm, scalar

class Faulty(torch.nn.Module):
    def __init__(self, config, features):
        super().__init__()
        self.eps, self.calls = scalar(config.eps), 0
        self.weight = torch.nn.Parameter(torch.ones(features))

    def forward(self, x):
        self.calls += 1
        y = {}
        return y * self.weight.view(1, -1, *(1 for _ in x.shape[2:]))

entry = Norm(Faulty{})
"""
HALF = """

class Half(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient / 2
"""
UNFIT = {
    "shape": (NORM.format("x if self.training else x[:1]", ""), "(4, 8, 5, 5) becomes (1, 8, 5, 5) in evaluation"),
    "gradient": (NORM.format("Half.apply(x)", "") + HALF, "it differs from finite differences"),
    "repeatable": (NORM.format("x + torch.rand(1)", ""), "as of global random numbers"),
    "resumable": (NORM.format("x * self.calls", ""), "something is neither parameter nor buffer, and is lost"),
}


def statuses(text: str) -> dict[str, str]:
    """Check → its status and reason, as `bnexp check` prints them."""
    return dict(line.strip().split(": ", 1) for line in text.splitlines()[1:])


@pytest.mark.parametrize("fault", UNFIT)
def test_what_is_unfit_is_named(bnexp: Bnexp, install: Install, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr("bnexp.training.entry_check.compiler_problem", lambda device: "no compiler today")
    code, reason = UNFIT[fault]
    install(code)
    outcome = bnexp("check", "norm/faulty")
    assert outcome.status == 1, outcome
    assert outcome.out.startswith("norm=faulty of faulty 1.0\n")
    assert statuses(outcome.out)[fault].startswith("failed: ")
    assert reason in statuses(outcome.out)[fault]
    assert statuses(outcome.out)["stackable"] == "skipped: no compiler today"


@pytest.mark.extra
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
def test_a_number_that_the_code_of_a_stack_shares(bnexp: Bnexp, install: Install) -> None:
    """It is declared as stackable, but read as a number when the layer is made."""
    code = NORM.format("x + self.number", ', ("eps",)').replace("0\n", "0\n        self.number = config.eps\n", 1)
    install(code, yaml="name: faulty\neps: 0.5\n")
    outcome = bnexp("check", "norm/faulty")
    assert outcome.status == 1, outcome
    assert "are the stackable numbers read from buffers?" in statuses(outcome.out)["stackable"]


@pytest.mark.extra
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "name", ["norm/switchable", "arch/plain20", "norm/batch", "norm/conditional_instance", "act/elu"]
)
def test_what_is_fit_passes(bnexp: Bnexp, name: str) -> None:
    conditions = ["dataset.conditions=[plain,inverted]"] if "conditional" in name else []
    outcome = bnexp("check", name, *conditions)
    assert outcome.status == 0, outcome
    assert "failed" not in outcome.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "check= is not allowed: GROUP/NAME"),
        (["switchable"], "check=switchable is not allowed: GROUP/NAME"),
        (["norm/nothing"], "norm=nothing is unknown"),
        (["norm/batch", "norm.epsilon=1"], "norm.epsilon is not a key"),
    ],
)
def test_what_is_refused(bnexp: Bnexp, words: list[str], line: str) -> None:
    outcome = bnexp("check", *words)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(f"bnexp: {line}")
