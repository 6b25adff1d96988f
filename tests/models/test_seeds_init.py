"""Random numbers by purpose, and starting weights."""

import math

import pytest
import torch
from builders import IMAGES_ONLY, OF_WEIGHTS
from test_archs import SMALL
from torch import Tensor, nn

from bnexp.models.init import INITS, initialize
from bnexp.models.norm_registry import NORMS
from bnexp.models.registry import make_model
from bnexp.runs.config import ArchConfig, ConfigError, InitConfig, NormConfig, RunConfig
from bnexp.runs.seeds import generator

SHAPE = (1, 20, 20)
LARGE = {"linear": lambda: nn.Linear(1000, 600), "conv": lambda: nn.Conv2d(120, 200, 3)}
FANS = {"linear": (1000, 600), "conv": (120 * 9, 200 * 9)}


def draws(seed: int, *purpose: str | int) -> Tensor:
    return torch.rand(100, generator=generator(seed, *purpose))


def start(norm: str, arch: str = "mlp", init: str = "normal", seed: int = 0) -> dict[str, Tensor]:
    config = RunConfig(arch=ArchConfig(arch, **SMALL[arch]), norm=NormConfig(norm), init=InitConfig(init))
    model = make_model(config, SHAPE, 10, device="cpu")
    initialize(model, config.init, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def large(kind: str, init: InitConfig) -> nn.Linear | nn.Conv2d:
    torch.manual_seed(5)
    model = nn.Sequential(LARGE[kind]())
    initialize(model, init, seed=0)
    return model[0]


@pytest.mark.parametrize("global_seed", [0, 1, 12345])
def test_generator_does_not_depend_on_global_state(global_seed: int) -> None:
    expected = draws(3, "order", 1)
    torch.manual_seed(global_seed)
    torch.rand(7)
    assert torch.equal(draws(3, "order", 1), expected)


def test_generator_leaves_global_state() -> None:
    torch.manual_seed(0)
    expected = torch.rand(5)
    torch.manual_seed(0)
    draws(3, "order", 1)
    assert torch.equal(torch.rand(5), expected)


def test_purposes_and_seeds_have_numbers_of_their_own() -> None:
    words = [
        (0, "order", 0),
        (1, "order", 0),
        (0, "order", 1),
        (0, "augment", 0),
        (0, "order"),
        (2**63 - 1, "order", 0),
    ]
    first = {tuple(draws(seed, *purpose)[:3].tolist()) for seed, *purpose in words}
    assert len(first) == len(words)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("arch", SMALL)
def test_same_seed_same_weights(arch: str, init: str) -> None:
    first = start("batch", arch, init)
    torch.manual_seed(99)
    again, other = start("batch", arch, init), start("batch", arch, init, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, tensor in first.items() if name.endswith("weight") and tensor.dim() > 1]
    assert len(drawn) == {"mlp": 3, "convnet": 4, "lenet": 4, "vgg": 11, "resnet": 8, "densenet": 10}[arch]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_a_start_follows_from_the_name_alone() -> None:
    """Neither from the order of the layers nor from what else is drawn."""
    one, two = (nn.ModuleDict({name: nn.Linear(4, 3) for name in names}) for names in ("ab", "cba"))
    for model in (one, two):
        initialize(model, InitConfig("torch"), seed=0)
    for name in "ab":
        assert torch.equal(one[name].weight, two[name].weight)
        assert torch.equal(one[name].bias, two[name].bias)
    assert not torch.equal(one["a"].weight, one["b"].weight)


@pytest.mark.parametrize("arch", SMALL)
def test_arms_share_the_start_of_every_parameter_they_share(arch: str) -> None:
    """With init=torch, which draws biases as well."""
    control = start("none", arch, "torch")
    for norm in NORMS:
        if (arch == "mlp" and norm in IMAGES_ONLY) or (arch == "densenet" and norm in OF_WEIGHTS):
            continue
        arm = start(norm, arch, "torch")
        shared = control.keys() & arm.keys()
        assert {name for name in control if name.endswith("weight")} <= shared, norm
        assert all(torch.equal(control[name], arm[name]) for name in shared), norm


def standard_deviation(init: str, fan_in: int, fan_out: int) -> float:
    formulas = {
        "normal": 0.2,
        "xavier": math.sqrt(2 / (fan_in + fan_out)),
        "kaiming": math.sqrt(2 / fan_in),
        "torch": 1 / math.sqrt(3 * fan_in),
    }
    return formulas[init]


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("init", INITS)
def test_distribution_of_weights(init: str, kind: str) -> None:
    weight = large(kind, InitConfig(init, std=0.2)).weight.detach().double()
    expected = standard_deviation(init, *FANS[kind])
    assert float(weight.mean()) == pytest.approx(0, abs=5 * expected / math.sqrt(weight.numel()))
    assert float(weight.std()) == pytest.approx(expected, rel=0.01)
    largest = float(weight.abs().max()) / expected
    if init in ("xavier", "torch"):  # uniform: the bound is √3 standard deviations
        assert 0.999 * math.sqrt(3) < largest <= math.sqrt(3) * (1 + 1e-6)
    else:  # a normal's largest of 200,000 and more
        assert 4 < largest < 7


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("init", INITS)
def test_biases(init: str, kind: str) -> None:
    bias = large(kind, InitConfig(init)).bias.detach()
    bound = 1 / math.sqrt(FANS[kind][0])
    if init == "torch":
        assert 0.9 * bound < float(bias.abs().max()) <= bound
        assert float(bias.mean()) == pytest.approx(0, abs=0.2 * bound)
    else:
        assert not bias.any()


@pytest.mark.parametrize("norm", ["batch", "layer", "group"])
def test_norms_start_as_the_plain_formula(norm: str) -> None:
    start_of = start(norm)
    assert bool((start_of["hidden.0.norm.weight"] == 1).all())
    assert not start_of["hidden.0.norm.bias"].any()


def test_standard_deviation_of_zero() -> None:
    assert not large("linear", InitConfig("normal", std=0.0)).weight.any()


def test_unknown_init_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"init=he .* choose from normal, xavier, kaiming, torch"):
        initialize(nn.Linear(2, 2), InitConfig("he"), 0)
