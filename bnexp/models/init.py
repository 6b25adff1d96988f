"""Initial weights. Each parameter has its own random numbers, which depend only on the seed and its name."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bnexp.runs.config import InitConfig
from bnexp.runs.plugins import find_entry
from bnexp.runs.seeds import generator

INITS: dict[str, Callable[[InitConfig, Tensor, torch.Generator], Tensor]] = {
    "normal": lambda config, weight, random: nn.init.normal_(weight, std=config.std, generator=random),
    "xavier": lambda config, weight, random: nn.init.xavier_uniform_(weight, generator=random),
    "kaiming": lambda config, weight, random: nn.init.kaiming_normal_(weight, generator=random),
    "torch": lambda config, weight, random: nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=random),
}


@torch.no_grad()
def initialize(model: nn.Module, config: InitConfig, seed: int) -> None:
    """Draw weights and biases of every linear and convolutional layer, in place. The model has to be on the CPU; its
    other parameters, such as γ and β of norms, are left as they are.

    Weights by `config.name`: normal: N(0, std²). xavier: U(±√(6 / (fan_in + fan_out))). kaiming: N(0, 2 / fan_in).
    torch: U(±1/√fan_in). Biases are U(±1/√fan_in) with torch, and 0 with the others. Raises ConfigError for an unknown
    name.
    """
    draw = find_entry("init", config.name, INITS)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        draw(config, module.weight, generator(seed, "parameter", f"{name}.weight"))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel()) if config.name == "torch" else 0.0
            module.bias.uniform_(-bound, bound, generator=generator(seed, "parameter", f"{name}.bias"))
