"""Every normalization: x̂ = (x - mean) / √(variance + ε), then γ x̂ + β. They differ in what they average over.

Vectors (N, C) are written as this formula: it is the subject of the project, the compiler fuses it, and under vmap it
gives each member of a stack the very bytes it has alone. Images (N, C, H, W) use torch's kernels, which compute the
same formula (0.95 against 0.62 thousand images/s in a ConvNet on two cores).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.config import ConfigError, NormConfig, require_choice
from bnexp.parallel import mean as mean_over_processes
from bnexp.parallel import processes


class BatchNorm(nn.Module):
    """Batch normalization (Ioffe & Szegedy 2015, algorithm 1): a channel's mean and variance over the batch.

    (N, C) or (N, C, H, W) → same shape. In training the statistics are those of the batch, with the biased variance,
    and running averages of them are kept: average ← (1 - momentum) average + momentum · new, the variance with
    n / (n - 1) where `unbiased` (torch's convention; TensorFlow's dense layers keep the biased one). In evaluation
    the running averages stand in for them, so that an answer doesn't depend on its companions. One value a channel
    gives β for vectors; for images torch raises ValueError.
    """

    epsilon: Tensor
    momentum: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float, momentum: float, unbiased: bool, affine: bool) -> None:
        super().__init__()
        self.eps, self.unbiased = eps, unbiased
        register_numbers(self, epsilon=eps, momentum=momentum)
        self.weight = nn.Parameter(torch.ones(features)) if affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None  # β
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize_vectors(x) if x.dim() == 2 else self.normalize_images(x)

    def values_averaged(self, x: Tensor) -> int:
        """How many values of x each mean and variance is taken over, in training."""
        return x.numel() // x.shape[1]

    def normalize_vectors(self, x: Tensor) -> Tensor:
        if not self.training:
            return affine(normalize(x, self.running_mean, self.running_var, self.epsilon), self.weight, self.bias)
        x = at_least_fp32(x)
        mean = x.mean(0)
        variance = (x - mean).square().mean(0)
        self.update_averages(mean.detach(), variance.detach(), len(x))
        return affine(normalize(x, mean, variance, self.epsilon), self.weight, self.bias)

    def normalize_images(self, x: Tensor) -> Tensor:
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        # With momentum 1 the kernel hands back the statistics of this very batch, the variance unbiased.
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        count = x.numel() // x.shape[1]
        self.update_averages(mean, variance * ((count - 1) / count), count)
        return y

    @torch.no_grad()
    def update_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.unbiased:
            variance = variance * (count / max(count - 1, 1))
        self.running_mean.add_(self.momentum * (mean - self.running_mean))
        self.running_var.add_(self.momentum * (variance - self.running_var))


class BatchNormFromScratch(BatchNorm):
    """Batch normalization as a textbook writes it: what `BatchNorm` computes, line by line.

    (N, C) or (N, C, H, W) → same shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_fp32(x)
        channels = (1, -1, *(1 for _ in x.shape[2:]))  # (1, C) or (1, C, 1, 1)
        if self.training:
            others = [axis for axis in range(x.dim()) if axis != 1]  # the examples, and of images the positions
            mean = x.mean(others)
            variance = (x - mean.view(channels)).square().mean(others)
            n = x.numel() // x.shape[1]
            with torch.no_grad():
                kept = variance * n / max(n - 1, 1) if self.unbiased else variance
                self.running_mean.copy_((1 - self.momentum) * self.running_mean + self.momentum * mean)
                self.running_var.copy_((1 - self.momentum) * self.running_var + self.momentum * kept)
        else:
            mean, variance = self.running_mean, self.running_var
        x = (x - mean.view(channels)) / torch.sqrt(variance.view(channels) + self.epsilon)
        if self.weight is None or self.bias is None:
            return x
        return self.weight.view(channels) * x + self.bias.view(channels)


