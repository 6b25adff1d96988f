"""What claims read off checkpoints and starts, against the same computed in another way, on the digits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnexp.archs.registry import make_model
from bnexp.claims.probes import (
    distinct_answers,
    gradient_growth,
    gradient_norms,
    right_one_by_one,
    train_test_gap,
)
from bnexp.cli.main import run
from bnexp.data import load_data
from bnexp.runs import RunRecord, find_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    folder = tmp_path_factory.mktemp("probes") / "sweep"
    words = ["dataset=digits", "steps=60", "optim.lr=0.1", "init=kaiming", "arch.depth=4", "norm=none,batch"]
    assert run(["train", "-m", *words, f"hydra.sweep.dir={folder}"]) == 0
    return {found.config["norm"]["name"]: found for found in find_runs([folder])}


def by_hand(found: RunRecord) -> nn.Module:
    """The trained network, its weights read with safetensors alone."""
    from safetensors.torch import load_file  # noqa: PLC0415

    config = found.located()
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    tensors = load_file(Path(found.directory, "checkpoint.safetensors"))
    state = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.split(".")[0] in ("parameters", "buffers")}
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gap_between_training_and_test_accuracy(runs: dict[str, RunRecord], norm: str) -> None:
    model, data = by_hand(runs[norm]).eval(), load_data(runs[norm].located().dataset)
    train, test = (
        float((model(data.scaled(images.pixels)).argmax(1) == images.labels).double().mean())
        for images in (data.train, data.test)
    )
    assert train_test_gap(runs[norm]) == pytest.approx(train - test, abs=1e-6)
    assert train > 0.3


def test_single_images_in_training_mode_all_get_one_answer(runs: dict[str, RunRecord]) -> None:
    """Each unit is its own mean: what is left is β, the same for every image. Without the norm they differ."""
    assert distinct_answers(runs["batch"]) == 1
    assert distinct_answers(runs["none"]) > 1
    data = load_data(runs["batch"].located().dataset)
    shares = torch.bincount(data.test.labels[:200], minlength=10) / 200
    assert min(abs(float(share) - right_one_by_one(True)(runs["batch"])) for share in shares) < 1e-6
    assert right_one_by_one(False)(runs["batch"]) > 0.5


def test_gradient_norms_of_a_plain_network_by_hand(runs: dict[str, RunRecord]) -> None:
    """Backpropagation written out: δ of a layer is (δ of the next, through its weights), where ReLU let it pass."""
    config = runs["none"].located()
    from bnexp.batches import Order  # noqa: PLC0415
    from bnexp.init import initialize  # noqa: PLC0415

    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    initialize(model, config.init, config.seed)
    weights = [p.detach().double() for name, p in model.named_parameters() if name.endswith("weight")]
    batch = data.train[Order(config.seed, len(data.train), config.batch_size).batch(0)]
    activation, outputs = data.scaled(batch.pixels).double().flatten(1), []
    for weight in weights[:-1]:
        outputs.append(activation @ weight.T)
        activation = outputs[-1].clamp_min(0)
    delta = torch.softmax(activation @ weights[-1].T, 1) - nn.functional.one_hot(batch.labels, data.classes)
    delta, expected = delta / len(batch), []
    for weight, output in zip(reversed(weights[1:]), reversed(outputs), strict=True):
        delta = (delta @ weight) * (output > 0)
        expected.append(float(delta.square().sum()))
    norms = gradient_norms(runs["none"])
    assert norms == pytest.approx(expected[::-1], rel=1e-9)
    slope = np.polyfit(range(4), np.log(norms), 1)[0]
    assert gradient_growth(runs["none"]) == pytest.approx(np.exp(-slope))
