"""Architectures: shapes, the norm's place, biases, parameter counts, refusals."""

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from builders import IMAGES_ONLY, OF_WEIGHTS
from conftest import Bnexp
from torch import Tensor, nn

from bnexp.cli.compose import configurations
from bnexp.models.activations import ACTIVATIONS, make_activation
from bnexp.models.block import Block, Builder
from bnexp.models.init import initialize
from bnexp.models.norm_registry import NORMS, make_norm
from bnexp.models.registry import ARCHS, make_model, notes, stacks
from bnexp.runs.config import ActConfig, ArchConfig, ConfigError, NormConfig, RunConfig

CLASSES = 7
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 24)]
GREY, COLOUR = SHAPES[1], SHAPES[3]
MNIST = (1, 28, 28)
BIAS = {  # norm, its position, arch.bias → whether a block's layer has a bias
    ("none", "before", "auto"): True,
    ("none", "after", "auto"): True,
    ("batch", "before", "auto"): False,
    ("batch", "after", "auto"): True,
    ("batch", "before", True): True,
    ("batch", "after", False): False,
    ("none", "before", False): False,
    ("rms", "before", "auto"): True,
}


SMALL: dict[str, dict[str, object]] = {
    "mlp": {"hidden": [8, 12]},
    "convnet": {"channels": [4, 8], "dense": 12},
    "lenet": {"channels": [4], "hidden": [8, 12]},
    "vgg": {"channels": [4, 4, 4, 4, 8, 8, 8, 8], "dense": 12},
    "resnet": {"channels": [4, 8, 8], "depth": 8},
    "densenet": {"depth": 10, "growth": 4},
}
assert set(SMALL) == set(ARCHS) - {"torchvision"}, "which has tests of its own"
POSITIONED = ("mlp", "convnet", "lenet", "vgg")  # have arch.norm_position


def small(arch: str, norm: str = "batch", act: str = "relu", **changes: object) -> RunConfig:
    architecture = ArchConfig(arch, **{**SMALL.get(arch, {}), **changes})
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


def unfit(arch: str, norm: str) -> bool:
    """Whether an architecture has no place for a norm: images for one, a layer right before it for another."""
    return (arch == "mlp" and norm in IMAGES_ONLY) or (arch == "densenet" and norm in OF_WEIGHTS)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", SMALL)
def test_every_combination_trains(arch: str, norm: str) -> None:
    for act in ACTIVATIONS:
        config = small(arch, norm, act)
        if unfit(arch, norm):
            with pytest.raises(ConfigError, match=rf"norm={norm} .* arch={arch}"):
                build(config, GREY)
        else:
            check_steps(config)


def check_steps(config: RunConfig) -> None:
    """Two of gradient descent; tests/test_engine.py has the engine's."""
    model, x, labels = build(config, GREY), images(GREY), torch.tensor([3, 1, 2])
    start = model.classifier.bias.detach().clone()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    assert math.isfinite(loss.item()), config
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters()), config
    assert not torch.equal(model.classifier.bias, start), config


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("arch", SMALL)
def test_logits_of_colour_images(arch: str, norm: str) -> None:
    if not unfit(arch, norm):
        check_logits(build(small(arch, norm), COLOUR), COLOUR)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("arch", SMALL)
def test_sizes_of_images(arch: str, shape: tuple[int, int, int]) -> None:
    if (arch, shape) == ("vgg", (1, 8, 8)):
        with pytest.raises(ConfigError, match="arch=vgg needs at least 17×17 pixels, not 8×8"):
            build(small(arch), shape)
        return
    check_logits(build(small(arch), shape), shape)


def check_logits(model: nn.Module, shape: tuple[int, int, int]) -> None:
    for training in (True, False):
        logits = model.train(training)(images(shape)).detach()
        assert logits.shape == (3, CLASSES)
        assert bool(torch.isfinite(logits).all())
        assert float(logits.std()) > 0


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("arch", POSITIONED)
def test_norm_position(arch: str, position: str) -> None:
    block = blocks(build(small(arch, act="sigmoid", norm_position=position), MNIST))[0]
    x = images(MNIST).flatten(1) if arch == "mlp" else images(MNIST)
    activate, layer = make_activation("sigmoid"), block.layer
    expected = block.norm(activate(layer(x))) if position == "after" else activate(block.norm(layer(x)))
    assert torch.equal(block(x), block.pool(expected) if block.pool else expected)


