"""What tests build again and again."""

import torch

from bnexp.data.load import Data
from bnexp.models.norm_registry import NORMS
from bnexp.runs.config import RunConfig
from bnexp.training.device import decide_compilation
from bnexp.training.engine import Stack

IMAGES_ONLY = {name for name, norm in NORMS.items() if norm.images_only}
OF_WEIGHTS = {name for name, norm in NORMS.items() if norm.of_weights}
CONDITIONAL = {name for name, norm in NORMS.items() if norm.conditional}


def make_stack(configs: list[RunConfig], data: Data, device: torch.device) -> Stack:
    """A stack that is compiled where its configuration is."""
    return Stack(configs, data, device, decide_compilation(configs[0]).compiled)
