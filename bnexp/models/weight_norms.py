"""Normalizations of a layer's weights instead of its outputs: the same in training and inference, for any batch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.models.norms import full_precision
from bnexp.runs.config import NormConfig

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))  # makes the variance of ReLU(x), x ~ N(0, 1), one again
SMALLEST = 1e-4  # variance · inputs of an output's weights, at least


class WeightNorm(nn.Module):
    """Weight normalization: a layer is computed with the weights w = g v / ‖v‖, of each output, and its own bias.

    v are the layer's parameters, (outputs, inputs, …), and g, (outputs,), 1 at first, is learned; the paper sets it and
    the bias from the first batch. Without `affine`, g stays 1. Training and inference are the same.

    Shapes: what the layer maps to what; on its own, as a module, it returns its input.
    Source: Salimans & Kingma 2016, eq. 2.
    """

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features)) if config.affine else None  # g

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output unchanged: it is computed with normalized weights already (`through`)."""
        return x

    def through(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return the output of a linear or convolutional layer with normalized weights."""
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise TypeError(f"{type(layer).__name__} has no weights to normalize")
        with full_precision(x.device.type):
            rows = self.normalized(layer.weight.flatten(1))
            scaled = rows if self.weight is None else rows * self.weight[:, None]
            weight = scaled.reshape(layer.weight.shape)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)

    def normalized(self, rows: Tensor) -> Tensor:
        """Return each output's weights, (outputs, inputs), with a length of 1."""
        return rows / rows.square().sum(1, keepdim=True).sqrt()


class ScaledWeightNorm(WeightNorm):
    """Scaled weight standardization: w = g γ (v - mean) / (σ √inputs), with mean and σ over the inputs of an output.

    γ = √(2 / (1 - 1/π)) keeps the variance through a ReLU; other activations have the same γ. σ² · inputs counts as at
    least 1e-4.
    Shapes and use as `WeightNorm`.
    Source: Brock et al. 2021, "Characterizing signal propagation to close the performance gap in unnormalized ResNets",
    §4.
    """

    def normalized(self, rows: Tensor) -> Tensor:
        """Return each output's weights, (outputs, inputs), with mean 0 and a sum of squares of γ²."""
        centred = rows - rows.mean(1, keepdim=True)
        return centred * (RELU_GAIN * torch.rsqrt(centred.square().sum(1, keepdim=True).clamp(min=SMALLEST)))