class SyncBatchNorm(BatchNorm):
    """Batch normalization over the joined batch of all processes (`bnexp.parallel`), whose shares are equal: what one
    process would compute of it. With one process, `BatchNorm`. (N, C) or (N, C, H, W) → same shape.
    """

    def values_averaged(self, x: Tensor) -> int:
        return processes() * super().values_averaged(x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(x)
        x = at_least_fp32(x)
        others = [axis for axis in range(x.dim()) if axis != 1]
        mean = mean_over_processes(x.mean(others))
        variance = mean_over_processes((x - spread(mean[None], x)).square().mean(others))
        self.update_averages(mean.detach(), variance.detach(), processes() * x.numel() // x.shape[1])
        x = (x - spread(mean[None], x)) * spread(torch.rsqrt(variance + self.epsilon)[None], x)
        return x if self.weight is None or self.bias is None else per_channel(x, self.weight, self.bias)


class FrozenBatchNorm(nn.Module):
    """Batch normalization whose statistics, γ and β stay as they are, in training too: what fine-tuning at a small
    batch wants (`init_from`). (N, C) or (N, C, H, W) → same shape.
    """

    epsilon: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        register_numbers(self, epsilon=eps)
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + self.epsilon)
        return per_channel(at_least_fp32(x), scale, self.bias - self.running_mean * scale)


class NoisyBatchNorm(nn.Module):
    """Batch normalization and then, in training, a random shift and scale of every channel, drawn anew each step:
    m ~ U(-noise_shift, noise_shift), s ~ U(1, noise_scale), y ← s y + m (Santurkar et al. 2018, §2.1 and appendix A,
    whose noise differs from example to example as well). Whoever trains puts them into `scale` and `shift`. Running
    averages are taken under the noise and don't fit the network without it: `eval.recalibrate` takes them anew.

    (N, C) or (N, C, H, W) → same shape.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module, features: int, noise_shift: float, noise_scale: float) -> None:
        super().__init__()
        self.norm, self.noise_shift, self.noise_scale = norm, noise_shift, noise_scale
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("shift", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return per_channel(y, self.scale, self.shift) if self.training else y

    def draw(self, random: torch.Generator) -> dict[str, Tensor]:
        """Of one step."""
        shift, scale = torch.rand(2, len(self.shift), generator=random)
        return {"shift": self.noise_shift * (2 * shift - 1), "scale": 1 + (self.noise_scale - 1) * scale}


class ConditionalNorm(nn.Module):
    """A norm without γ and β, then those of the example's condition: γ and β are (conditions, C) (Dumoulin et al.
    2017, eq. 5). (N, C) or (N, C, H, W) → same shape.

    `condition`: int64 (N,), or (1,) for all examples; whoever calls puts it in place.
    """

    condition: Tensor

    def __init__(self, norm: nn.Module, features: int, conditions: int) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.ones(conditions, features))  # γ
        self.bias = nn.Parameter(torch.zeros(conditions, features))  # β
        self.register_buffer("condition", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        which = self.condition[:, None] == torch.arange(len(self.weight), device=x.device)
        chosen = which.to(self.weight.dtype)  # a product, as in every layer
        with full_precision(x.device.type):  # scales and shifts, as other norms'
            return per_example(y, chosen @ self.weight, chosen @ self.bias)


class GroupNorm(nn.Module):
    """Group normalization (Wu & He 2018, eq. 1-7): an example's mean and variance over C / groups channels and all
    positions; the same in training and evaluation. (N, C) or (N, C, H, W) → same shape.

    One group is layer normalization (Ba et al. 2016), with γ and β a channel as in Wu & He; as many groups as
    channels is instance normalization (Ulyanov et al. 2016). Raises ConfigError where the groups don't divide C.
    """

    epsilon: Tensor

    def __init__(self, features: int, groups: int, eps: float, affine: bool) -> None:
        super().__init__()
        if features % groups:
            allowed = ", ".join(str(n) for n in range(1, features + 1) if features % n == 0)
            where = f"a layer's {features} channels"
            raise ConfigError(f"norm.groups={groups} does not divide {where}: choose from {allowed}")
        self.groups, self.eps = groups, eps
        register_numbers(self, epsilon=eps)
        self.weight = nn.Parameter(torch.ones(features)) if affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None  # β

    def values_averaged(self, x: Tensor) -> int:
        """How many values of x each mean and variance is taken over."""
        return x.numel() // len(x) // self.groups

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = at_least_fp32(x).reshape(len(x), self.groups, -1)
        mean = grouped.mean(2, keepdim=True)
        variance = (grouped - mean).square().mean(2, keepdim=True)
        return affine(normalize(grouped, mean, variance, self.epsilon).flatten(1), self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε), then γ x̂: no mean is subtracted and there is no β (Zhang & Sennrich 2019, eq. 4). The mean
    square is an example's over channels and positions. (N, C) or (N, C, H, W) → same shape.
    """

    epsilon: Tensor

    def __init__(self, features: int, eps: float, affine: bool) -> None:
        super().__init__()
        register_numbers(self, epsilon=eps)
        self.weight = nn.Parameter(torch.ones(features)) if affine else None  # γ

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_fp32(x)
        square = x.square().flatten(1).mean(1)
        x = x * torch.rsqrt(square + self.epsilon).view(-1, *(1 for _ in x.shape[1:]))
        return x if self.weight is None else x * spread(self.weight[None], x)


