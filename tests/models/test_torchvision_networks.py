"""arch=torchvision: torchvision's networks with other norms and activations, and with trained weights."""

import hashlib
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import make_stack, toy_data
from conftest import Bnexp
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import SqueezeExcitation

from bnexp.data.batches import batches_of
from bnexp.data.load import Data
from bnexp.models.noise import Dropout, StochasticDepth
from bnexp.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from bnexp.models.registry import check_model, make_model, notes
from bnexp.models.torchvision_networks import TESTED
from bnexp.runs.config import ActConfig, ArchConfig, InitConfig, NormConfig, OptimConfig, RunConfig
from bnexp.runs.directory import checkpoint_path
from bnexp.runs.tensors import load_tensors
from bnexp.training.engine import Stack
from bnexp.training.recalibrate import recalibrated
from bnexp.training.state import start_member, trained_names

CPU, COLOUR, CLASSES = torch.device("cpu"), (3, 32, 32), 10
LARGE = {"resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg16_bn", "densenet121", "efficientnet_b0", "googlenet"}
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in TESTED]
NOISY = {"vgg16_bn", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "mnasnet0_5"}
EXTRA = {"googlenet": {"aux_logits": False, "init_weights": False, "transform_input": True}}


def config_of(model: str = "resnet18", norm: str = "batch", act: str = "own", **changes: object) -> RunConfig:
    """Two updates of four images; two groups, since shufflenet has layers of 58 channels."""
    return replace(
        RunConfig(
            arch=ArchConfig("torchvision", model=model),
            act=ActConfig(act),
            norm=NormConfig(norm, groups=2),
            init=InitConfig("kaiming"),
            optim=OptimConfig(lr=0.01),
            steps=2,
            batch_size=4,
            device="cpu",
            compile=False,
        ),
        **changes,
    )


def theirs(name: str) -> nn.Module:
    return models.get_model(name, weights=None, num_classes=CLASSES, **EXTRA.get(name, {}))


def ours(config: RunConfig) -> nn.Module:
    return make_model(config, COLOUR, CLASSES, "cpu")


def advanced(config: RunConfig, steps: int, first: int = 0, state: dict[str, Tensor] | None = None) -> Stack:
    stack = make_stack([config], COLOURS, CPU)
    if state:
        stack.restore(0, state)
    batches = batches_of([config], len(COLOURS.train), CPU)
    for step in range(first, steps):
        stack.update(step, batches.batch(step))
    return stack


def state_of(stack: Stack) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stack.members[0].flat().items()}


COLOURS: Data = toy_data(COLOUR)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the networks


@pytest.mark.parametrize("norm", ["none", "batch", "group", "frozen_batch"])
@pytest.mark.parametrize("name", EVERY)
def test_every_network_trains_with_every_kind_of_norm(name: str, norm: str) -> None:
    normalizes = norm in ("batch", "group")  # without, signals grow or vanish from layer to layer
    config = config_of(name, norm, optim=OptimConfig(lr=0.01 if normalizes else 1e-12))
    model = check_model(config, COLOUR, CLASSES)
    places = {place for place, module in theirs(name).named_modules() if isinstance(module, nn.BatchNorm2d)}
    kind = {"none": nn.Identity, "batch": BatchNorm, "group": GroupNorm, "frozen_batch": FrozenBatchNorm}[norm]
    assert places
    assert all(type(model.get_submodule(place)) is kind for place in places)
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    stack = advanced(config, 2)
    before, after = start_member(config, COLOURS).parameters, stack.members[0].parameters
    assert all(bool(tensor.isfinite().all()) for tensor in after.values())
    fixed = {place for place in after if torch.equal(before[place], after[place])}
    assert len(fixed) < len(after)
    assert not normalizes or not [place for place in fixed if place.endswith("weight")]
    assert math.isfinite(stack.evaluate(0, COLOURS.validation[:8]).loss)


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_those_of_torchvision(name: str) -> None:
    """By name and shape with a batch norm; without a norm, a bias takes the place of γ and β where a convolution is."""
    reference, model = theirs(name), ours(config_of(name))
    shapes = {place: tensor.shape for place, tensor in model.named_parameters()}
    assert shapes == {place: tensor.shape for place, tensor in reference.named_parameters()}
    count = sum(math.prod(shape) for shape in shapes.values())
    assert count == sum(parameter.numel() for parameter in reference.parameters())
    without = {place: tensor.shape for place, tensor in ours(config_of(name, "none")).named_parameters()}
    added = {place for place in without if place not in shapes}
    assert {place.rpartition(".")[2] for place in added} <= {"bias"}
    assert added == {f"{place}.bias" for place in convolutions_before_norms(reference)}


