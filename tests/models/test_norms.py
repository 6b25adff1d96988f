"""Every normalization against torch's own module, in float64, and identities between them."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from bnexp.data.load import DATASETS
from bnexp.models.activations import ACTIVATIONS, OWN
from bnexp.models.block import Block
from bnexp.models.init import INITS, initialize
from bnexp.models.norm_registry import NORMS, make_norm
from bnexp.models.norms import BatchNorm, GroupNorm, KernelNorm
from bnexp.models.registry import ARCHS, make_model
from bnexp.runs.config import ArchConfig, ConfigError, NormConfig, RunConfig
from bnexp.training.optim import OPTIMIZERS

CONF = Path(__file__).parents[2] / "conf"
FEATURES, GROUPS, EPS = 8, 4, 1e-3
SHAPES = {"vectors": (6, FEATURES), "images": (4, FEATURES, 5, 3)}


class ImageLayerNorm(nn.Module):
    """Layer normalization of images over (C, H, W), γ and β a channel."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FEATURES)) if affine else None
        self.bias = nn.Parameter(torch.zeros(FEATURES)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[1:], eps=EPS)
        if self.weight is None or self.bias is None:
            return y
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class ImageRMSNorm(nn.Module):
    """Root mean square normalization of images over (C, H, W), γ a channel."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(FEATURES)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(x, x.shape[1:], eps=EPS)
        return y if self.weight is None else y * self.weight[:, None, None]


REFERENCES: dict[tuple[str, str], Callable[[bool], nn.Module]] = {
    ("none", "vectors"): lambda affine: nn.Identity(),
    ("none", "images"): lambda affine: nn.Identity(),
    ("batch", "vectors"): lambda affine: nn.BatchNorm1d(FEATURES, EPS, affine=affine),
    ("batch", "images"): lambda affine: nn.BatchNorm2d(FEATURES, EPS, affine=affine),
    ("layer", "vectors"): lambda affine: nn.LayerNorm(FEATURES, EPS, elementwise_affine=affine),
    ("layer", "images"): ImageLayerNorm,
    ("instance", "images"): lambda affine: nn.InstanceNorm2d(FEATURES, EPS, affine=affine),
    ("group", "vectors"): lambda affine: nn.GroupNorm(GROUPS, FEATURES, EPS, affine=affine),
    ("group", "images"): lambda affine: nn.GroupNorm(GROUPS, FEATURES, EPS, affine=affine),
    ("batch_scratch", "vectors"): lambda affine: nn.BatchNorm1d(FEATURES, EPS, affine=affine),
    ("batch_scratch", "images"): lambda affine: nn.BatchNorm2d(FEATURES, EPS, affine=affine),
    ("sync_batch", "vectors"): lambda affine: nn.BatchNorm1d(FEATURES, EPS, affine=affine),  # of one process
    ("sync_batch", "images"): lambda affine: nn.BatchNorm2d(FEATURES, EPS, affine=affine),
    ("rms", "vectors"): lambda affine: nn.RMSNorm(FEATURES, EPS, elementwise_affine=affine),
    ("rms", "images"): ImageRMSNorm,
}
BATCH = ("batch", "batch_scratch")
TESTED_BELOW = {  # torch has none like them
    *("frozen_batch", "noisy_batch", "batch_renorm", "conditional_batch", "conditional_instance"),
    *("weight", "scaled_weight"),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True, params=[False, True], ids=["formula", "kernels"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is of both forms of the layers for vectors: that of compiled steps and that of all others."""
    monkeypatch.setattr(KernelNorm, "kernels", request.param)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 2


