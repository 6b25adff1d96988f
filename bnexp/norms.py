"""Every normalization: x̂ = (x - mean) / √(variance + ε), then γ x̂ + β. They differ in what they average over.

Vectors (N, C) are written as this formula: it is the subject of the project, the compiler fuses it, and under vmap it
gives each member of a stack the very bytes it has alone. Images (N, C, H, W) use torch's kernels, which compute the
same formula (0.95 against 0.62 thousand images/s in a ConvNet on two cores).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.config import ConfigError, NormConfig, require_choice


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
            raise ConfigError(f"norm.groups={groups} does not divide {features} channels: choose from {allowed}")
        self.groups, self.eps = groups, eps
        register_numbers(self, epsilon=eps)
        self.weight = nn.Parameter(torch.ones(features)) if affine else None  # γ
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None  # β

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() > 2:
            return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        grouped = at_least_fp32(x).reshape(len(x), self.groups, -1)
        mean = grouped.mean(2, keepdim=True)
        variance = (grouped - mean).square().mean(2, keepdim=True)
        return affine(normalize(grouped, mean, variance, self.epsilon).flatten(1), self.weight, self.bias)


def register_numbers(module: nn.Module, **numbers: float) -> None:
    """Hyperparameters as buffers, so that the members of a stack may differ in them. torch's kernels for images take
    a float, so ε is kept as one too.
    """
    for name, number in numbers.items():
        module.register_buffer(name, torch.tensor(number, dtype=torch.float64))


def at_least_fp32(x: Tensor) -> Tensor:
    """Statistics of bf16 activations are taken in fp32, as torch's kernels do."""
    return x.float() if x.dtype == torch.bfloat16 else x


def normalize(x: Tensor, mean: Tensor, variance: Tensor, eps: Tensor) -> Tensor:
    return (x - mean) * torch.rsqrt(variance + eps)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None or bias is None:
        return x
    return x * weight + bias


NORMS: dict[str, Callable[[NormConfig, int], nn.Module]] = {
    "none": lambda config, features: nn.Identity(),  # the control arm: same network, no normalization
    "batch": lambda config, features: BatchNorm(
        features, eps=config.eps, momentum=config.momentum, unbiased=config.unbiased, affine=config.affine
    ),
    "layer": lambda config, features: GroupNorm(features, groups=1, eps=config.eps, affine=config.affine),
    "instance": lambda config, features: GroupNorm(features, groups=features, eps=config.eps, affine=config.affine),
    "group": lambda config, features: GroupNorm(features, config.groups, eps=config.eps, affine=config.affine),
}
IMAGES_ONLY = {"instance"}  # of a vector, each "image" is one number: what is left of it is β


def make_norm(config: NormConfig, features: int) -> nn.Module:
    """Layer for `features` channels, (N, C) or (N, C, H, W) → same shape. Raises ConfigError on an unknown name."""
    require_choice("norm", config.name, NORMS)
    return NORMS[config.name](config, features)