def test_norm_positions_differ() -> None:
    before, after = (
        build(small("mlp", norm_position=p, bias=False), MNIST)(images(MNIST)) for p in ("before", "after")
    )
    assert not torch.allclose(before, after)


@pytest.mark.parametrize(("norm", "position", "bias"), BIAS)
@pytest.mark.parametrize("arch", POSITIONED)
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


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize(("norm", "bias"), [("none", True), ("rms", True), ("batch", False), ("group", False)])
def test_bias_of_a_residual_network(norm: str, bias: bool, pre_activation: bool) -> None:
    model = build(small("resnet", norm, pre_activation=pre_activation), MNIST)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.bias is not None for layer in layers] == [bias] * 7
    assert model.classifier.bias is not None


@pytest.mark.parametrize(
    ("arch", "norms"), [("mlp", 2), ("convnet", 3), ("lenet", 3), ("vgg", 10), ("resnet", 7), ("densenet", 9)]
)
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


@pytest.mark.parametrize("arch", SMALL)
def test_on_the_meta_device_a_model_has_no_values(arch: str) -> None:
    assert all(parameter.is_meta for parameter in make_model(small(arch), MNIST, 10).parameters())


# ---- the published counts


@pytest.mark.parametrize(
    ("arch", "keys", "published"),
    [
        ("resnet", {"depth": 20}, 0.27e6),  # He et al. 2016, table 6
        ("resnet", {"depth": 32}, 0.46e6),
        ("resnet", {"depth": 56}, 0.85e6),
        ("densenet", {"depth": 40, "growth": 12}, 1.0e6),  # Huang et al. 2017, table 2
    ],
)
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_parameter_counts_of_the_papers(arch: str, keys: dict[str, object], published: float, norm: str) -> None:
    config = RunConfig(arch=ArchConfig(arch, **{"channels": [16, 32, 64], **keys}), norm=NormConfig(norm))
    model = make_model(config, (3, 32, 32), 10)
    learned_by_norms = sum(p.numel() for name, p in model.named_parameters() if ".norm." in name)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e4) == pytest.approx(round(published / 1e4), abs=2 if arch == "densenet" else 0.5)
    assert learned_by_norms < 0.03 * count


def layers(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())


@pytest.mark.parametrize(("arch", "depths"), [("resnet", (8, 20, 32, 56)), ("densenet", (7, 22, 40))])
def test_depth_counts_the_layers(arch: str, depths: tuple[int, ...]) -> None:
    for depth in depths:
        assert layers(make_model(small(arch, depth=depth), (3, 32, 32), 10)) == depth


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 9), ("resnet", 2), ("densenet", 8), ("densenet", 4)])
def test_other_depths_are_refused(arch: str, depth: int) -> None:
    with pytest.raises(ConfigError, match=rf"arch.depth={depth} is not allowed: arch={arch} has"):
        make_model(small(arch, depth=depth), MNIST, CLASSES)


def test_vgg_has_eight_convolutions() -> None:
    with pytest.raises(ConfigError, match=r"arch.channels=\[4, 8\] is not allowed: arch=vgg has 8"):
        make_model(small("vgg", channels=[4, 8]), MNIST, CLASSES)
    model = build(small("vgg"), (3, 32, 32))
    assert layers(model) == 11
    assert model.dense[0].layer.weight.shape[1] == build(small("vgg"), MNIST).dense[0].layer.weight.shape[1] == 8


def test_lenet_of_the_book() -> None:
    """6 and 16 channels, 256 inputs to the dense layers, 44,426 parameters without batch normalization."""
    config = RunConfig(arch=ArchConfig("lenet", channels=[6, 16], hidden=[120, 84]), norm=NormConfig("none"))
    model = make_model(config, MNIST, 10)
    assert model.hidden[0].layer.weight.shape == (120, 256)
    assert sum(parameter.numel() for parameter in model.parameters()) == 44_426


# ---- residual blocks


