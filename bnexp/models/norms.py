"""All normalizations: x̂ = (x - mean) / √(variance + ε), then γ x̂ + β. They differ in what they average over.

Each layer maps (N, C) or (N, C, H, W) to the same shape. In a compiled step, the code for vectors (N, C) is this
formula: the compiler fuses it, and under vmap each member of a stack gets exactly the bytes that it gets alone. In a
step that is not compiled (`use_kernels`), and for images (N, C, H, W), most layers call torch's kernels, which compute
the same, for vectors in half the time. `batch_scratch` is always the formula. Start at `BatchNorm`. The names of all
norms are in norm_registry.py, batch renormalization and norms of weights in files of their own.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.runs.config import ConfigError, NormConfig
from bnexp.runs.distributed import mean as mean_over_processes
from bnexp.runs.distributed import processes

Make = Callable[[NormConfig, int], nn.Module]  # configuration, channels → the layer


class KernelNorm(nn.Module):
    """Base class of norms that can call torch's kernel, with γ and β of each channel if `config.affine`.

    kernels: whether it may call the kernel for vectors (N, C), too, not for images alone.
    """

    kernels = False

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.epsilon = scalar(config.eps)
        self.weight = nn.Parameter(torch.ones(features)) if config.affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if config.affine else None  # β

    def calls_kernel(self, x: Tensor) -> bool:
        """Return whether to call torch's kernel: for images, and with `kernels` for vectors if x has more than one."""
        return x.dim() > 2 or (self.kernels and len(x) > 1)


def use_kernels(model: nn.Module) -> nn.Module:
    """Make those norms of a network that can call torch's kernels do so for vectors, too, and return the network."""
    for module in model.modules():
        if isinstance(module, KernelNorm):
            module.kernels = True
    return model


