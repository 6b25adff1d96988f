"""Conditions: styles of a data set, and networks with a scale and shift for each."""

from dataclasses import replace

import pytest
import torch
from builders import make_stack
from conftest import Bnexp

from bnexp.data.batches import Batches
from bnexp.data.conditions import CONDITIONS, in_conditions
from bnexp.data.images import Images, Source
from bnexp.data.load import load_data, split
from bnexp.runs.config import ConfigError, DatasetConfig, NormConfig, OptimConfig, RunConfig
from bnexp.training.engine import Stack

CPU = torch.device("cpu")
STYLES = ["plain", "inverted", "rotated90"]


def digits(conditions: list[str], **keys: object) -> DatasetConfig:
    return DatasetConfig("digits", validation=200, conditions=conditions, **keys)


# ---- styles


def by_hand(name: str, rows: list[list[int]], peak: int = 16) -> list[list[int]]:
    pixels = torch.tensor(rows, dtype=torch.uint8)[None, None]
    return CONDITIONS[name](pixels, peak)[0, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", [[0, 1, 2], [3, 4, 5], [6, 7, 16]]),
        ("inverted", [[16, 15, 14], [13, 12, 11], [10, 9, 0]]),
        ("rotated90", [[2, 5, 16], [1, 4, 7], [0, 3, 6]]),
        ("flipped", [[2, 1, 0], [5, 4, 3], [16, 7, 6]]),
        ("blurred", [[1, 2, 1], [2, 5, 4], [2, 5, 4]]),  # sums of the neighbours over 9, rounded to even
    ],
)
def test_styles_by_hand(name: str, expected: list[list[int]]) -> None:
    assert by_hand(name, [[0, 1, 2], [3, 4, 5], [6, 7, 16]]) == expected


def test_edges_by_hand() -> None:
    """A step of 8 from one column to the next is 8 on both sides of it, and flat areas are 0."""
    step = [[0, 0, 8, 8]] * 4
    assert by_hand("edges", step) == [[0, 8, 8, 0]] * 4
    assert by_hand("edges", [list(row) for row in zip(*step, strict=True)]) == [[0] * 4, [8] * 4, [8] * 4, [0] * 4]
    assert by_hand("edges", [[0, 0, 16, 16], [0, 0, 16, 16], [16, 16, 0, 0], [16, 16, 0, 0]])[0][1] <= 16