def test_basic_block_by_hand() -> None:
    """Against the formula of the paper with torch's functions; the second stage halves and widens."""
    model = build(small("resnet", "batch", residual_init_zero=False), MNIST).eval()
    block, x = model.stages[1][0], torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    y = nn.functional.conv2d(x, block.first.layer.weight, stride=2, padding=1)
    y = torch.relu(block.first.norm(y))
    y = block.norm(nn.functional.conv2d(y, block.layer.weight, padding=1))
    shortcut = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 4, 3, 3)], 1)
    torch.testing.assert_close(block(x), torch.relu(shortcut + y))


def test_pre_activation_block_by_hand() -> None:
    model = build(small("resnet", "layer", pre_activation=True), MNIST)
    block, x = model.stages[0][0], torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    y = nn.functional.conv2d(torch.relu(block.first.norm(x)), block.first.layer.weight, padding=1)
    y = nn.functional.conv2d(torch.relu(block.second.norm(y)), block.second.layer.weight, padding=1)
    torch.testing.assert_close(block(x), x + y)


@pytest.mark.parametrize(
    ("norm", "keys"),
    [
        ("batch", {"residual_init_zero": True}),
        ("noisy_batch", {"residual_init_zero": True}),
        ("none", {"skip_init": True}),
        ("none", {"skip_init": True, "pre_activation": True}),
    ],
)
def test_a_block_starts_as_its_shortcut(norm: str, keys: dict[str, object]) -> None:
    block = build(small("resnet", norm, act="identity", **keys), MNIST).stages[0][0]
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(block(x), x)
    loss = (block(x) ** 3).sum()
    loss.backward()
    moved = block.factor if "skip_init" in keys else next(block.norm.parameters())
    assert bool((moved.grad != 0).all())


@pytest.mark.parametrize(
    ("norm", "keys", "why"),
    [
        ("none", {}, "arch.skip_init=true does the same"),
        ("batch", {"skip_init": True}, "with arch.skip_init=true both factors of a branch would be 0"),
        ("frozen_batch", {}, "needs a norm that learns a scale"),
        ("batch", {"pre_activation": True}, "ends in a convolution"),
    ],
)
def test_residual_init_zero_needs_a_last_scale(norm: str, keys: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"arch.residual_init_zero=true is not allowed: .*{why}"):
        make_model(small("resnet", norm, residual_init_zero=True, **keys), MNIST, CLASSES)


def test_dense_block_by_hand() -> None:
    """Every layer reads all channels before it and adds `growth` of its own."""
    model = build(small("densenet", "layer"), MNIST)
    x = torch.randn(2, 16, 6, 6, generator=torch.Generator().manual_seed(1))
    first, second = (layer.branch for layer in model.parts[0])
    one = torch.cat([x, nn.functional.conv2d(torch.relu(first.norm(x)), first.layer.weight, padding=1)], 1)
    two = nn.functional.conv2d(torch.relu(second.norm(one)), second.layer.weight, padding=1)
    torch.testing.assert_close(model.parts[0](x), torch.cat([one, two], 1))
    assert model.classifier.in_features == 16 + 3 * 2 * 4


# ---- refusals


@pytest.mark.parametrize("shape", [(1, 3, 8), (1, 8, 3)], ids=str)
def test_images_too_small_for_the_pooling_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match=r"arch.channels=\[4, 8\] .* at least 4×4 pixels, not " + f"{shape[1]}×"):
        make_model(small("convnet"), shape, CLASSES)


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_images_are_accepted(norm: str) -> None:
    logits = build(small("convnet", norm), (1, 4, 4))(images((1, 4, 4), 2))
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("arch", SMALL)
def test_channels_that_the_groups_do_not_divide_are_refused(arch: str) -> None:
    with pytest.raises(ConfigError, match=r"norm.groups=4"):
        make_model(
            small(arch, "group", hidden=[6], channels=[6] * (8 if arch == "vgg" else 1), growth=6), MNIST, CLASSES
        )


def test_stages_that_narrow_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"arch.channels narrows from 8 to 4, which is not allowed"):
        make_model(small("resnet", channels=[8, 4], depth=6), MNIST, CLASSES)


