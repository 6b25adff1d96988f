"""Every normalization against torch's own module, in float64, and identities between them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from bnexp.data.load import DATASETS
from bnexp.models.activations import ACTIVATIONS
from bnexp.models.block import Block
from bnexp.models.init import INITS
from bnexp.models.norms import NORMS, BatchNorm, GroupNorm, KernelNorm, make_norm
from bnexp.models.registry import ARCHS
from bnexp.runs.config import ConfigError, NormConfig
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
TESTED_BELOW = {"frozen_batch", "noisy_batch", "conditional_batch", "conditional_instance"}  # torch has none like them


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
    norm = make_norm(NormConfig(name), FEATURES)
    torch.testing.assert_close(norm(x).float(), norm(x.float()), rtol=1e-4, atol=1e-4)


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
        ("act", ACTIVATIONS),
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