def test_noise_is_gaussian_and_the_same_each_time() -> None:
    grey = torch.full((50, 1, 20, 20), 128, dtype=torch.uint8)
    noisy = CONDITIONS["noise"](grey, 255)
    added = noisy.double() - 128
    assert float(added.mean()) == pytest.approx(0, abs=2)
    assert float(added[(noisy > 0) & (noisy < 255)].abs().median()) == pytest.approx(0.3 * 255 * 0.6745, rel=0.15)
    assert torch.equal(noisy, CONDITIONS["noise"](grey, 255))


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_style_keeps_kind_and_range(name: str, channels: int) -> None:
    pixels = torch.randint(0, 17, (5, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = CONDITIONS[name](pixels, 16)
    assert (found.dtype, found.shape) == (torch.uint8, pixels.shape)
    assert int(found.max()) <= 16
    assert torch.equal(found, pixels) is (name == "plain")
    as_cifar_has_them = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(CONDITIONS[name](as_cifar_has_them, 16), found)


# ---- the data set


def test_every_image_is_there_in_conditions() -> None:
    plain, styled = load_data(digits([], limit=50)), load_data(digits(STYLES, limit=50))
    for name in ("train", "validation", "test"):
        one, many = getattr(plain, name), getattr(styled, name)
        assert len(many) == 3 * len(one)
        for number, style in enumerate(STYLES):
            part = many[many.condition == number]
            assert torch.equal(part.pixels, CONDITIONS[style](one.pixels, 16))
            assert torch.equal(part.labels, one.labels)
    assert plain.train.condition is None
    assert plain.checksum != styled.checksum


def test_choosing_images_keeps_their_condition() -> None:
    images = in_conditions(Images(torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.arange(2)), STYLES, 16)
    assert images[torch.tensor([5, 0])].condition.tolist() == [2, 0]
    assert images[1:3].condition.tolist() == [0, 1]


def test_images_that_are_not_square_are_not_rotated() -> None:
    images = Images(torch.zeros(9, 1, 3, 4, dtype=torch.uint8), torch.arange(9) % 2)
    with pytest.raises(ConfigError, match="conditions=rotated90 is not allowed: images of 3×4 are not"):
        split(Source(images, images, ("a", "b")), DatasetConfig("digits", validation=2, conditions=STYLES))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("dataset.conditions=[plain,tilted]",), "dataset.conditions=tilted is unknown: choose from plain, inverted"),
        (
            ("dataset.conditions=[plain,plain]",),
            "dataset.conditions=['plain', 'plain'] is not allowed: each style once",
        ),
        (("norm=conditional_batch",), "norm=conditional_batch needs dataset.conditions"),
        (("norm=conditional_instance", "dataset.conditions=[plain]"), "it needs images, as in arch=convnet"),
        (("dataset.conditions=plain",), "a list"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, words: tuple[str, ...], complaint: str) -> None:
    outcome = bnexp("train", "dataset=digits", "steps=1", *words)
    assert outcome.status == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1


# ---- dataset.classes


def test_chosen_classes_are_numbered_in_their_order() -> None:
    everything, chosen = load_data(digits([])), load_data(digits([], classes=[7, 2]))
    assert chosen.classes == 2
    for name in ("train", "validation", "test"):
        labels = getattr(chosen, name).labels
        assert set(labels.tolist()) == {0, 1}
    for old, new in ((7, 0), (2, 1)):
        test = everything.test
        assert torch.equal(test[test.labels == old].pixels, chosen.test[chosen.test.labels == new].pixels)
    assert len(chosen.validation) == 200


@pytest.mark.parametrize("classes", ["[1]", "[1,1]", "[9,10]", "[-1,2]"])
def test_classes_that_are_not_there_are_refused(bnexp: Bnexp, classes: str) -> None:
    outcome = bnexp("train", "dataset=digits", f"dataset.classes={classes}")
    assert outcome.status == 2
    assert outcome.err.startswith(f"bnexp: dataset.classes={classes.replace(',', ', ')} is not allowed")
    assert len(outcome.err.splitlines()) == 1


# ---- training


def run_config(norm: str, conditions: list[str]) -> RunConfig:
    return RunConfig(
        dataset=digits(conditions),
        norm=NormConfig(norm),
        optim=OptimConfig(lr=0.1),
        batch_size=32,
        device="cpu",
        compile=False,
    )


def trained(configs: list[RunConfig], steps: int) -> Stack:
    data = load_data(configs[0].dataset)
    stack = make_stack(configs, data, CPU)
    batches = Batches([config.seed for config in configs], len(data.train), 32, False, CPU)
    for step in range(steps):
        stack.step(batches.batch(step))
    return stack


def test_each_condition_moves_its_own_scale() -> None:
    """Of a network that sees two conditions of three, the third's γ and β stay at 1 and 0."""
    config = run_config("conditional_batch", STYLES)
    data = load_data(config.dataset)
    two = data.train[data.train.condition < 2]
    stack = make_stack([config], replace(data, train=two), CPU)
    batches = Batches([0], len(two), 32, False, CPU)
    for step in range(20):
        stack.step(batches.batch(step))
    weight, bias = (stack.members[0].parameters[f"hidden.0.norm.{name}"] for name in ("weight", "bias"))
    assert weight.shape == (3, 100)
    assert torch.equal(weight[2], torch.ones(100))
    assert torch.equal(bias[2], torch.zeros(100))
    assert not torch.equal(weight[0], weight[1])
    assert float((weight[:2] - 1).abs().max()) > 1e-4


def test_a_conditional_network_serves_every_style() -> None:
    stack = trained([run_config("conditional_batch", STYLES)], 400)
    test = stack.data.test
    for number in range(3):
        assert stack.evaluate(0, test[test.condition == number]).accuracy > 0.85
    swapped = Images(test.pixels, test.labels, (test.condition + 1) % 3)
    assert stack.evaluate(0, swapped).loss > stack.evaluate(0, test).loss  # each has learned a scale of its own


def test_conditional_members_are_the_same_alone_and_beside_others() -> None:
    config = run_config("conditional_batch", STYLES)
    alone, beside = trained([config], 10), trained([replace(config, seed=4), config], 10)
    first, second = alone.members[0].flat(), beside.members[1].flat()
    assert all(torch.equal(first[name], second[name]) for name in first)