def pair(name: str, kind: str, affine: bool = True) -> tuple[nn.Module, nn.Module]:
    """bnexp's module and torch's, with the same random γ and β."""
    ours = make_norm(NormConfig(name, eps=EPS, groups=GROUPS, affine=affine), FEATURES)
    theirs = REFERENCES[name, kind](affine)
    with torch.no_grad():
        for number, (mine, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            mine.copy_(draw(mine.shape, seed=100 + number))
            other.copy_(mine)
    return ours, theirs


def forward_and_gradients(module: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output and the gradients to the input, γ and β."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad((y * upstream).sum(), [leaf, *module.parameters()])]


def test_every_norm_has_a_reference() -> None:
    assert {name for name, _ in REFERENCES} | TESTED_BELOW == set(NORMS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("name", "kind"), REFERENCES)
def test_equals_torch(name: str, kind: str, affine: bool, training: bool) -> None:
    ours, theirs = pair(name, kind, affine)
    for seed in range(3):  # so that running averages have something in them
        x = draw(SHAPES[kind], seed)
        close(ours(x), theirs(x))
    ours.train(training)
    theirs.train(training)
    x, upstream = draw(SHAPES[kind], 10), draw(SHAPES[kind], 11)
    found, expected = forward_and_gradients(ours, x, upstream), forward_and_gradients(theirs, x, upstream)
    learned = {"none": 0, "rms": 1}.get(name, 2)  # γ, β
    assert len(found) == 2 + (learned if affine else 0)
    for mine, other in zip(found, expected, strict=True):
        close(mine, other)


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("kind", SHAPES)
def test_running_averages_equal_torch(kind: str, name: str) -> None:
    ours, theirs = pair(name, kind)
    for seed in range(5):
        x = draw(SHAPES[kind], seed)
        ours(x)
        theirs(x)
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("kind", SHAPES)
def test_evaluation_leaves_running_averages(kind: str, name: str) -> None:
    norm = make_norm(NormConfig(name), FEATURES)
    norm(draw(SHAPES[kind]))
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    norm.eval()(draw(SHAPES[kind], 1))
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, variance)


@pytest.mark.parametrize("kind", SHAPES)
def test_evaluation_does_not_depend_on_companions(kind: str) -> None:
    norm = make_norm(NormConfig("batch"), FEATURES)
    norm(draw(SHAPES[kind]))
    x = draw(SHAPES[kind], 1)
    norm.eval()
    close(norm(x)[:1], norm(x[:1]))


@pytest.mark.parametrize("name", BATCH)
@pytest.mark.parametrize("shape", [(2, 1), (2, 1, 1, 1)])
@pytest.mark.parametrize(("unbiased", "variance"), [(True, 1.5), (False, 1.0)])
def test_running_variance_by_hand(shape: tuple[int, ...], unbiased: bool, variance: float, name: str) -> None:
    """Of 1 and 3 the mean is 2 and the variance 1, or 2 with n - 1; half of it and half of the start, 0 and 1."""
    norm = make_norm(NormConfig(name, eps=EPS, momentum=0.5, unbiased=unbiased, affine=False), 1)
    norm(torch.tensor([1.0, 3.0]).reshape(shape))
    close(norm.running_mean, torch.tensor([1.0]))
    close(norm.running_var, torch.tensor([variance]))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_training_divides_by_the_biased_variance(kind: str, unbiased: bool) -> None:
    norm = BatchNorm(NormConfig(eps=1e-12, unbiased=unbiased, affine=False), FEATURES)
    y = norm(draw(SHAPES[kind])).transpose(0, 1).flatten(1)
    close(y.mean(1), torch.zeros(FEATURES))
    close(y.var(1, correction=0), torch.ones(FEATURES))


@pytest.mark.parametrize("momentum", [0.01, 0.3, 1.0])
def test_momentum_weighs_the_new_value(momentum: float) -> None:
    norm = BatchNorm(NormConfig(eps=EPS, momentum=momentum), FEATURES)
    x = draw(SHAPES["vectors"])
    norm(x)
    close(norm.running_mean, momentum * x.mean(0))
    close(norm.running_var, (1 - momentum) + momentum * x.var(0))


# ---- frozen, noisy, conditional


def trained_batch_norm(kind: str) -> BatchNorm:
    norm, _ = pair("batch", kind)
    for seed in range(3):
        norm(draw(SHAPES[kind], seed))
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_frozen_is_the_evaluation_of_what_it_was_loaded_from(kind: str, training: bool) -> None:
    norm, frozen = trained_batch_norm(kind).eval(), make_norm(NormConfig("frozen_batch", eps=EPS), FEATURES)
    frozen.train(training).load_state_dict(norm.state_dict(), strict=False)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    x, upstream = draw(SHAPES[kind], 10).requires_grad_(), draw(SHAPES[kind], 11)
    expected, found = norm(x), frozen(x)
    close(found, expected)
    close(*(torch.autograd.grad((y * upstream).sum(), x)[0] for y in (found, expected)))
    assert list(frozen.parameters()) == []
    assert all(torch.equal(frozen.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("kind", SHAPES)
def test_noise_is_added_to_batch_norm_in_training_alone(kind: str) -> None:
    norm, noisy = trained_batch_norm(kind), make_norm(NormConfig("noisy_batch", eps=EPS), FEATURES)
    noisy.norm.load_state_dict(norm.state_dict())
    noise = noisy.draw(torch.Generator().manual_seed(3))
    noisy.scale.copy_(noise["scale"])
    noisy.shift.copy_(noise["shift"])
    x, channels = draw(SHAPES[kind], 10), (1, -1, *(1 for _ in SHAPES[kind][2:]))
    close(noisy(x), norm(x) * noise["scale"].view(channels) + noise["shift"].view(channels))
    close(noisy.eval()(x), norm.eval()(x))


def test_noise_has_the_published_range() -> None:
    norm = make_norm(NormConfig("noisy_batch", noise_shift=0.5, noise_scale=1.25), 10_000)
    first, second = (norm.draw(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for name, low, high in (("shift", -0.5, 0.5), ("scale", 1.0, 1.25)):
        values = first[name]
        assert low <= float(values.min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        assert not torch.equal(values, second[name])


# ---- batch renormalization


def renorm(**settings: float) -> nn.Module:
    return make_norm(NormConfig("batch_renorm", eps=EPS, unbiased=False, **settings), FEATURES)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", SHAPES)
def test_batch_renorm_begins_as_batch_norm(kind: str) -> None:
    """r is 1 and d is 0 at the first update, and for ever with limits of 1 and 0."""
    first, limited = renorm(momentum=0.1), renorm(momentum=0.1, r_max=1.0, d_max=0.0)
    plain = make_norm(NormConfig("batch", eps=EPS, unbiased=False, momentum=0.1), FEATURES)
    x, upstream = draw(SHAPES[kind], 1), draw(SHAPES[kind], 2)
    expected = forward_and_gradients(plain, x, upstream)
    for norm in (first, limited):
        for found, wanted in zip(forward_and_gradients(norm, x, upstream), expected, strict=True):
            close(found, wanted)
    x = draw(SHAPES[kind], 3)
    close(limited(x), plain(x))
    for norm in (first, limited):
        norm.eval()
    close(limited(x), plain.eval()(x))


@pytest.mark.parametrize("kind", SHAPES)
def test_batch_renorm_without_limits_normalizes_by_the_running_averages(kind: str) -> None:
    """Algorithm 1 of the paper: (x - μ_B) / σ_B · r + d = (x - μ) / σ."""
    norm = renorm(momentum=0.2, r_max=1e6, d_max=1e6, ramp=1)
    for seed in range(3):
        norm(draw(SHAPES[kind], seed))
    running = norm.running_mean.clone(), norm.running_var.clone()
    x = draw(SHAPES[kind], 10)
    shape = (1, -1, *(1 for _ in SHAPES[kind][2:]))
    mean, deviation = running[0].view(shape), (running[1] + EPS).sqrt().view(shape)
    close(norm(x), (x - mean) / deviation)


def test_batch_renorm_by_hand() -> None:
    """Of a ramp of 4 updates the third has R = 1 + 2 · 2 / 4 = 2 and D = 5 · 2 / 4 = 2.5."""
    norm = renorm(momentum=0.5, ramp=4)
    x = draw(SHAPES["vectors"], 0)
    norm(x)
    norm(x)
    known_mean, known = norm.running_mean.clone(), (norm.running_var + EPS).sqrt()
    leaf = (40 * draw(SHAPES["vectors"], 1) - 300).requires_grad_()
    mean, deviation = leaf.mean(0), (leaf.var(0, correction=0) + EPS).sqrt()
    r = (deviation / known).clamp(0.5, 2).detach()
    d = ((mean - known_mean) / known).clamp(-2.5, 2.5).detach()
    assert r.tolist() == [2] * FEATURES
    assert d.tolist() == [-2.5] * FEATURES
    expected = (leaf - mean) / deviation * r + d
    close(norm(leaf), expected)


def test_gradients_of_batch_renorm() -> None:
    norm, x, upstream = renorm(momentum=0.5, ramp=1), draw(SHAPES["vectors"], 0), draw(SHAPES["vectors"], 2)
    norm(x)
    known_mean, known = norm.running_mean.clone(), (norm.running_var + EPS).sqrt()
    leaf = draw(SHAPES["vectors"], 1).requires_grad_()
    mean, deviation = leaf.mean(0), (leaf.var(0, correction=0) + EPS).sqrt()
    r, d = (deviation / known).clamp(1 / 3, 3).detach(), ((mean - known_mean) / known).clamp(-5, 5).detach()
    (expected,) = torch.autograd.grad((((leaf - mean) / deviation * r + d) * upstream).sum(), leaf)
    (found,) = torch.autograd.grad((norm(leaf) * upstream).sum(), leaf)
    close(found, expected)


# ---- norms of weights


@pytest.mark.parametrize("kind", SHAPES)
def test_weight_norm_equals_torchs(kind: str) -> None:
    """torch's parametrization, whose g starts at ‖v‖, given the same g; gradients to x, v, the bias and g."""
    layer: nn.Module = nn.Linear(FEATURES, 5) if kind == "vectors" else nn.Conv2d(FEATURES, 5, 3, stride=2, padding=1)
    theirs = nn.utils.parametrizations.weight_norm(copy.deepcopy(layer))
    norm = make_norm(NormConfig("weight"), 5)
    gains = draw((5,), 4)
    with torch.no_grad():
        norm.weight.copy_(gains)
        theirs.parametrizations.weight.original0.copy_(gains.view(-1, *(1 for _ in layer.weight.shape[1:])))
    x, leaves = draw(SHAPES[kind], 5).requires_grad_(), theirs.parametrizations.weight
    found, expected = norm.through(layer, x), theirs(x)
    close(found, expected)
    upstream = draw(tuple(found.shape), 6)
    ours = torch.autograd.grad((found * upstream).sum(), [x, layer.weight, layer.bias, norm.weight])
    others = torch.autograd.grad((expected * upstream).sum(), [x, leaves.original1, theirs.bias, leaves.original0])
    for mine, other in zip(ours, others, strict=True):
        close(mine, other.reshape(mine.shape))


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3, 3)])
def test_scaled_weights_by_hand(shape: tuple[int, ...]) -> None:
    """Brock et al. 2021, eq. 2: γ (W - μ) / (σ √N), over the N inputs of each output."""
    norm, weight = make_norm(NormConfig("scaled_weight"), 5), draw(shape, 7)
    rows = weight.flatten(1)
    n = rows.shape[1]
    gain = (1 / 2 - 1 / (2 * math.pi)) ** -0.5  # 1 / the standard deviation of ReLU(x), x ~ N(0, 1)
    expected = gain * (rows - rows.mean(1, keepdim=True)) / (rows.std(1, correction=0, keepdim=True) * n**0.5)
    close(norm.normalized(rows), expected)
    flat = norm.normalized(torch.ones(2, n))
    assert bool(torch.isfinite(flat).all()), "weights that are all equal"


def test_scaled_weights_keep_the_variance_through_a_relu() -> None:
    x = torch.randn(4000, 500, generator=torch.Generator().manual_seed(0))
    norm, layer = make_norm(NormConfig("scaled_weight"), 300), nn.Linear(500, 300, bias=False)
    assert norm.through(layer, x.relu()).var(0).mean().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("name", ["weight", "scaled_weight"])
@pytest.mark.parametrize("arch", ["mlp", "convnet", "resnet"])
def test_a_network_with_normalized_weights_does_not_know_their_length(name: str, arch: str) -> None:
    sizes = ArchConfig(arch, depth=8 if arch == "resnet" else None, channels=[4, 4, 8], dense=8)
    config = RunConfig(arch=sizes, norm=NormConfig(name))
    model = make_model(config, (1, 28, 28), 10, device="cpu").eval()
    initialize(model, config.init, 0)
    x = draw((3, 1, 28, 28))
    before = model(x)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("layer.weight"):
                parameter.mul_(7.0)
    close(model(x), before)


@pytest.mark.parametrize(
    "overrides",
    [
        {"name": "mlp", "norm_position": "after"},
        {"name": "resnet", "depth": 8, "channels": [4, 4, 8], "pre_activation": True},
        {"name": "densenet", "depth": 7, "growth": 4},
    ],
)
def test_a_norm_of_weights_needs_a_layer_before_it(overrides: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"norm=weight is not allowed here: .* arch=densenet"):
        make_model(RunConfig(arch=ArchConfig(**overrides), norm=NormConfig("weight")), (1, 28, 28), 10)


@pytest.mark.parametrize(("name", "kind"), [("batch", "vectors"), ("batch", "images"), ("instance", "images")])
def test_conditional_scales_each_example_by_its_condition(name: str, kind: str) -> None:
    """Against the norm without γ and β, and those of the example's condition picked by hand."""
    norm = make_norm(NormConfig(f"conditional_{name}", eps=EPS, conditions=3), FEATURES)
    plain = make_norm(NormConfig(name, eps=EPS, affine=False), FEATURES)
    with torch.no_grad():
        norm.weight.copy_(draw((3, FEATURES), 5))
        norm.bias.copy_(draw((3, FEATURES), 6))
    x, upstream = draw(SHAPES[kind]), draw(SHAPES[kind], 1)
    norm.condition = torch.tensor([2, 0, 0, 1, 2, 2])[: len(x)]
    normal = plain(x)
    expected = torch.stack(
        [
            y * norm.weight[c].view(-1, *(1 for _ in y.shape[1:])) + norm.bias[c].view(-1, *(1 for _ in y.shape[1:]))
            for y, c in zip(normal, norm.condition.tolist(), strict=True)
        ]
    )
    found = norm(x)
    close(found, expected)
    for mine, other in zip(
        *(torch.autograd.grad((y * upstream).sum(), [norm.weight, norm.bias]) for y in (found, expected)), strict=True
    ):
        close(mine, other)


def test_one_condition_is_for_all_examples() -> None:
    norm, plain = make_norm(NormConfig("conditional_batch"), FEATURES), make_norm(NormConfig("batch"), FEATURES)
    close(norm(draw(SHAPES["images"])), plain(draw(SHAPES["images"])))


# ---- identities


@pytest.mark.parametrize("kind", SHAPES)
def test_one_group_is_layer(kind: str) -> None:
    x = draw(SHAPES[kind])
    close(make_norm(NormConfig("group", groups=1), FEATURES)(x), make_norm(NormConfig("layer"), FEATURES)(x))


def test_as_many_groups_as_channels_is_instance() -> None:
    x = draw(SHAPES["images"])
    group = make_norm(NormConfig("group", groups=FEATURES), FEATURES)
    close(group(x), make_norm(NormConfig("instance"), FEATURES)(x))


def test_one_vector_in_training_gives_beta() -> None:
    norm, _ = pair("batch", "vectors")
    assert torch.equal(norm(draw((1, FEATURES)))[0], norm.bias)
    assert bool(torch.isfinite(norm.running_var).all())


def test_one_pixel_in_training_is_refused() -> None:
    norm, _ = pair("batch", "images")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(draw((1, FEATURES, 1, 1)))


def test_bias_under_batch_norm_has_no_effect() -> None:
    torch.manual_seed(0)
    block = Block(nn.Linear(5, FEATURES), make_norm(NormConfig("batch"), FEATURES), nn.Tanh(), after=False)
    x, upstream = draw((6, 5)), draw((6, FEATURES), 1)
    before = block(x)
    (gradient,) = torch.autograd.grad((before * upstream).sum(), [block.layer.bias])
    with torch.no_grad():
        block.layer.bias.add_(draw((FEATURES,), 2))
    close(block(x), before)
    close(gradient, torch.zeros(FEATURES))


@pytest.mark.parametrize("name", NORMS)
def test_bfloat16_statistics_are_taken_in_float32(name: str) -> None:
    torch.set_default_dtype(torch.float32)
    x = (draw((64, FEATURES)).float() + 300).bfloat16()
    narrow, wide = (make_norm(NormConfig(name), FEATURES) for _ in range(2))  # each with running averages of its own
    torch.testing.assert_close(narrow(x).float(), wide(x.float()), rtol=1e-4, atol=1e-4)


def test_unknown_norm_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="norm=bach") as error:
        make_norm(NormConfig("bach"), FEATURES)
    assert all(name in str(error.value) for name in NORMS)


@pytest.mark.parametrize("groups", [3, 16])
def test_groups_that_do_not_divide_name_those_that_do(groups: int) -> None:
    with pytest.raises(ConfigError, match=f"norm.groups={groups} .* choose from 1, 2, 4, 8$"):
        make_norm(NormConfig("group", groups=groups), FEATURES)


def test_without_affine_nothing_is_learned() -> None:
    assert not list(GroupNorm(NormConfig(groups=2, affine=False), FEATURES).parameters())
    assert not list(BatchNorm(NormConfig(affine=False), FEATURES).parameters())
    assert not list(make_norm(NormConfig("rms", affine=False), FEATURES).parameters())


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("norm", NORMS),
        ("act", {**ACTIVATIONS, OWN: None}),
        ("optim", OPTIMIZERS),
        ("init", INITS),
        ("dataset", DATASETS),
        ("arch", ARCHS),
    ],
)
def test_every_choice_has_its_file(group: str, names: dict[str, object]) -> None:
    files = {path.stem: path for path in (CONF / group).glob("*.yaml")}
    assert set(files) == set(names)
    assert {name: OmegaConf.load(path).name for name, path in files.items()} == {name: name for name in names}
