"""The benchmark's network in plain PyTorch."""

from collections.abc import Callable
from itertools import pairwise

import torch
from serve import EPSILON, GROUPS, MOMENTUM, STD, WIDTHS
from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": lambda units: nn.BatchNorm1d(units, eps=EPSILON, momentum=MOMENTUM),
    "layer": lambda units: nn.LayerNorm(units, eps=EPSILON),
    "group": lambda units: nn.GroupNorm(GROUPS, units, eps=EPSILON),
    "rms": lambda units: nn.RMSNorm(units, eps=EPSILON),
}


def make_network(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=norm in ("none", "rms")))
        if norm in NORMS:
            layers.append(NORMS[norm](outputs))
        layers.append(nn.ReLU())
    model = nn.Sequential(*layers, nn.Linear(*WIDTHS[-2:]))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


@torch.no_grad()
def test_accuracy(model: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    model.eval()
    right = model(pixels.float() / 255).argmax(1) == labels
    model.train()
    return float(right.float().mean())
