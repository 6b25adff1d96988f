"""What the members of a stack may differ in: what its owner declares, and nothing else."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from builders import IMAGES_ONLY
from conftest import Bnexp
from omegaconf import OmegaConf
from torch import Tensor, nn

from bnexp.cli.overrides import conf_dir
from bnexp.data.load import load_data
from bnexp.models.norm_registry import NORMS, Norm, make_norm
from bnexp.models.norms import KernelNorm
from bnexp.runs.config import DatasetConfig, NormConfig, RunConfig
from bnexp.training.compiler import has_compiler
from bnexp.training.engine import Stack
from bnexp.training.graph import shape_of

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
TRAIN = ("train", "dataset=digits", "arch.hidden=[8]", "eval.first_every=20", "device=cpu", "threads=1")


class LayerNormWithFloat(nn.Module):
    """A layer normalization that somebody adds: its eps is a number of Python's."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, keepdim=True, correction=0) + self.eps)


@pytest.fixture
def added_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`norm=added`, by the folder for --config-dir that is returned. Sweeps train in this process, which knows it."""
    monkeypatch.setattr("bnexp.sweeps.stacks.WORTH_WORKERS", float("inf"))
    monkeypatch.setattr("bnexp.sweeps.stacks.usable_cores", lambda: 1)
    monkeypatch.setitem(NORMS, "added", Norm(lambda config, features: LayerNormWithFloat(features, config.eps)))
    (tmp_path / "mine" / "norm").mkdir(parents=True)
    (tmp_path / "mine" / "norm" / "added.yaml").write_text("name: added\neps: 1.0e-5\nmomentum: 0.1\n")
    return str(tmp_path / "mine")


def result(folder: str) -> tuple[bytes, bytes]:
    return Path(folder, "metrics.csv").read_bytes(), Path(folder, "checkpoint.safetensors").read_bytes()


@needs_compiler
def test_a_norm_that_keeps_its_eps_as_a_float_trains_each_member_with_its_own(bnexp: Bnexp, added_norm: str) -> None:
    words = (*TRAIN, "--config-dir", added_norm, "norm=added", "steps=40", "compile=true")
    assert bnexp(*words, "-m", "norm.eps=0.001,0.5", "hydra.sweep.dir=s").status == 0
    assert [json.loads(path.read_text())["stack"] for path in Path("s").glob("*/run.json")] == [1, 1]
    for eps in ("0.001", "0.5"):
        assert bnexp(*words, f"norm.eps={eps}", f"hydra.run.dir=alone-{eps}").status == 0
        assert result(f"s/norm.eps={eps}") == result(f"alone-{eps}")
    assert result("s/norm.eps=0.001") != result("s/norm.eps=0.5")


@needs_compiler
@pytest.mark.parametrize(
    ("overrides", "stacks"),
    [
        (("norm=added", "norm.eps=1e-5,0.1"), 2),
        (("norm=added", "norm.momentum=0.1,0.2"), 2),
        (("norm=added", "seed=0,1"), 1),
        (("norm=layer", "norm.eps=1e-5,0.1"), 1),
        (("norm=batch", "norm.momentum=0.1,0.2"), 1),
        (("norm=noisy_batch", "norm.noise_shift=0.1,0.2"), 2),
        (("norm=batch", "optim=adam", "optim.beta1=0.5,0.9", "optim.eps=1e-8,1e-3"), 1),
        (("init.std=0.05,0.1",), 1),
    ],
)
def test_stacks_leave_out_what_is_declared(
    bnexp: Bnexp, added_norm: str, overrides: tuple[str, ...], stacks: int
) -> None:
    options = ("compile=true", "dry_run=true", "executor.max_stack=8")
    outcome = bnexp(*TRAIN, "--config-dir", added_norm, "-m", *overrides, *options)
    assert outcome.status == 0, outcome.err
    runs = 4 if len(overrides) == 4 else 2
    shape = "one by one" if stacks == runs else f"{stacks} stack of {runs}"
    assert f"{runs} runs: {shape}" in outcome.out


@pytest.mark.parametrize("name", NORMS)
def test_what_a_norm_declares_is_a_buffer_of_its_layer(name: str) -> None:
    """Two values make two layers that differ in a buffer and in nothing else that a step reads."""
    file = OmegaConf.load(conf_dir() / "norm" / f"{name}.yaml")
    assert set(NORMS[name].stackable) <= set(map(str, file))
    for key in NORMS[name].stackable:
        first, second = (make_norm(NormConfig(name, **{key: value}), 4) for value in (0.25, 0.5))  # type: ignore[arg-type]
        buffers = [dict(layer.named_buffers()) for layer in (first, second)]
        assert any(not torch.equal(buffers[0][part], buffers[1][part]) for part in buffers[0])


@pytest.mark.parametrize(("key", "values"), [("eps", (0.001, 0.5)), ("momentum", (0.1, 0.5))])
def test_torchs_kernels_stack_over_no_number(key: str, values: tuple[float, float]) -> None:
    """They take eps and momentum as numbers: so the form of a norm that isn't compiled declares nothing."""
    runs = [RunConfig(norm=NormConfig("batch", **{key: value})) for value in values]  # type: ignore[arg-type]
    first, second = (shape_of(run, compiled=True) for run in runs)
    assert first == second
    first, second = (shape_of(run, compiled=False) for run in runs)
    assert first != second


@needs_compiler
@pytest.mark.parametrize("compiled", [False, True])
def test_norms_are_kernels_where_the_step_is_not_compiled(compiled: bool) -> None:
    run = RunConfig(dataset=DatasetConfig("digits", validation=360), compile=compiled)
    stack = Stack([run], load_data(run.dataset), torch.device("cpu"), compiled)
    norms = [module for module in stack.model.modules() if isinstance(module, KernelNorm)]
    assert [norm.kernels for norm in norms] == [not compiled] * 3


def numbers_of(name: str) -> list[str]:
    """The keys of a norm's file that hold a real number."""
    file = OmegaConf.load(conf_dir() / "norm" / f"{name}.yaml")
    return [str(key) for key in file if isinstance(file[key], float)]


VALUES = {
    "eps": "0.001,0.03,0.5",
    "momentum": "0.05,0.3,1",
    "noise_shift": "0,0.5,2",
    "noise_scale": "1,1.25,2",
    "r_max": "1,3",
    "d_max": "0,5",
}
CASES = [*chain.from_iterable(((name, key) for key in numbers_of(name)) for name in NORMS if name not in IMAGES_ONLY)]


@needs_compiler
@pytest.mark.extra
@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_number_of_every_norm_in_a_sweep_as_alone(bnexp: Bnexp, name: str, key: str) -> None:
    styles = ("dataset.conditions=[plain,inverted]",) if name.startswith("conditional") else ()
    words = (*TRAIN, *styles, f"norm={name}", "steps=120", "compile=true", "seed=3")
    options = ("executor.workers=1", "executor.max_stack=8")
    assert bnexp(*words, "-m", f"norm.{key}={VALUES[key]}", "hydra.sweep.dir=s", *options).status == 0
    for value in VALUES[key].split(","):
        assert bnexp(*words, f"norm.{key}={value}", f"hydra.run.dir=alone-{value}").status == 0
        assert result(f"s/norm.{key}={value}") == result(f"alone-{value}"), (name, key, value)
