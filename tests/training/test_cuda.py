"""On a CUDA device, where there is one: the CPU's curves, and a member's in company, within a stated tolerance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bnexp.runs.config import ArchConfig, DatasetConfig, NormConfig, OptimConfig, RunConfig
from bnexp.runs.directory import Launch
from bnexp.training.device import decide_compilation
from bnexp.training.loop import train_together
from bnexp.training.member import create_or_reopen_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TOLERANCE = 0.02  # of validation accuracy, at each evaluation
# At a learning rate of 0.1 the last bits of the starting weights change these norms' curves by up to 0.37 on a CPU.
STEEP = {"layer": 0.02, "group": 0.02, "rms": 0.02}
CONFIG = RunConfig(
    dataset=DatasetConfig("digits", validation=200), optim=OptimConfig(lr=0.1), steps=300, device="cuda", compile=True
)


def curve(configs: list[RunConfig], folder: Path) -> list[float]:
    """Validation accuracies of the first of these, trained together."""
    members = [
        create_or_reopen_run(c, Launch(folder / str(i), [], i, decide_compilation(c)), len(configs))
        for i, c in enumerate(configs)
    ]
    train_together(members)
    assert isinstance(members[0].outcome, dict), members[0].outcome
    return members[0].accuracy


@pytest.mark.parametrize("norm", ["none", "batch", "batch_scratch", "noisy_batch", "layer", "group", "rms"])
@pytest.mark.parametrize("arch", ["mlp", "convnet"])
def test_curves_of_the_cpu(norm: str, arch: str, tmp_path: Path) -> None:
    optim = OptimConfig(lr=STEEP.get(norm, 0.1))
    config = replace(CONFIG, norm=NormConfig(norm), arch=ArchConfig(arch, channels=[8]), optim=optim)
    expected = curve([replace(config, device="cpu", threads=1, compile=False)], tmp_path / "cpu")
    assert curve([config], tmp_path / "cuda") == pytest.approx(expected, abs=TOLERANCE)


def test_an_uncompiled_curve(tmp_path: Path) -> None:
    """Its numbers stay on the CPU; Adam reads all of them, and the step."""
    config = replace(CONFIG, compile=False, optim=OptimConfig("adam", lr=0.001))
    expected = curve([replace(config, device="cpu", threads=1)], tmp_path / "cpu")
    assert curve([config], tmp_path / "cuda") == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("size", [2, 17])
def test_company_changes_no_curve(size: int, tmp_path: Path) -> None:
    configs = [replace(CONFIG, norm=NormConfig("batch"), seed=seed) for seed in range(size)]
    alone = curve(configs[:1], tmp_path / "alone")
    assert curve(configs, tmp_path / "together") == pytest.approx(alone, abs=TOLERANCE)
