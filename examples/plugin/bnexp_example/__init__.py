"""A norm and an architecture for bnexp."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from bnexp.plugin import Builder, GlobalMean, Norm, NormConfig, Shape, chain, scalar


class SwitchableNorm(nn.Module):
    """Switchable normalization: y = γ (x - Σ wₖ meanₖ) / √(Σ vₖ varianceₖ + ε) + β.

    k stands for the statistics of batch, layer and instance normalization; w and v are learned, each as the softmax of
    three numbers. Vectors have no statistics of an instance. Training: the batch's mean and variance, which update
    running averages; inference: the running averages.

    Shapes: (N, C) or (N, C, H, W) → the same.
    Source: Luo et al. 2019, "Differentiable learning-to-normalize via switchable normalization", eq. 3 to 5.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.eps, self.momentum = scalar(config.eps), scalar(config.momentum)  # which may differ within a stack
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.means, self.variances = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.running_mean, self.running_var = nn.Buffer(torch.zeros(features)), nn.Buffer(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, also update the running averages."""
        places = list(range(2, x.dim()))
        shape = (1, -1, *(1 for _ in places))
        pairs = [self.of_batch(x, [0, *places], shape), moments(x, [1, *places])]
        pairs += [moments(x, places)] if places else []
        mean = sum(w * pair[0] for w, pair in zip(self.means[: len(pairs)].softmax(0), pairs, strict=True))
        variance = sum(v * pair[1] for v, pair in zip(self.variances[: len(pairs)].softmax(0), pairs, strict=True))
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight.view(shape) + self.bias.view(shape)

    def of_batch(self, x: Tensor, axes: list[int], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each channel: the batch's in training, else the running averages."""
        if not self.training:
            return self.running_mean.view(shape), self.running_var.view(shape)
        mean, variance = moments(x, axes)
        with torch.no_grad():
            self.running_mean.add_(self.momentum * (mean.flatten() - self.running_mean))
            self.running_var.add_(self.momentum * (variance.flatten() - self.running_var))
        return mean, variance


def moments(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance over some axes, which remain with length 1."""
    mean = x.mean(axes, keepdim=True)
    return mean, (x - mean).square().mean(axes, keepdim=True)


SWITCHABLE = Norm(SwitchableNorm, stackable=("eps", "momentum"))


def plain20(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make a network of twenty 3×3 convolutions without shortcuts: six at full size, then twice seven at half of it."""
    channels = [builder.arch.channels[0]] * 6 + [builder.arch.channels[1]] * 7 + [builder.arch.channels[2]] * 7
    widths = [shape[0], *channels]
    blocks = [
        builder.block(builder.convolution(n, m, stride=2 if number in (6, 13) else 1), m)
        for number, (n, m) in enumerate(pairwise(widths))
    ]
    return chain(convolutions=nn.Sequential(*blocks), mean=GlobalMean(), classifier=nn.Linear(widths[-1], classes))
