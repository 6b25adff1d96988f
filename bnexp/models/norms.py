"""Every normalization: x̂ = (x - mean) / √(variance + ε), then γ x̂ + β. They differ in what they average over.

Each layer maps (N, C) or (N, C, H, W) to the same shape. Vectors (N, C) are written as this formula: it is the subject
of the project, the compiler fuses it, and under vmap it gives each member of a stack the very bytes it has alone.
Images (N, C, H, W) use torch's kernels, which compute the same formula (0.95 against 0.62 thousand images/s in a
ConvNet on two cores). `batch_scratch` is the formula for both. Start reading at `BatchNorm`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.runs.config import ConfigError, NormConfig, require_choice
from bnexp.runs.distributed import mean as mean_over_processes
from bnexp.runs.distributed import processes


class BatchNorm(nn.Module):
    """Batch normalization: y = γ (x - mean) / √(variance + ε) + β, where mean and variance are a channel's.

    Training: the mean and the biased variance of the batch, over N, or over N, H and W. They also update running
    averages: average ← (1 - momentum) average + momentum · new, where `unbiased` multiplies the new variance by
    n / (n - 1) for n values (torch's convention; TensorFlow's dense layers keep the biased one).
    Inference: the running averages replace both, so that the output for an example doesn't depend on the others.

    Shapes: (N, C) or (N, C, H, W) → the same; γ, β and the running averages are (C,).
    Raises: torch raises ValueError for images of which each channel has one value; such vectors give β.
    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    epsilon: Tensor
    momentum: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.eps, self.unbiased = config.eps, config.unbiased
        register_scalars(self, epsilon=config.eps, momentum=config.momentum)
        self.weight = nn.Parameter(torch.ones(features)) if config.affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if config.affine else None  # β
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, update the running averages."""
        if x.dim() > 2 and (self.processes() == 1 or not self.training):
            return self.normalize_images(x)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            x = at_least_fp32(x)
            mean = self.mean(x)
            variance = self.mean((x - spread(mean, x)).square())
            self.update_averages(mean.detach(), variance.detach(), self.values_averaged(x))
        return affine(normalize(x, mean, variance, self.epsilon), self.weight, self.bias)

    def processes(self) -> int:
        """How many processes share a batch."""
        return 1

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each channel, (C,)."""
        return channel_mean(x)

    def values_averaged(self, x: Tensor) -> int:
        """How many values each mean and variance is taken over in training."""
        return self.processes() * x.numel() // x.shape[1]

    def normalize_images(self, x: Tensor) -> Tensor:
        """Do the same by torch's kernel."""
        if not self.training:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, self.eps)
        # With momentum 1 the kernel writes the statistics of this very batch, the variance unbiased.
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
        y = F.batch_norm(x, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        count = self.values_averaged(x)
        self.update_averages(mean, variance * ((count - 1) / count), count)
        return y

    @torch.no_grad()
    def update_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running averages with a batch's statistics. `variance` is the biased one, over `count` values;
        with `unbiased` it is first multiplied by count / (count - 1).
        """
        if self.unbiased:
            variance = variance * (count / max(count - 1, 1))
        self.running_mean.add_(self.momentum * (mean - self.running_mean))
        self.running_var.add_(self.momentum * (variance - self.running_var))


class BatchNormFromScratch(BatchNorm):
    """Batch normalization as a textbook writes it, line by line: what `BatchNorm` computes, in the same shapes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, update the running averages."""
        x = at_least_fp32(x)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean = channel_mean(x)
            variance = channel_mean((x - spread(mean, x)).square())
            n = self.values_averaged(x)
            with torch.no_grad():
                new = variance * n / max(n - 1, 1) if self.unbiased else variance
                self.running_mean.copy_((1 - self.momentum) * self.running_mean + self.momentum * mean)
                self.running_var.copy_((1 - self.momentum) * self.running_var + self.momentum * new)
        x = (x - spread(mean, x)) / torch.sqrt(spread(variance, x) + self.epsilon)
        return affine(x, self.weight, self.bias)


class SyncBatchNorm(BatchNorm):
    """Batch normalization whose statistics in training are those of the whole batch, which processes share equally.

    With one process it is `BatchNorm`. See `bnexp.runs.distributed`. Shapes: (N, C) or (N, C, H, W) → the same, where N
    is the share of this process.
    """

    def processes(self) -> int:
        """How many processes share a batch."""
        return processes()

    def mean(self, x: Tensor) -> Tensor:
        """The mean of each channel over all processes, (C,)."""
        return mean_over_processes(channel_mean(x))


class FrozenBatchNorm(nn.Module):
    """Batch normalization whose statistics, γ and β stay as they are, in training too: for fine-tuning (`init_from`).

    Training and inference: y = γ (x - running mean) / √(running variance + ε) + β, all of them buffers (C,).
    Shapes: (N, C) or (N, C, H, W) → the same.
    """

    epsilon: Tensor
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        register_scalars(self, epsilon=config.eps)
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((features,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each channel."""
        scale = self.weight * torch.rsqrt(self.running_var + self.epsilon)
        return affine(at_least_fp32(x), scale, self.bias - self.running_mean * scale)


class NoisyBatchNorm(nn.Module):
    """Batch normalization, then in training a random scale and shift of every channel, drawn anew at each step.

    Training: y = s BN(x) + m with m ~ U(-noise_shift, noise_shift) and s ~ U(1, noise_scale) a channel; the caller
    puts what `draw` returns into the buffers `scale` and `shift`, (C,).
    Inference: y = BN(x). The running averages were taken under the noise and don't fit the network without it;
    `eval.recalibrate` takes them anew.

    Shapes: (N, C) or (N, C, H, W) → the same.
    Source: Santurkar et al. 2018, §2.1 and appendix A, whose noise also differs between examples.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.norm = BatchNorm(config, features)
        self.noise_shift, self.noise_scale = config.noise_shift, config.noise_scale
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("shift", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and, in training, add the noise."""
        y: Tensor = self.norm(x)
        return affine(y, self.scale, self.shift) if self.training else y

    def draw(self, random: torch.Generator) -> dict[str, Tensor]:
        """Draw the noise of one step, by the names of the buffers."""
        shift, scale = torch.rand(2, len(self.shift), generator=random)
        return {"shift": self.noise_shift * (2 * shift - 1), "scale": 1 + (self.noise_scale - 1) * scale}


class ConditionalNorm(nn.Module):
    """A norm whose γ and β depend on the example's condition: y = γ[condition] x̂ + β[condition].

    Training and inference differ as in the norm that computes x̂, which has no γ and β of its own. The caller puts
    the conditions into the buffer `condition`: int64 (N,), or (1,) for all examples.

    Shapes: (N, C) or (N, C, H, W) → the same; γ and β are (conditions, C).
    Source: Dumoulin et al. 2017, eq. 5.
    """

    condition: Tensor

    def __init__(self, norm: "Make", config: NormConfig, features: int) -> None:
        super().__init__()
        self.norm = norm(replace(config, affine=False), features)
        self.weight = nn.Parameter(torch.ones(config.conditions, features))  # γ
        self.bias = nn.Parameter(torch.zeros(config.conditions, features))  # β
        self.register_buffer("condition", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, then scale and shift each example with the γ and β of its condition, which the buffer `condition`
        holds.
        """
        y: Tensor = self.norm(x)
        one_hot = self.condition[:, None] == torch.arange(len(self.weight), device=x.device)
        rows = one_hot.to(self.weight.dtype)  # a product selects: indexing has another gradient in a compiled stack
        with full_precision(x.device.type):  # scales and shifts, as those of other norms
            return affine(y, rows @ self.weight, rows @ self.bias)


class GroupNorm(nn.Module):
    """Group normalization: y = γ (x - mean) / √(variance + ε) + β, where mean and variance are a group's of an example.

    Training and inference are the same: mean and biased variance over C / groups channels and all positions.
    Shapes: (N, C) or (N, C, H, W) → the same; γ and β are (C,).
    Raises: ConfigError where the groups don't divide C.
    Source: Wu & He 2018, eq. 1 to 7.
    """

    epsilon: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.groups, self.eps = config.groups, config.eps
        if features % self.groups:
            divisors = ", ".join(str(n) for n in range(1, features + 1) if features % n == 0)
            channels = f"a layer's {features} channels"
            raise ConfigError(f"norm.groups={self.groups} does not divide {channels}: choose from {divisors}")
        register_scalars(self, epsilon=config.eps)
        self.weight = nn.Parameter(torch.ones(features)) if config.affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if config.affine else None  # β

    def values_averaged(self, x: Tensor) -> int:
        """How many values each mean and variance is taken over."""
        return x.numel() // len(x) // self.groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each example."""
        if x.dim() > 2:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = at_least_fp32(x).reshape(len(x), self.groups, -1)
        mean = grouped.mean(2)
        variance = (grouped - spread(mean, grouped)).square().mean(2)
        return affine(normalize(grouped, mean, variance, self.epsilon).flatten(1), self.weight, self.bias)


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016): one group; γ and β are a channel's, as in Wu & He 2018. See `GroupNorm`."""

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(replace(config, groups=1), features)


class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016): each channel is a group. See `GroupNorm`."""

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(replace(config, groups=features), features)


class RMSNorm(nn.Module):
    """Root mean square normalization: y = γ x / √(mean(x²) + ε), which subtracts no mean and has no β.

    Training and inference are the same: the mean square of an example over all channels and positions.
    Shapes: (N, C) or (N, C, H, W) → the same; γ is (C,).
    Source: Zhang & Sennrich 2019, eq. 4.
    """

    epsilon: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        register_scalars(self, epsilon=config.eps)
        self.weight = nn.Parameter(torch.ones(features)) if config.affine else None  # γ

    def forward(self, x: Tensor) -> Tensor:
        """Scale each example, then each channel."""
        x = at_least_fp32(x)
        mean_square = x.square().flatten(1).mean(1, keepdim=True)
        x = x * spread(torch.rsqrt(mean_square + self.epsilon), x)
        return x if self.weight is None else x * spread(self.weight, x)


def register_scalars(module: nn.Module, **scalars: float) -> None:
    """Register hyperparameters as buffers, so that the members of a stack may differ in them.

    torch's kernels for images take a float, so norms that call one keep ε as a float, too.
    """
    for name, value in scalars.items():
        module.register_buffer(name, torch.tensor(value, dtype=torch.float64))


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Turn autocast off, on devices that have it: the meta device has none."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert bf16 to fp32, in which statistics are taken, as torch's kernels do."""
    return x.float() if x.dtype == torch.bfloat16 else x