class BatchNorm(KernelNorm):
    """Batch normalization: y = γ (x - mean) / √(variance + ε) + β, with a mean and a variance for each channel.

    Training: the mean and the biased variance of the batch, over N, or over N, H and W. They also update running
    averages: average ← (1 - momentum) average + momentum · new; `unbiased` first multiplies the variance by n / (n - 1)
    for n values (torch's convention; TensorFlow's dense layers use the biased one).
    Inference: the running averages replace both, so that the output for an example doesn't depend on the others.

    Shapes: (N, C) or (N, C, H, W) → the same; γ, β and the running averages are (C,). Without `affine`, no γ and β.
    Raises: ValueError (by torch) in training, for images with one value per channel; for such vectors the output is β.
    Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(config, features)
        self.momentum = scalar(config.momentum)
        self.running_mean = nn.Buffer(torch.zeros(features))
        self.running_var = nn.Buffer(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, also update the running averages."""
        if self.calls_kernel(x) and (self.processes() == 1 or not self.training):
            return self.call_kernel(x if x.dim() > 2 else at_least_fp32(x))
        mean, variance = self.running_mean, self.running_var
        if self.training:
            x = at_least_fp32(x)
            mean = self.mean(x)
            variance = self.mean((x - spread(mean, x)).square())
            self.update_averages(mean.detach(), variance.detach(), self.values_averaged(x))
        return affine(normalize(x, mean, variance, self.epsilon), self.weight, self.bias)

    def processes(self) -> int:
        """Return over how many processes statistics are taken in training: 1, also under torchrun."""
        return 1

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each channel, (C,)."""
        return channel_mean(x)

    def values_averaged(self, x: Tensor) -> int:
        """Return the number of values that each mean and variance is taken over in training."""
        return self.processes() * x.numel() // x.shape[1]

    def call_kernel(self, x: Tensor) -> Tensor:
        """Normalize a batch with torch's kernel; in training, also update the running averages."""
        mean, variance, config = self.running_mean, self.running_var, self.config
        if not self.training:
            return F.batch_norm(x, mean, variance, self.weight, self.bias, False, 0.0, config.eps)
        count = self.values_averaged(x)
        # The kernel averages unbiased variances; for the biased ones, it is given their average times n / (n - 1).
        bias = 1.0 if config.unbiased else (count - 1) / count
        unbiased = variance / bias
        y = F.batch_norm(x, mean, unbiased, self.weight, self.bias, True, config.momentum, config.eps)
        variance.copy_(unbiased * bias)
        return y

    @torch.no_grad()
    def update_averages(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Update the running averages with a batch's mean and biased variance, (C,), each taken over `count` values.
        With `unbiased` the variance is first multiplied by count / (count - 1), or by 1 for one value.
        """
        if self.config.unbiased:
            variance = variance * (count / max(count - 1, 1))
        self.running_mean.add_(self.momentum * (mean - self.running_mean))
        self.running_var.add_(self.momentum * (variance - self.running_var))


class BatchNormFromScratch(BatchNorm):
    """Batch normalization line by line, as in a textbook. It computes what `BatchNorm` does, without its ValueError."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, also update the running averages."""
        x = at_least_fp32(x)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean = channel_mean(x)
            variance = channel_mean((x - spread(mean, x)).square())
            n = self.values_averaged(x)
            with torch.no_grad():
                new = variance * n / max(n - 1, 1) if self.config.unbiased else variance
                self.running_mean.copy_((1 - self.momentum) * self.running_mean + self.momentum * mean)
                self.running_var.copy_((1 - self.momentum) * self.running_var + self.momentum * new)
        x = (x - spread(mean, x)) / torch.sqrt(spread(variance, x) + self.epsilon)
        return affine(x, self.weight, self.bias)


class SyncBatchNorm(BatchNorm):
    """Batch normalization whose statistics in training are over the shards of all processes (`bnexp.runs.distributed`).

    With one process it is `BatchNorm`.
    Shapes: (N, C) or (N, C, H, W) → the same, where N is the size of this process's shard.
    """

    def processes(self) -> int:
        """Return over how many processes statistics are taken in training: all of them."""
        return processes()

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of each channel over all processes, (C,)."""
        return mean_over_processes(channel_mean(x))


class FrozenBatchNorm(nn.Module):
    """Batch normalization whose statistics, γ and β never change, not even in training: for fine-tuning (`init_from`).

    Training and inference: y = γ (x - running mean) / √(running variance + ε) + β. All four are buffers (C,).
    Shapes: (N, C) or (N, C, H, W) → the same.
    """

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.epsilon = scalar(config.eps)
        self.weight = nn.Buffer(torch.ones(features))
        self.bias = nn.Buffer(torch.zeros(features))
        self.running_mean = nn.Buffer(torch.zeros(features))
        self.running_var = nn.Buffer(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each channel."""
        scale = self.weight * torch.rsqrt(self.running_var + self.epsilon)
        return affine(at_least_fp32(x), scale, self.bias - self.running_mean * scale)


class ConditionalNorm(nn.Module):
    """A norm whose γ and β depend on the example's condition: y = γ[condition] x̂ + β[condition].

    Training and inference differ as in the layer that `norm` makes, which computes x̂ without a γ and β of its own. The
    caller puts the examples' conditions into the buffer `condition`: int64 (N,), or (1,) for one that all share.

    Shapes: (N, C) or (N, C, H, W) → the same; γ and β are (conditions, C).
    Source: Dumoulin et al. 2017, eq. 5.
    """

    condition: Tensor

    def __init__(self, norm: Make, config: NormConfig, features: int) -> None:
        super().__init__()
        self.norm = norm(replace(config, affine=False), features)
        self.weight = nn.Parameter(torch.ones(config.conditions, features))  # γ
        self.bias = nn.Parameter(torch.zeros(config.conditions, features))  # β
        self.condition = nn.Buffer(torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, then scale and shift each example with the γ and β of its condition (buffer `condition`)."""
        y: Tensor = self.norm(x)
        one_hot = self.condition[:, None] == torch.arange(len(self.weight), device=x.device)
        rows = one_hot.to(self.weight.dtype)  # select by a product: indexing has another gradient in a compiled stack
        with full_precision(x.device.type):  # like the γ and β of other norms
            return affine(y, rows @ self.weight, rows @ self.bias)


class GroupNorm(KernelNorm):
    """Group normalization: y = γ (x - mean) / √(variance + ε) + β, with a mean and a variance for each group of each
    example.

    Training and inference are the same: mean and biased variance are over C / groups channels and all positions.
    Shapes: (N, C) or (N, C, H, W) → the same; γ and β are (C,).
    Raises: ConfigError if C is not divisible by the number of groups.
    Source: Wu & He 2018, eq. 1 to 7.
    """

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(config, features)
        self.groups = config.groups
        if features % self.groups:
            divisors = ", ".join(str(n) for n in range(1, features + 1) if features % n == 0)
            channels = f"a layer's {features} channels"
            raise ConfigError(f"norm.groups={self.groups} does not divide {channels}: choose from {divisors}")

    def values_averaged(self, x: Tensor) -> int:
        """Return the number of values that each mean and variance is taken over."""
        return x.numel() // len(x) // self.groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each group of each example."""
        x = x if x.dim() > 2 else at_least_fp32(x)
        if self.calls_kernel(x):
            return F.group_norm(x, self.groups, self.weight, self.bias, self.config.eps)
        grouped = x.reshape(len(x), self.groups, -1)
        mean = grouped.mean(2)
        variance = (grouped - spread(mean, grouped)).square().mean(2)
        return affine(normalize(grouped, mean, variance, self.epsilon).flatten(1), self.weight, self.bias)


class LayerNorm(GroupNorm):
    """Layer normalization (Ba et al. 2016): `GroupNorm` with one group. γ and β are per channel, as in Wu & He 2018."""

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(replace(config, groups=1), features)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each example."""
        if x.dim() == 2 and self.calls_kernel(x):
            return F.layer_norm(at_least_fp32(x), x.shape[1:], self.weight, self.bias, self.config.eps)
        return super().forward(x)


class InstanceNorm(GroupNorm):
    """Instance normalization (Ulyanov et al. 2016): `GroupNorm` with one group for each channel."""

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(replace(config, groups=features), features)


class RMSNorm(KernelNorm):
    """Root mean square normalization: y = γ x / √(mean(x²) + ε), which subtracts no mean and has no β.

    Training and inference are the same: mean(x²) is taken over all channels and positions of each example.
    Shapes: (N, C) or (N, C, H, W) → the same; γ is (C,).
    Source: Zhang & Sennrich 2019, eq. 4.
    """

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(config, features)
        self.bias = None  # it has no β

    def forward(self, x: Tensor) -> Tensor:
        """Divide each example by its root mean square, then scale each channel."""
        x = at_least_fp32(x)
        if x.dim() == 2 and self.calls_kernel(x):
            return F.rms_norm(x, x.shape[1:], self.weight, self.config.eps)
        mean_square = x.square().flatten(1).mean(1, keepdim=True)
        x = x * spread(torch.rsqrt(mean_square + self.epsilon), x)
        return x if self.weight is None else x * spread(self.weight, x)


def scalar(value: float) -> nn.Buffer:
    """Make a hyperparameter a float64 buffer, so that the members of a stack can have different values.

    torch's kernels take numbers instead: norms that call one take them from their configuration.
    """
    return nn.Buffer(torch.tensor(value, dtype=torch.float64))


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Return a context that turns autocast off; it does nothing for devices without autocast, such as meta."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert bf16 to fp32, in which statistics are computed, as in torch's kernels; return other types unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x


def channel_mean(x: Tensor) -> Tensor:
    """Return the mean of each channel over examples and positions, (C,)."""
    return x.mean([axis for axis in range(x.dim()) if axis != 1])


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to values (C,) or (N, C), so that they broadcast over x (N, C, …)."""
    return values.reshape(*values.shape, *(1 for _ in x.shape[2:]))


def normalize(x: Tensor, mean: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    """Return (x - mean) / √(variance + eps), where mean and variance are (C,) or (N, C)."""
    return (x - spread(mean, x)) * spread(torch.rsqrt(variance + eps), x)


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return scale · x + shift, where both are (C,) or (N, C); return x unchanged if either is None."""
    return x if scale is None or shift is None else x * spread(scale, x) + spread(shift, x)
