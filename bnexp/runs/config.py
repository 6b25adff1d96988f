"""The schema of a run's configuration, and the allowed values of every key.

The dataclasses have all keys; a file in conf/, as norm/batch.yaml, lists those that this choice uses.
"""

import json
import math
import os
import re
import struct
from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

LARGEST = 2**63 - 1  # the largest whole number: that of an int64
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
TRAINABLE = ("all", "norms", "head")
KEPT = ("last", "none")  # values of checkpoint.keep
SCHEDULES = ("constant", "cosine", "step")
AUGMENTS = ("none", "flip_crop")
BACKGROUNDS = ("white", "black", "grey")
NORM_POSITIONS = ("before", "after")
LONGEST_VALUE = 200  # characters of a value in a message
PATHS = ("dataset.root", "dataset.path", "init_from")  # keys whose values are paths
DERIVED = ("norm.conditions",)  # set by bnexp, not by the user
GROUPS = ("dataset", "arch", "act", "norm", "init", "optim", "experiment")


class ConfigError(ValueError):
    """An error that the user can mend: an invalid value, for example, or a directory that is in use.

    Its text is one line, for a value with the key, the value and the allowed values.
    """


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    """Raise ConfigError unless `ok`. allowed: the allowed values in words."""
    if not ok:
        raise ConfigError(f"{key}={shown(value)} is not allowed: {allowed}")


def shown(value: object) -> str:
    """Convert a value to text for a message, cut off after LONGEST_VALUE characters."""
    try:
        text = str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of more than 4300 digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"


