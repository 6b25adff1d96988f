"""What tests build again and again."""

import torch

from bnexp.data.images import Images
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


def toy_images(count: int, shape: tuple[int, int, int], seed: int) -> Images:
    """Random images that are brighter the higher their label is."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=random)
    pixels = torch.randint(0, 200, (count, *shape), generator=random) + 5 * labels[:, None, None, None]
    return Images(pixels.to(torch.uint8), labels)


def toy_data(shape: tuple[int, int, int] = (1, 8, 8), validation: int = 130) -> Data:
    """A small data set of ten classes."""
    train, held_out, test = toy_images(250, shape, 0), toy_images(validation, shape, 1), toy_images(90, shape, 2)
    scale, shift = torch.full((shape[0], 1, 1), 1 / 255), torch.zeros(shape[0], 1, 1)
    return Data(train, held_out, test, 10, scale, shift, f"toy {shape} {validation}")