def convolutions_before_norms(model: nn.Module) -> set[str]:
    """The convolutions without a bias whose output a BatchNorm2d is given, found by what goes in and out."""
    made: dict[int, str] = {}
    found, kept = set[str](), list[Tensor]()

    def remember(place: str, module: nn.Module, output: Tensor) -> None:
        made[id(output)] = place
        kept.append(output)  # so that no other tensor gets this id

    for place, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.register_forward_hook(lambda m, x, y, place=place: remember(place, m, y))
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda m, x: found.update(filter(None, [made.get(id(x[0]))])))
    model.eval()(torch.zeros(1, *COLOUR))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_in_evaluation_it_is_the_network_of_torchvision(name: str) -> None:
    reference, model = theirs(name), ours(config_of(name))
    scatter(reference)
    model.load_state_dict({**model.state_dict(), **known(reference, model)})
    x = torch.randn(2, *COLOUR)
    torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-5, atol=1e-6)


def scatter(model: nn.Module) -> None:
    """Give norms statistics, γ and β of all sizes, as training does."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)


def known(reference: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    names = model.state_dict().keys()
    return {name: tensor for name, tensor in reference.state_dict().items() if name in names}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", pytest.param("googlenet", marks=pytest.mark.slow)])
def test_the_recipe_is_the_networks_own(name: str) -> None:
    recipe = {"resnet18": (1e-5, 0.1), "mobilenet_v3_small": (1e-3, 0.01), "googlenet": (1e-3, 0.1)}[name]
    own = [module for module in ours(config_of(name)).modules() if isinstance(module, BatchNorm)]
    assert {(norm.config.eps, norm.config.momentum) for norm in own} == {recipe}
    given = replace(config_of(name), arch=ArchConfig("torchvision", model=name, recipe=False))
    given = replace(given, norm=NormConfig(eps=1e-4, momentum=0.5))
    other = [module for module in ours(given).modules() if isinstance(module, BatchNorm)]
    assert {(norm.config.eps, norm.config.momentum) for norm in other} == {(1e-4, 0.5)}
    assert notes(config_of(name)) == [f"ε {recipe[0]:g} and momentum {recipe[1]:g} of {name}"]
    assert notes(given) == []


def test_arms_share_the_start_of_every_parameter_they_share() -> None:
    starts = {norm: start_member(config_of("mobilenet_v2", norm), COLOURS).parameters for norm in ("none", "batch")}
    shared = starts["none"].keys() & starts["batch"].keys()
    assert len(shared) == 54  # 52 convolutions, weight and bias of the classifier
    assert all(torch.equal(starts["none"][name], starts["batch"][name]) for name in shared)


@pytest.mark.parametrize("name", EVERY)
def test_no_start_depends_on_global_state(name: str) -> None:
    first = start_member(config_of(name), COLOURS).flat()
    torch.manual_seed(5)
    second = start_member(config_of(name), COLOURS).flat()
    assert all(torch.equal(first[place], second[place]) for place in first)


def test_activations_are_replaced_outside_of_gates() -> None:
    own, tanh = ours(config_of("mobilenet_v3_small")), ours(config_of("mobilenet_v3_small", act="tanh"))
    inside = [module for gate in tanh.modules() if isinstance(gate, SqueezeExcitation) for module in gate.modules()]
    assert {type(module) for module in inside if not list(module.children())} >= {nn.ReLU, nn.Hardsigmoid}
    outside = [module for module in tanh.modules() if module not in inside]
    assert not [module for module in outside if isinstance(module, nn.ReLU | nn.Hardswish)]
    expected = [m for m in own.modules() if isinstance(m, nn.ReLU | nn.Hardswish)]
    assert len([m for m in outside if isinstance(m, nn.Tanh)]) == len(expected) - len(
        [m for m in inside if type(m) is nn.ReLU]
    )


def test_images_of_one_channel() -> None:
    grey = (1, 28, 28)
    logits = make_model(config_of(), grey, CLASSES, "cpu")(torch.zeros(2, *grey))
    assert logits.shape == (2, CLASSES)


# ---- random numbers


@pytest.mark.parametrize("name", EVERY)
def test_all_random_numbers_come_from_the_seed(name: str) -> None:
    """Two updates after any global state give the same bytes, resumed in between or not; another seed does not."""
    config = config_of(name)
    torch.manual_seed(1)
    first = state_of(advanced(config, 2))
    torch.manual_seed(2)
    half = state_of(advanced(config, 1))
    second = state_of(advanced(config, 2, first=1, state=half))
    assert [place for place in first if not torch.equal(first[place], second[place])] == []
    masks = {place for place in first if place.endswith(".kept")}
    assert bool(masks) == (name in NOISY)
    other = state_of(advanced(replace(config, seed=1), 2)) if masks else {}
    assert not [place for place in masks if first[place].numel() > 4 and torch.equal(first[place], other[place])]
    random = [module for module in ours(config).modules() if isinstance(module, nn.Dropout) and module.p]
    assert not random


def test_dropout_removes_and_scales() -> None:
    layer = Dropout(0.25, 2000, 50)
    for key, value in layer.draw(torch.Generator().manual_seed(0)).items():
        getattr(layer, key).copy_(value)
    x = torch.rand(2000, 50) + 1
    y = layer(x)
    assert bool(((y == 0) | torch.isclose(y, x / 0.75)).all())
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(y.mean()) == pytest.approx(float(x.mean()), rel=0.01)
    assert torch.equal(layer(x[:3]), y[:3]), "fewer images have the factors of the first"
    assert torch.equal(layer.eval()(x), x)


def test_stochastic_depth_removes_whole_examples() -> None:
    layer = StochasticDepth(0.5, 1000, 1)
    layer.kept.copy_(layer.draw(torch.Generator().manual_seed(0))["kept"])
    y = layer(torch.ones(1000, 3, 2, 2))
    assert all(len(example.unique()) == 1 for example in y)
    assert float((y[:, 0, 0, 0] == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_recalibration_drops_nothing() -> None:
    """A population has no masks: the statistics are those of a network whose masks are 1."""
    stack = advanced(config_of("efficientnet_b0", batch_size=50), 1)
    first = recalibrated(stack, 0)
    stack.prepare(7)
    second = recalibrated(stack, 0)
    averages = [name for name in first if name.rpartition(".")[2].startswith("running_")]
    assert averages
    assert all(torch.equal(first[name], second[name]) for name in averages)


# ---- trained weights


def weights(name: str, classes: int = CLASSES) -> nn.Module:
    """A network of torchvision as if it had been trained."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None, num_classes=classes, **EXTRA.get(name, {}))
    scatter(model)
    return model.eval()


