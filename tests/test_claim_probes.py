"""What claims read off checkpoints, against the same by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from conftest import Bnexp
from torch import Tensor

from bnexp.checkpoint import load_checkpoint
from bnexp.claims import probes
from bnexp.claims.probes import accuracy_on_mixture, over_probes
from bnexp.config import recorded
from bnexp.data import load_data
from bnexp.probe import probe_run
from bnexp.runs import RunRecord, find_runs

WORDS = ("dataset=digits", "arch.hidden=[12,10]", "optim.lr=0.2", "steps=60", "eval.first_every=30")
STYLES = ("plain", "edges")


MADE: dict[tuple[str, ...], RunRecord] = {}


def trained(bnexp: Bnexp, *words: str) -> RunRecord:
    if words not in MADE:
        assert bnexp("train", *WORDS, *words, "hydra.run.dir=mine").status == 0
        [MADE[words]] = find_runs([Path("mine").resolve()])
    return MADE[words]


def answers(tensors: dict[str, Tensor], x: Tensor, share: float) -> Tensor:
    """Of the network with its two γ and β mixed, layer by layer."""
    x = x.flatten(1)
    for number in range(2):
        layer, norm = f"parameters.hidden.{number}.layer", f"hidden.{number}.norm"
        mean, variance = (tensors[f"buffers.{norm}.norm.{name}"] for name in ("running_mean", "running_var"))
        gamma, beta = (
            (1 - share) * tensors[f"parameters.{norm}.{name}"][0] + share * tensors[f"parameters.{norm}.{name}"][1]
            for name in ("weight", "bias")
        )
        x = F.batch_norm(F.linear(x, tensors[f"{layer}.weight"]), mean, variance, gamma, beta).relu()
    return F.linear(x, tensors["parameters.classifier.weight"], tensors["parameters.classifier.bias"]).argmax(1)


@pytest.mark.parametrize(("images", "norms"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.25, 1.0)])
def test_accuracy_on_mixed_images(bnexp: Bnexp, images: float, norms: float) -> None:
    run = trained(bnexp, "norm=conditional_batch", f"dataset.conditions=[inverted,{','.join(STYLES)}]")
    tensors, data = load_checkpoint(run.directory / "checkpoint.safetensors"), load_data(recorded(run.config).dataset)
    pair = {name: t[1:] if name.startswith("parameters.") and ".norm." in name else t for name, t in tensors.items()}
    third = len(data.test) // 3
    plain, edges = (data.test.pixels[place * third : (place + 1) * third].float() for place in (1, 2))
    right = answers(pair, data.scaled((1 - images) * plain + images * edges), norms) == data.test.labels[:third]
    assert 0.2 < right.double().mean() < 1
    assert accuracy_on_mixture(run, STYLES, images, norms) == pytest.approx(float(right.double().mean()), abs=2 / third)


def test_a_runs_checkpoints_are_probed_once(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = trained(bnexp, "norm=batch", "eval.keep=true"), list[Path]()

    def counted(run: RunRecord) -> list[probes.Probe]:
        calls.append(run.directory)
        return probe_run(run)

    monkeypatch.setattr(probes, "probe_run", counted)
    expected = np.mean([probe.smoothness for probe in probe_run(run)])
    assert over_probes(lambda probe: probe.smoothness)(run) == pytest.approx(expected)
    assert over_probes(lambda probe: probe.step)(run) == 30
    assert calls == [run.directory]