def register_numbers(module: nn.Module, **numbers: float) -> None:
    """Hyperparameters as buffers, so that the members of a stack may differ in them. torch's kernels for images take
    a float, so ε is kept as one too.
    """
    for name, number in numbers.items():
        module.register_buffer(name, torch.tensor(number, dtype=torch.float64))


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Without autocast; on the meta device, which has none, nothing is to be done."""
    known = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if known else nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """Statistics of bf16 activations are taken in fp32, as torch's kernels do."""
    return x.float() if x.dtype == torch.bfloat16 else x


def normalize(x: Tensor, mean: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    return (x - mean) * torch.rsqrt(variance + eps)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None or bias is None:
        return x
    return x * weight + bias


def spread(values: Tensor, x: Tensor) -> Tensor:
    """(1 or N, C) → the shape that broadcasts over x, (N, C) or (N, C, H, W)."""
    return values.reshape(*values.shape, *(1 for _ in x.shape[2:]))


def per_example(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`scale` and `shift`: (1 or N, C)."""
    return x * spread(scale, x) + spread(shift, x)


def per_channel(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`scale` and `shift`: (C,)."""
    return per_example(x, scale[None], shift[None])


Make = Callable[[NormConfig, int], nn.Module]  # configuration, channels → the layer


@dataclass(frozen=True)
class Norm:
    """How a normalization's layers are made.

    `stackable`: the keys of NormConfig that the layer for vectors reads from a buffer (`register_numbers`), in which
    the members of a stack may differ. Any other key is the same throughout a stack.
    """

    make: Make
    stackable: tuple[str, ...] = ()


def over_batch(kind: type[BatchNorm]) -> Norm:
    def make(config: NormConfig, features: int) -> BatchNorm:
        return kind(features, eps=config.eps, momentum=config.momentum, unbiased=config.unbiased, affine=config.affine)

    return Norm(make, stackable=("eps", "momentum"))


def over_groups(groups_of: Callable[[NormConfig, int], int]) -> Norm:
    """`groups_of`: configuration, channels → the number of groups."""

    def make(config: NormConfig, features: int) -> GroupNorm:
        return GroupNorm(features, groups_of(config, features), eps=config.eps, affine=config.affine)

    return Norm(make, stackable=("eps",))


def conditional(norm: Norm) -> Norm:
    """With a γ and β for each condition in place of its own."""

    def make(config: NormConfig, features: int) -> ConditionalNorm:
        return ConditionalNorm(norm.make(replace(config, affine=False), features), features, config.conditions)

    return replace(norm, make=make)


def noisy(norm: Norm) -> Norm:
    def make(config: NormConfig, features: int) -> NoisyBatchNorm:
        return NoisyBatchNorm(norm.make(config, features), features, config.noise_shift, config.noise_scale)

    return replace(norm, make=make)


BATCH, INSTANCE = over_batch(BatchNorm), over_groups(lambda config, features: features)
NORMS: dict[str, Norm] = {
    "none": Norm(lambda config, features: nn.Identity()),  # the control arm: same network, no normalization
    "batch": BATCH,
    "batch_scratch": over_batch(BatchNormFromScratch),
    "sync_batch": over_batch(SyncBatchNorm),
    "frozen_batch": Norm(lambda config, features: FrozenBatchNorm(features, eps=config.eps), stackable=("eps",)),
    "noisy_batch": noisy(BATCH),
    "layer": over_groups(lambda config, features: 1),
    "instance": INSTANCE,
    "group": over_groups(lambda config, features: config.groups),
    "conditional_batch": conditional(BATCH),
    "conditional_instance": conditional(INSTANCE),
    "rms": Norm(lambda config, features: RMSNorm(features, eps=config.eps, affine=config.affine), stackable=("eps",)),
}
WITHOUT_SHIFT = {"none", "rms"}  # nothing in them takes the place of a layer's bias
CONDITIONAL = {"conditional_batch", "conditional_instance"}  # one γ and β for each of dataset.conditions
IMAGES_ONLY = {"instance", "conditional_instance"}  # of a vector, each "image" is one number: what is left of it is β


def make_norm(config: NormConfig, features: int) -> nn.Module:
    """Layer for `features` channels, (N, C) or (N, C, H, W) → same shape. Raises ConfigError on an unknown name."""
    return find_norm(config).make(config, features)


def find_norm(config: NormConfig) -> Norm:
    """Raises ConfigError on an unknown name."""
    require_choice("norm", config.name, NORMS)
    return NORMS[config.name]