def saved(model: nn.Module, folder: Path, stem: str) -> Path:
    """Save weights as torchvision publishes them: the name ends in the beginning of the SHA-256."""
    path = folder / f"{stem}.pth"
    torch.save(model.state_dict(), path)
    return path.rename(folder / f"{stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")


@pytest.mark.parametrize("name", EVERY)
def test_a_frozen_network_is_the_trained_one_in_evaluation(name: str, tmp_path: Path) -> None:
    """Statistics, γ, β and ε: in training as in evaluation, but for dropout."""
    reference = weights(name)
    path = saved(reference, tmp_path, name)
    config = config_of(name, "frozen_batch", init_from=str(path))
    state = start_member(config, COLOURS)
    model = ours(config)
    model.load_state_dict(state.parameters | state.buffers)
    x = torch.randn(3, *COLOUR)
    expected = reference(x).detach()
    for training in (False, *([] if name in NOISY else [True])):
        torch.testing.assert_close(
            model.train(training)(x), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())
        )
    advanced_state = advanced(config, 2).members[0]
    frozen = [place for place in advanced_state.buffers if not place.endswith("kept")]
    assert all(torch.equal(advanced_state.buffers[place], state.buffers[place]) for place in frozen)


def test_another_number_of_classes_starts_the_classifier_anew(bnexp: Bnexp, tmp_path: Path) -> None:
    path = saved(weights("resnet18", 1000), tmp_path, "resnet18")
    outcome = bnexp(*TRAIN, f"init_from={path}", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert f"init_from={path}: 99 tensors loaded, 3 skipped (conv1.weight, fc.weight, fc.bias), 3 new (" in outcome.out
    record = json.loads(Path("mine/run.json").read_text())
    assert record["start"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["notes"] == ["ε 1e-05 and momentum 0.1 of resnet18"]


TRAIN = ("train", "dataset=digits", "arch=torchvision", "steps=2", "batch_size=8", "optim.lr=1e-30", "device=cpu")


def test_a_file_of_safetensors(bnexp: Bnexp, tmp_path: Path) -> None:
    reference = weights("resnet18")
    tensors = {name: tensor for name, tensor in reference.state_dict().items() if name != "conv1.weight"}
    save_file(tensors, tmp_path / "weights.safetensors")
    outcome = bnexp(*TRAIN, f"init_from={tmp_path}/weights.safetensors", "norm=frozen_batch", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert "101 tensors loaded, 0 skipped, 1 new (conv1.weight)" in outcome.out
    after = load_tensors(Path("mine/checkpoint.safetensors"))
    assert torch.equal(after["parameters.fc.weight"], tensors["fc.weight"])
    assert torch.equal(after["buffers.layer1.0.bn1.running_var"], tensors["layer1.0.bn1.running_var"])


def test_files_for_densenets_have_names_of_an_earlier_version(tmp_path: Path) -> None:
    """As densenet121-a639ec97.pth: norm.1 where the network has norm1."""
    model = models.DenseNet(4, (2, 2, 2, 2), 8, num_classes=CLASSES)
    tensors = {old_name(name): tensor for name, tensor in model.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in tensors
    from bnexp.training.pretrained import renamed  # noqa: PLC0415

    assert {renamed(name) for name in tensors} == set(model.state_dict())


def old_name(name: str) -> str:
    for part in ("norm", "conv"):
        for number in "12":
            if "denselayer" in name:
                name = name.replace(f".{part}{number}.", f".{part}.{number}.")
    return name


@pytest.mark.parametrize("trainable", ["norms", "head"])
def test_what_is_trained(trainable: str) -> None:
    names = set(trained_names(ours(config_of("mobilenet_v2")), config_of("mobilenet_v2", trainable=trainable)))
    reference = models.mobilenet_v2(num_classes=CLASSES)
    norms = {
        f"{place}.{name}"
        for place, module in reference.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name in ("weight", "bias")
    }
    assert names == (norms if trainable == "norms" else {"classifier.1.weight", "classifier.1.bias"})


def test_the_head_alone_is_trained(bnexp: Bnexp) -> None:
    words = ("dataset=digits", "steps=3", "optim.lr=0.1", "trainable=head", "hydra.run.dir=mine", "eval.keep=true")
    assert bnexp("train", *words, "compile=false").status == 0
    first, last = (load_tensors(checkpoint_path(Path("mine"), step)) for step in (0, 3))
    weights = [name for name in first if name.startswith(("parameters.", "buffers.")) and "running" not in name]
    moved = {name for name in weights if not torch.equal(first[name], last[name])}
    assert moved == {"parameters.classifier.weight", "parameters.classifier.bias"}


# ---- bad input


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('it ran')",))


def files(folder: Path) -> dict[str, Path]:
    """Files that can't be used."""
    made = {name: folder / f"{name}.pth" for name in ("pickle", "list", "nested", "cut", "empty", "unhashed")}
    torch.save(Bomb(), made["pickle"])
    torch.save([torch.zeros(3)], made["list"])
    torch.save({"state_dict": {"fc.weight": torch.zeros(3)}}, made["nested"])
    torch.save({"other": torch.zeros(3)}, made["unhashed"])
    made["cut"].write_bytes(made["unhashed"].read_bytes()[:200])
    made["empty"].write_bytes(b"")
    plain = folder / "plain.pth"
    plain.write_bytes(pickle.dumps(Bomb()))
    text = folder / "weights.txt"
    text.write_text("no")
    broken = folder / "broken.safetensors"
    broken.write_bytes(b"\xff" * 40)
    return made | {"plain": plain, "text": text, "broken": broken}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pickle", "it is damaged, or holds other things than tensors (torch.save(model.state_dict(), …) writes"),
        ("plain", "it is damaged, or holds other things than tensors (torch.save(model.state_dict(), …) writes"),
        ("cut", "it is damaged, or holds other things than tensors (torch.save(model.state_dict(), …) writes"),
        ("empty", "it is damaged, or holds other things than tensors (torch.save(model.state_dict(), …) writes"),
        ("broken", "it is damaged, or holds other things than tensors (torch.save(model.state_dict(), …) writes"),
        ("list", "it holds other things than tensors by name"),
        ("nested", "it holds other things than tensors by name"),
        (
            "unhashed",
            "of one in this network (first there other (3,), here conv1.weight (64, 1, 7, 7))",
        ),
        ("text", "nor a file of weights, .pth or .safetensors"),
    ],
)
def test_files_that_are_refused(bnexp: Bnexp, tmp_path: Path, name: str, complaint: str) -> None:
    path = files(tmp_path)[name]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    outcome = bnexp(*TRAIN, f"init_from={path}", f"init_sha256={digest}", "hydra.run.dir=mine")
    refused(outcome.status, outcome.err, complaint)


def refused(status: int, err: str, complaint: str) -> None:
    assert (status, len(err.splitlines())) == (2, 1), err
    assert complaint in err
    assert not Path("mine").exists()


def test_another_digest_is_refused(bnexp: Bnexp, tmp_path: Path) -> None:
    path = saved(weights("resnet18"), tmp_path, "resnet18")
    renamed = path.rename(tmp_path / "resnet18-00000000.pth")
    digest = hashlib.sha256(renamed.read_bytes()).hexdigest()
    outcome = bnexp(*TRAIN, f"init_from={renamed}", "hydra.run.dir=mine")
    refused(outcome.status, outcome.err, f"its SHA-256 begins with {digest[:8]}, not with 00000000")
    nameless = renamed.rename(tmp_path / "mine.pth")
    for words, complaint in (([], "init_sha256= has to give"), (["init_sha256=12345678"], "not with 12345678")):
        outcome = bnexp(*TRAIN, f"init_from={nameless}", *words, "hydra.run.dir=mine")
        refused(outcome.status, outcome.err, complaint)
    config = config_of(init_from=str(nameless), init_sha256=digest[:12])
    assert torch.equal(start_member(config, COLOURS).parameters["fc.weight"], torch.load(nameless)["fc.weight"])
    outcome = bnexp(*TRAIN, "init_sha256=12345e67", "hydra.run.dir=next")
    assert (outcome.status, "init_sha256=12345e67 is not allowed: only together" in outcome.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("arch.model=resnet81",), "arch.model=resnet81 is unknown: torchvision has resnet18"),
        (("arch.model=vit_b_16",), "arch.model=vit_b_16 is not allowed: it normalizes by LayerNorm"),
        (("arch.model=convnext_tiny",), "it normalizes by LayerNorm, which norm= can't replace"),
        (("arch.model=maxvit_t",), "it normalizes by LayerNorm, which norm= can't replace"),
        (("arch.model=vgg16",), "arch.model=vgg16 is not allowed: it has no BatchNorm2d"),
        (("arch.model=densenet121",), "arch.model=densenet121 for 1 × 8 × 8 cannot be used: RuntimeError"),
        (("arch.model=../x",), "arch.model=../x is not allowed: a name of letters, digits and _"),
        (("arch.model=googlenet", "act=tanh"), "act=tanh is not allowed with arch.model=googlenet"),
        (("init_from=nowhere.pth",), "init_from=nowhere.pth is not allowed: it is not there"),
        (
            ("arch.model=shufflenet_v2_x1_0", "norm=group"),
            "a layer has 58 channels; what divides those of all layers is 1, 2",
        ),
        (("norm=weight",), "norm=weight is not allowed with arch=torchvision"),
        (("norm.eps=0.1",), "norm.eps=0.1 is not allowed with arch.recipe=true"),
        (
            ("norm=group", "norm.groups=3"),
            "norm.groups=3 is not allowed: a layer has 64 channels; what divides those of all layers is 1, 2, 4",
        ),
        (("init_sha256=XYZ",), "init_sha256=XYZ is not allowed: null, or 8 to 64 hexadecimal digits"),
        (("arch=mlp", "act=own"), "act=own is not allowed: arch=torchvision alone has activations of its own"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, words: tuple[str, ...], complaint: str) -> None:
    outcome = bnexp(*TRAIN, *words, "hydra.run.dir=mine")
    refused(outcome.status, outcome.err, complaint)


@pytest.mark.extra
def test_the_defaults_of_the_choice(bnexp: Bnexp) -> None:
    """The network's own activations and He's initial weights, unless others are typed."""
    assert bnexp(*TRAIN, "hydra.run.dir=mine").status == 0
    assert bnexp(*TRAIN, "act=tanh", "init=xavier", "hydra.run.dir=other").status == 0
    configs = [json.loads(Path(folder, "run.json").read_text())["config"] for folder in ("mine", "other")]
    names = [(config["act"]["name"], config["init"]["name"]) for config in configs]
    assert names == [("own", "kaiming"), ("tanh", "xavier")]


def test_a_frozen_norm_keeps_the_epsilon_it_was_trained_with(bnexp: Bnexp) -> None:
    words = ("train", "dataset=digits", "steps=2", "compile=false")
    assert bnexp(*words, "norm.eps=0.01", "hydra.run.dir=source").status == 0
    outcome = bnexp(*words, "init_from=source", "norm=frozen_batch", "hydra.run.dir=mine")
    refused(outcome.status, outcome.err, "norm.eps=1e-05 is not allowed: init_from was trained with 0.01")
    assert bnexp(*words, "init_from=source", "norm=frozen_batch", "norm.eps=0.01", "hydra.run.dir=mine").status == 0
