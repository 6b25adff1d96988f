"""The benchmark's network in plain PyTorch."""

from itertools import pairwise

import torch
from serve import EPSILON, MOMENTUM, STD, WIDTHS
from torch import Tensor, nn


def make_network(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(WIDTHS[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=norm == "none"))
        if norm == "batch":
            layers.append(nn.BatchNorm1d(outputs, eps=EPSILON, momentum=MOMENTUM))
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
