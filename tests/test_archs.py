"""Architectures: shapes, the norm's place, biases, parameter counts, refusals."""

import pytest
import torch
from torch import Tensor, nn

from bnexp.activations import ACTIVATIONS, make_activation
from bnexp.archs.block import Block
from bnexp.archs.registry import ARCHS, make_model, notes, stacks
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig, RunConfig
from bnexp.init import initialize
from bnexp.norms import NORMS

CLASSES = 7
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 24)]
MNIST = (1, 28, 28)
BIAS = {  # norm, its position, arch.bias → whether a block's layer has a bias
    ("none", "before", "auto"): True,
    ("none", "after", "auto"): True,
    ("batch", "before", "auto"): False,
    ("batch", "after", "auto"): True,
    ("batch", "before", True): True,
    ("batch", "after", False): False,
    ("none", "before", False): False,
}


def small(arch: str, norm: str = "batch", act: str = "relu", **changes: object) -> RunConfig:
    architecture = ArchConfig(arch, **{"hidden": [8, 12], "channels": [4, 8], "dense": 12, **changes})
    return RunConfig(arch=architecture, norm=NormConfig(norm), act=ActConfig(act))


def build(config: RunConfig, shape: tuple[int, int, int]) -> nn.Module:
    model = make_model(config, shape, CLASSES, device="cpu")
    initialize(model, config.init, config.seed)
    return model


def images(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(0))


def blocks(model: nn.Module) -> list[Block]:
    return [module for module in model.modules() if isinstance(module, Block)]


@pytest.mark.parametrize(("depth", "widths"), [(None, [8, 12]), (1, [8]), (2, [8, 12]), (5, [8, 12, 8, 12, 8])])
def test_depth_repeats_the_widths(depth: int | None, widths: list[int]) -> None:
    model = build(small("mlp", depth=depth), MNIST)
    assert [block.layer.weight.shape[0] for block in blocks(model)] == widths
    assert model(images(MNIST)).shape == (3, CLASSES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", ARCHS)
def test_logits_are_finite_for_every_combination(arch: str, norm: str, act: str, shape: tuple[int, int, int]) -> None:
    config = small(arch, norm, act)
    if (arch, norm) == ("mlp", "instance"):
        with pytest.raises(ConfigError, match=r"norm=instance .* arch=mlp"):
            build(config, shape)
        return
    model = build(config, shape)
    for training in (True, False):
        logits = model.train(training)(images(shape)).detach()
        assert logits.shape == (3, CLASSES)
        assert bool(torch.isfinite(logits).all())
        assert float(logits.std()) > 0


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("arch", ARCHS)
def test_norm_position(arch: str, position: str) -> None:
    block = blocks(build(small(arch, act="sigmoid", norm_position=position), SHAPES[0]))[0]
    x = images(SHAPES[0]) if arch == "convnet" else images(SHAPES[0]).flatten(1)
    activate, layer = make_activation("sigmoid"), block.layer
    expected = block.norm(activate(layer(x))) if position == "after" else activate(block.norm(layer(x)))
    assert torch.equal(block(x), expected)


def test_norm_positions_differ() -> None:
    before, after = (
        build(small("mlp", norm_position=p, bias=False), MNIST)(images(MNIST)) for p in ("before", "after")
    )
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(("norm", "position", "bias"), BIAS)
@pytest.mark.parametrize("arch", ARCHS)
def test_bias(arch: str, norm: str, position: str, bias: bool | str) -> None:
    model = build(small(arch, norm, norm_position=position, bias=bias), MNIST)
    assert [block.layer.bias is not None for block in blocks(model)] == [BIAS[norm, position, bias]] * len(
        blocks(model)
    )
    assert model.classifier.bias is not None


def test_dense_layer_without_its_norm_keeps_its_bias() -> None:
    model = build(small("convnet", "instance"), MNIST)
    assert isinstance(model.dense.norm, nn.Identity)
    assert model.dense.layer.bias is not None
    assert [block.layer.bias for block in model.convolutions] == [None, None]


@pytest.mark.parametrize(("arch", "norms"), [("mlp", 2), ("convnet", 3)])
def test_no_norm_on_the_output_layer(arch: str, norms: int) -> None:
    model = build(small(arch), MNIST)
    inputs: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    logits = model(images(MNIST))
    assert torch.equal(logits, nn.functional.linear(inputs[0], model.classifier.weight, model.classifier.bias))
    assert sum(type(module).__name__ == "BatchNorm" for module in model.modules()) == norms


@pytest.mark.parametrize(
    ("arch", "norm", "count"),
    [
        ("mlp", "none", (784 * 100 + 100) + 2 * (100 * 100 + 100) + (100 * 10 + 10)),
        ("mlp", "batch", (784 * 100 + 200) + 2 * (100 * 100 + 200) + (100 * 10 + 10)),
        ("convnet", "none", (9 * 64 + 64) + (9 * 64 * 128 + 128) + (128 * 49 * 256 + 256) + (256 * 10 + 10)),
        ("convnet", "batch", (9 * 64 + 128) + (9 * 64 * 128 + 256) + (128 * 49 * 256 + 512) + (256 * 10 + 10)),
    ],
)
def test_parameter_count_of_the_defaults(arch: str, norm: str, count: int) -> None:
    model = make_model(RunConfig(arch=ArchConfig(arch), norm=NormConfig(norm)), MNIST, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("arch", ARCHS)
def test_on_the_meta_device_a_model_has_no_values(arch: str) -> None:
    assert all(parameter.is_meta for parameter in make_model(small(arch), MNIST, 10).parameters())


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3)], ids=str)
def test_images_too_small_for_the_pooling_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"arch.channels=\[4, 8\] .* at least 4×4 pixels, not " + f"{shape[1]}×"):
        make_model(small("convnet"), shape, CLASSES)


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_images_are_accepted(norm: str) -> None:
    logits = build(small("convnet", norm), (1, 4, 4))(images((1, 4, 4), 2))
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("arch", ARCHS)
def test_channels_that_the_groups_do_not_divide_are_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match=r"norm.groups=4"):
        make_model(small(arch, "group", hidden=[6], channels=[6]), MNIST, CLASSES)


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"arch=mpl .* choose from mlp, convnet"):
        make_model(small("mpl"), MNIST, CLASSES)
    with pytest.raises(ConfigError, match=r"act=rleu .* choose from relu, sigmoid"):
        make_model(small("mlp", act="rleu"), MNIST, CLASSES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_hand(name: str) -> None:
    x = torch.tensor([-1.5, 0.5], dtype=torch.float64)
    e, phi = x.exp(), (1 + torch.erf(x / 2**0.5)) / 2
    expected = {
        "relu": x.clamp_min(0),
        "sigmoid": e / (1 + e),
        "tanh": (e - 1 / e) / (e + 1 / e),
        "leaky_relu": torch.where(x > 0, x, 0.01 * x),
        "elu": torch.where(x > 0, x, e - 1),
        "gelu": x * phi,
        "silu": x * e / (1 + e),
        "identity": x,
    }
    torch.testing.assert_close(make_activation(name)(x), expected[name])


def test_what_sets_an_arm_apart_is_noted() -> None:
    assert notes(small("mlp", "none")) == []
    assert notes(small("mlp", "batch")) == ["no bias where the norm follows"]
    assert notes(small("mlp", "batch", norm_position="after")) == []
    assert notes(small("mlp", "batch", bias=True)) == []
    assert "no norm on the dense layer" in notes(small("convnet", "instance"))


def test_only_the_mlp_stacks() -> None:
    assert stacks(small("mlp"))
    assert not stacks(small("convnet"))