def channel_mean(x: Tensor) -> Tensor:
    """The mean of each channel over examples and positions, (C,)."""
    return x.mean([axis for axis in range(x.dim()) if axis != 1])


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to (C,) or (N, C), so that the values broadcast over x, (N, C, …)."""
    return values.reshape(*values.shape, *(1 for _ in x.shape[2:]))


def normalize(x: Tensor, mean: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    """x̂ = (x - mean) / √(variance + ε), with a mean and a variance (C,) or (N, C)."""
    return (x - spread(mean, x)) * spread(torch.rsqrt(variance + eps), x)


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale · x + shift, each (C,) or (N, C); x itself where a norm has none."""
    return x if scale is None or shift is None else x * spread(scale, x) + spread(shift, x)


Make = Callable[[NormConfig, int], nn.Module]  # configuration, channels → the layer


@dataclass(frozen=True)
class Norm:
    """How a normalization's layers are made, and in which keys of NormConfig the members of a stack may differ.

    Those, `stackable`, are read from a buffer by the layer for vectors (`register_scalars`).
    """

    make: Make
    stackable: tuple[str, ...] = ()


NORMS: dict[str, Norm] = {
    "none": Norm(lambda config, features: nn.Identity()),  # the control arm: same network, no normalization
    "batch": Norm(BatchNorm, ("eps", "momentum")),
    "batch_scratch": Norm(BatchNormFromScratch, ("eps", "momentum")),
    "sync_batch": Norm(SyncBatchNorm, ("eps", "momentum")),
    "frozen_batch": Norm(FrozenBatchNorm, ("eps",)),
    "noisy_batch": Norm(NoisyBatchNorm, ("eps", "momentum")),
    "layer": Norm(LayerNorm, ("eps",)),
    "instance": Norm(InstanceNorm, ("eps",)),
    "group": Norm(GroupNorm, ("eps",)),
    "conditional_batch": Norm(partial(ConditionalNorm, BatchNorm), ("eps", "momentum")),
    "conditional_instance": Norm(partial(ConditionalNorm, InstanceNorm), ("eps",)),
    "rms": Norm(RMSNorm, ("eps",)),
}
WITHOUT_SHIFT = {"none", "rms"}  # have no β, which would take the place of a layer's bias
CONDITIONAL = {"conditional_batch", "conditional_instance"}  # one γ and β for each of dataset.conditions
IMAGES_ONLY = {"instance", "conditional_instance"}  # a vector has one value a channel: β would be all that is left


def make_norm(config: NormConfig, features: int) -> nn.Module:
    """Make the layer for `features` channels. Raises ConfigError for an unknown name."""
    return find_norm(config).make(config, features)


def find_norm(config: NormConfig) -> Norm:
    """Find a configuration's normalization. Raises ConfigError for an unknown name."""
    require_choice("norm", config.name, NORMS)
    return NORMS[config.name]