def require_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Raise ConfigError, with the list of choices, unless the value is one of them."""
    if value not in choices:
        raise ConfigError(f"{key}={shown(value)} is unknown: choose from {', '.join(choices)}")


SMALLEST = 2.0**-126  # smallest normal number of single precision; smaller ones are computed as 0


def single(value: float) -> float:
    """Round a number to single precision, as a training step does.

    Beyond its range the result is an infinity; if its absolute value is below SMALLEST, it is 0.
    """
    try:
        number: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return number if abs(number) >= SMALLEST or math.isnan(number) else 0.0


def require_path(key: str, value: str) -> None:
    """Raise ConfigError where the part of a path that does not exist yet has characters that are not printable."""
    new = value[len(existing_part(value)) :]
    require(new.isprintable(), key, value, "an existing path, or one of printable characters")


def existing_part(path: str) -> str:
    """Return the longest beginning of a path that exists, up to a slash or the end; "" where none does."""
    ends = [len(path), *(place for place in range(len(path) - 1, 0, -1) if path[place] == "/")]
    return next((path[:end] for end in ends if os.path.exists(path[:end])), "")


@dataclass(frozen=True)
class Allowed:
    """The allowed values of a key.

    text: in words, for help and error messages. check: a function of a key and its value that raises ConfigError if the
    value is not allowed.
    """

    text: str
    check: Callable[[str, Any], None] = lambda key, value: None


def where(fits: Callable[[Any], bool], text: str) -> Allowed:
    """Allow the values that `fits` accepts. text: these values in words."""
    return Allowed(text, lambda key, value: require(fits(value), key, value, text))


def whole(low: int, high: int) -> Allowed:
    """Allow the whole numbers from `low` to `high`."""
    return where(lambda number: low <= number <= high, f"a whole number from {low} to {high}")


def single_where(fits: Callable[[float], bool], text: str) -> Allowed:
    """Allow numbers that, rounded to single precision, are finite and accepted by `fits`.

    A number other than 0 must not be rounded to 0.
    """

    def check(key: str, value: float) -> None:
        number = single(value)
        in_range = math.isfinite(number) and (number != 0 or value == 0)
        reach = "" if in_range else ", which goes from 1.2e-38 to 3.4e+38"
        require(in_range and fits(number), key, value, f"{text} in single precision{reach}")

    return Allowed(text, check)


def one_of(choices: Collection[str]) -> Allowed:
    """Allow the names in `choices`."""
    *others, last = choices
    return Allowed(f"{', '.join(others)} or {last}", lambda key, value: require_choice(key, value, choices))


def are_widths(widths: object) -> bool:
    """Return whether this is a list of 1 to 1000 widths from 1 to 65,536; an interpolation ${…} may give no list."""
    return isinstance(widths, list) and 1 <= len(widths) <= 1000 and all(1 <= width <= 65_536 for width in widths)


def are_classes(numbers: list[int] | None) -> bool:
    """Return whether this is None, or a list of two or more numbers that an int64 holds, each once."""
    if numbers is None:
        return True
    return len(numbers) >= 2 and len({number for number in numbers if abs(number) <= LARGEST}) == len(numbers)


def are_threads(value: int | str) -> bool:
    """Return whether a value is a number of threads from 1 to 1024, or "auto"."""
    count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1024
    return count or value == "auto"


POSITIVE = single_where(lambda number: number > 0, "a finite number above 0")
NOT_NEGATIVE = single_where(lambda number: number >= 0, "a finite number of at least 0")
DECAY_RATE = single_where(lambda number: 0 <= number < 1, "a number from 0 up to but not including 1")
COUNT = where(lambda number: 1 <= number <= LARGEST, "a whole number of at least 1, up to 2^63 - 1")
WIDTH = whole(1, 65_536)
WIDTHS = where(are_widths, "1 to 1000 widths from 1 to 65536")
SWITCH = where(lambda value: value in ("auto", True, False), "auto, true or false")
TRUE_OR_FALSE = Allowed("true or false")
PATH = Allowed("a path")
PATH_OR_NULL = Allowed("a path or null")
A_NAME = where(lambda name: re.fullmatch(r"\w{1,100}", name) is not None, "a name of letters, digits and _")
DIGEST = where(
    lambda digest: digest is None or re.fullmatch(r"[0-9a-f]{8,64}", digest) is not None,
    "null, or 8 to 64 hexadecimal digits in lower case",
)
NAME = "the choice of the group"


def setting(default: Any, explanation: str, allowed: Allowed = TRUE_OR_FALSE) -> Any:
    """Make a dataclass field with a default, or with a function without parameters that makes it.

    Its metadata are the explanation in half a line, and the allowed values. Both are shown by `bnexp train --help` and
    docs/configuration.md, the allowed values in error messages, too.
    """
    metadata = {"help": explanation, "allowed": allowed}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DatasetConfig:
    """The data set: where its images are, how they are split, and how they are changed before training."""

    name: str = setting("mnist", NAME)
    root: str = setting("data", "folder of downloaded data sets and caches; $BNEXP_DATA is its default", PATH)
    path: str | None = setting(None, "image_folder: the folder that holds train/CLASS/ and test/CLASS/", PATH_OR_NULL)
    size: int = setting(32, "image_folder: every image is resized to size × size pixels", whole(1, 4096))
    background: str = setting("white", "image_folder: colour behind transparent pixels", one_of(BACKGROUNDS))
    validation: int = setting(5000, "number of training images set aside for validation", COUNT)
    standardize: bool = setting(
        False, "subtract the training set's mean and divide by its standard deviation, per channel"
    )
    binarize: bool = setting(False, "round every pixel to 0 or 1")
    limit: int | None = setting(
        None,
        "train on only this many images",
        where(lambda limit: limit is None or 1 <= limit <= LARGEST, f"null or {COUNT.text}"),
    )
    augment: str = setting("none", "random flips and crops of the training images (colour images)", one_of(AUGMENTS))
    conditions: list[str] = setting(
        list,
        "styles that every image appears in: plain, inverted, rotated90, flipped, edges, noise, blurred",
        where(lambda names: isinstance(names, list) and len(set(names)) == len(names), "each style once"),
    )
    classes: list[int] | None = setting(
        None,
        "use these classes alone, as in [0,1,2]",
        where(are_classes, "null or two or more numbers of classes, each once"),
    )


@dataclass
class ArchConfig:
    """The network: its widths and depth, and where it has norms and biases."""

    name: str = setting("mlp", NAME)
    hidden: list[int] = setting(lambda: [100, 100, 100], "widths of the hidden (dense) layers", WIDTHS)
    depth: int | None = setting(
        None,
        "number of layers; mlp: hidden layers, repeating the widths; resnet: 6n + 2; densenet: 3n + 4",
        where(lambda depth: depth is None or 1 <= depth <= 1000, "null or a number from 1 to 1000"),
    )
    channels: list[int] = setting(
        lambda: [64, 128], "channels of the convolutions, or of the stages of a resnet", WIDTHS
    )
    dense: int = setting(256, "width of the dense layer before the classifier", WIDTH)
    growth: int = setting(12, "densenet: channels that each layer adds", WIDTH)
    norm_position: str = setting("before", "place of the norm relative to the activation", one_of(NORM_POSITIONS))
    bias: bool | str = setting(
        "auto", "biases of the layers that a norm follows; auto: none, since β takes their place", SWITCH
    )
    pre_activation: bool = setting(False, "resnet: norm and activation before each convolution")
    residual_init_zero: bool = setting(False, "resnet: γ of the last norm of each block starts at 0")
    skip_init: bool = setting(False, "resnet: each branch has a learned factor that starts at 0 (SkipInit)")
    model: str = setting("resnet18", "torchvision: its name of the network, as resnet50 or mobilenet_v2", A_NAME)
    recipe: bool = setting(True, "torchvision: norms of batches have the network's own ε and momentum")


@dataclass
class ActConfig:
    """The activation function."""

    name: str = setting("relu", NAME)


@dataclass
class NormConfig:
    """The normalization layer."""

    name: str = setting("batch", NAME)
    eps: float = setting(1e-5, "ε, added to the variance before the square root", POSITIVE)
    momentum: float = setting(
        0.1,
        "weight of the newest batch in the running mean and variance",
        single_where(lambda weight: 0 < weight <= 1, "a number above 0 and up to 1"),
    )
    unbiased: bool = setting(True, "running variance divides by n - 1 (true) or by n (false)")
    affine: bool = setting(True, "learn a scale γ and a shift β")
    groups: int = setting(4, "group: number of groups; must divide the channels of every layer", COUNT)
    noise_shift: float = setting(0.5, "noisy_batch: each channel's shift is drawn from ± this", NOT_NEGATIVE)
    noise_scale: float = setting(
        1.25,
        "noisy_batch: each channel's scale is drawn from 1 to this",
        single_where(lambda scale: scale >= 1, "a finite number of at least 1"),
    )
    r_max: float = setting(
        3.0,
        "batch_renorm: largest correction of the scale",
        single_where(lambda scale: scale >= 1, "a finite number of at least 1"),
    )
    d_max: float = setting(5.0, "batch_renorm: largest correction of the mean, in standard deviations", NOT_NEGATIVE)
    ramp: int = setting(1000, "batch_renorm: updates over which the corrections' limits rise from none", COUNT)
    conditions: int = setting(1, "number of pairs of γ and β: one for each style of dataset.conditions", COUNT)


@dataclass
class InitConfig:
    """The initialization of the weights."""

    name: str = setting("normal", NAME)
    std: float = setting(0.05, "normal: standard deviation of the initial weights", NOT_NEGATIVE)


@dataclass
class OptimConfig:
    """The optimizer and the schedule of its learning rate."""

    name: str = setting("sgd", NAME)
    lr: float = setting(0.01, "learning rate", POSITIVE)
    momentum: float = setting(0.9, "momentum: weight of the previous update", DECAY_RATE)
    beta1: float = setting(0.9, "adam, adamw: decay rate of the mean of gradients", DECAY_RATE)
    beta2: float = setting(0.999, "adam, adamw: decay rate of the mean of squared gradients", DECAY_RATE)
    eps: float = setting(1e-8, "adam, adamw: ε, added to the square root in the denominator", POSITIVE)
    weight_decay: float = setting(0.0, "weight decay; adamw: decoupled from the gradient", NOT_NEGATIVE)
    schedule: str = setting(
        "constant",
        "learning rate over time; cosine: falls to 0; step: divided by 10 at 1/2 and 3/4 of the steps",
        one_of(SCHEDULES),
    )


@dataclass
class EvalConfig:
    """When the network is evaluated, and which additional results of evaluations are saved."""

    first_every: int = setting(50, "steps between evaluations up to step eval.first_until", COUNT)
    first_until: int = setting(
        2000,
        "last step of the frequent evaluations",
        where(lambda step: 0 <= step <= LARGEST, "a whole number of at least 0, up to 2^63 - 1"),
    )
    every: int = setting(500, "steps between evaluations after step eval.first_until", COUNT)
    recalibrate: bool = setting(False, "at the end, test once more with batch statistics of a whole epoch")
    keep: bool = setting(False, "keep a checkpoint of every evaluation, for bnexp probe")

    def due(self, step: int, last: int) -> bool:
        """Return whether the network is evaluated after `step` updates, in a run of `last` updates."""
        return step == last or step % (self.first_every if step <= self.first_until else self.every) == 0

    def times(self, last: int) -> int:
        """Return the number of evaluations in a run of `last` updates. Step 0 is one of them."""
        often = min(self.first_until, last)
        seldom = last // self.every - often // self.every
        return 1 + often // self.first_every + seldom + (not self.due(last, last + 1))


@dataclass
class CheckpointConfig:
    """How often the state is saved from which an interrupted run can be resumed, and whether the last one is kept."""

    every_seconds: float = setting(
        60.0,
        "seconds of training between saved states, which resume starts from",
        where(lambda seconds: math.isfinite(seconds) and seconds > 0, POSITIVE.text),
    )
    keep: str = setting(
        "last", "the state of a finished run that is kept; none: for sweeps that need no weights", one_of(KEPT)
    )


@dataclass
class RunConfig:
    """The configuration that fixes one training: its metrics are always the same on the same machine.

    The data and the versions of bnexp and torch have to be the same, too. Raises ConfigError for a value that is not
    allowed, in any of its groups; the names of choices are not checked.
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: ArchConfig = field(default_factory=ArchConfig)
    act: ActConfig = field(default_factory=ActConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = setting(
        0,
        "fixes the initial weights, the order of batches and the augmentation",
        where(lambda seed: 0 <= seed <= LARGEST, "a whole number from 0 to 2^63 - 1"),
    )
    steps: int = setting(50_000, "number of updates of the weights", whole(1, 10**9))
    batch_size: int = setting(60, "number of images in a batch", COUNT)
    device: str = setting("auto", "where to train; auto: CUDA where there is one, else the CPU", one_of(DEVICES))
    threads: int | str = setting(
        "auto",
        "CPU threads of a run; auto: 1 for an MLP, else every core",
        where(are_threads, "auto or a whole number from 1 to 1024"),
    )
    compile: bool | str = setting(
        "auto",
        "compile the step; auto: MLP, LeNet, ResNet from 5,000 steps on if a C++ compiler works, any on CUDA",
        SWITCH,
    )
    precision: str = setting("fp32", "number format of the step; bf16: mixed precision", one_of(PRECISIONS))
    init_from: str | None = setting(
        None,
        "the initial weights, by name and shape: directory of a finished run, or a .pth or .safetensors file",
        PATH_OR_NULL,
    )
    init_sha256: str | None = setting(
        None, "init_from: beginning of the file's SHA-256; needed for a .pth whose name doesn't end in it", DIGEST
    )
    trainable: str = setting(
        "all", "which parameters are trained; norms: γ and β alone; head: the last linear layer", one_of(TRAINABLE)
    )

    def __post_init__(self) -> None:
        for key, entry in fields_by_key().items():
            group, _, name = key.rpartition(".")
            value = getattr(getattr(self, group) if group else self, name)
            nested = isinstance(value, list) and any(isinstance(part, list) for part in value)
            require(not nested, key, value, "a list without lists in it")  # OmegaConf takes lists for numbers or names
            entry.metadata["allowed"].check(key, value)

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries: {"norm": {"eps": 1e-5, …}, "seed": 0, …}."""
        return asdict(self)


@dataclass(frozen=True)
class Key:
    """A key of the configuration, for help and documentation.

    name: with its group, as norm.eps. allowed: the allowed values in words. default: as an override has it. help: an
    explanation.
    """

    name: str
    allowed: str
    default: str
    help: str


@cache
def fields_by_key() -> dict[str, "Field[Any]"]:
    """Return the fields of all keys by the keys' names, in the order of the schema, except the choices of groups."""
    entries = dict[str, "Field[Any]"]()
    for entry in fields(RunConfig):
        if is_dataclass(entry.type):
            entries |= {f"{entry.name}.{part.name}": part for part in fields(entry.type) if part.name != "name"}
        else:
            entries[entry.name] = entry
    return entries


def explain_keys() -> list[Key]:
    """Return every key that a user can set, in the order of the schema, except the choices of groups."""
    return [explain_key(name, entry) for name, entry in fields_by_key().items() if name not in DERIVED]


def explain_key(name: str, entry: "Field[Any]") -> Key:
    """Describe a field of the schema as a `Key`. name: the key's name with its group, as norm.eps."""
    default = entry.default if entry.default_factory is MISSING else entry.default_factory()
    written = default if isinstance(default, str) else json.dumps(default, separators=(",", ":"))
    return Key(name, entry.metadata["allowed"].text, written, entry.metadata["help"])


@cache
def known_keys() -> tuple[str, ...]:
    """Return the names of all groups of choices and of all keys: norm, norm.eps, eval.every, seed, …"""
    return (*GROUPS, *fields_by_key())


@cache
def whole_number_keys() -> frozenset[str]:
    """Return the names of the keys whose value is a whole number, or a whole number or null."""
    return frozenset(name for name, entry in fields_by_key().items() if entry.type in (int, int | None))