def test_the_shipped_choices_fit_one_another() -> None:
    with configurations() as composer:
        archs = {name: composer.compose_run([f"arch={name}"]).arch for name in SMALL}
        norms = {name: composer.compose_run([f"norm={name}"]).norm for name in NORMS}
    refused = []
    for arch, norm in product(SMALL, NORMS):
        try:
            make_model(RunConfig(arch=archs[arch], norm=norms[norm]), (3, 32, 32), 10)
        except ConfigError as error:
            refused.append((arch, norm, str(error)))
    expected = {(arch, norm) for arch, norm in product(SMALL, NORMS) if unfit(arch, norm)} | {("lenet", "group")}
    assert {(arch, norm) for arch, norm, _ in refused} == expected
    [groups] = [message for arch, norm, message in refused if (arch, norm) == ("lenet", "group")]
    assert "norm.groups=4 does not divide" in groups, "of 6 channels, as published"


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
    assert notes(small("mlp", "rms")) == []
    assert "no norm on the dense layer" in notes(small("convnet", "instance"))
    assert "no norm on the dense layer" not in notes(small("resnet", "instance"))


def test_only_the_mlp_stacks() -> None:
    assert stacks(small("mlp"))
    assert not any(stacks(small(arch)) for arch in ARCHS if arch != "mlp")


# ---- what the layers are given


@pytest.mark.parametrize(
    ("words", "layer"),
    [
        ("batch_size=1", "hidden.0.norm"),
        ("batch_size=1 norm=batch_scratch", "hidden.0.norm"),
        ("batch_size=1 norm=noisy_batch", "hidden.0.norm.norm"),
        ("batch_size=1 norm=conditional_batch dataset.conditions=[plain]", "hidden.0.norm.norm"),
        ("batch_size=1 arch=convnet", "dense.norm"),  # whose maps have positions enough
        ("arch.hidden=[8,1] norm=layer", "hidden.1.norm"),
        ("arch.hidden=[4] norm=group norm.groups=4", "hidden.0.norm"),
        ("arch=convnet arch.dense=4 norm=group norm.groups=4", "dense.norm"),
        ("arch=convnet arch.dense=1 norm=layer", "dense.norm"),
        ("arch=small_maps norm=instance", "norm"),
        ("arch=small_maps norm=batch batch_size=1", "norm"),
        ("arch=small_maps norm=group norm.groups=4", "norm"),
    ],
)
def test_a_norm_of_single_values_is_refused_by_its_layer(bnexp: Bnexp, small_maps: str, words: str, layer: str) -> None:
    outcome = bnexp("train", "--config-dir", small_maps, "dataset=digits", "steps=2", *words.split())
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert f": {layer} " in outcome.err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "words",
    [
        "batch_size=2",
        "batch_size=1 norm=none",
        "batch_size=1 norm=layer",
        "batch_size=1 norm=frozen_batch",
        "batch_size=1 arch=resnet arch.depth=8",  # no dense layer with a norm: 8×8, 4×4 and 2×2 positions
        "batch_size=1 arch=densenet arch.depth=7",
        "batch_size=1 arch=convnet norm=instance arch.channels=[4]",
        "arch=small_maps norm=batch batch_size=2",
        "arch=small_maps norm=layer batch_size=1",
        "arch=small_maps norm=group norm.groups=2 batch_size=1",
    ],
)
def test_a_norm_of_two_values_and_more_trains(bnexp: Bnexp, small_maps: str, words: str) -> None:
    small = ("dataset.limit=20", "dataset.validation=10", "threads=1", "hydra.run.dir=mine")
    outcome = bnexp("train", "--config-dir", small_maps, "dataset=digits", "steps=2", *small, *words.split())
    assert outcome.status == 0, outcome.err
    assert json.loads(Path("mine/summary.json").read_text())["status"] == "finished"


class SmallMaps(nn.Module):
    """A network that somebody adds, with a norm on maps of one position."""

    def __init__(self, builder: Builder, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(shape[0], 4, shape[1:]), make_norm(builder.norm, 4)
        self.classifier = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.norm(self.layer(x)).flatten(1))
        return logits


@pytest.fixture
def small_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`arch=small_maps`, by the folder for --config-dir that is returned."""
    monkeypatch.setitem(ARCHS, "small_maps", SmallMaps)
    (tmp_path / "mine" / "arch").mkdir(parents=True)
    (tmp_path / "mine" / "arch" / "small_maps.yaml").write_text("name: small_maps\n")
    return str(tmp_path / "mine")
