"""Modules that are random in training, whose random numbers come from the run's seed and step: noise and dropout."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from bnexp.models.norms import BatchNorm, affine, spread
from bnexp.runs.config import NormConfig
from bnexp.runs.distributed import shard


class Noise(nn.Module):
    """Base class of modules that are random in training.

    Before each step, the caller copies what `draw` returns into the module's buffers: so a resumed run, and one in a
    stack, has the random numbers that it has otherwise. SILENT: values of these buffers with which nothing is random.
    """

    SILENT: ClassVar[dict[str, float]] = {}

    def draw(self, random: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of one step, by the names of their buffers."""
        raise NotImplementedError


def noises(model: nn.Module) -> dict[str, Noise]:
    """Return the modules of a network that are random in training, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Noise)}


class NoisyBatchNorm(Noise):
    """Batch normalization, followed in training by a random scale and shift of each channel, drawn anew for each step.

    Training: y = s BN(x) + m, with m ~ U(-noise_shift, noise_shift) and s ~ U(1, noise_scale) for each channel; these
    are the buffers `scale` (s) and `shift` (m), (C,).
    Inference: y = BN(x). The running averages were taken under the noise and don't fit the network without it;
    `eval.recalibrate` computes them anew.

    Shapes: (N, C) or (N, C, H, W) → the same.
    Source: Santurkar et al. 2018, §2.1 and appendix A, whose noise also differs between examples.
    """

    SILENT: ClassVar = {"shift": 0.0, "scale": 1.0}

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__()
        self.norm = BatchNorm(config, features)
        self.noise_shift, self.noise_scale = config.noise_shift, config.noise_scale
        self.scale = nn.Buffer(torch.ones(features))
        self.shift = nn.Buffer(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and, in training, apply the random scale and shift."""
        y: Tensor = self.norm(x)
        return affine(y, self.scale, self.shift) if self.training else y

    def draw(self, random: torch.Generator) -> dict[str, Tensor]:
        """Draw the scale and shift (C,) for one step."""
        shift, scale = torch.rand(2, len(self.shift), generator=random)
        return {"shift": self.noise_shift * (2 * shift - 1), "scale": 1 + (self.noise_scale - 1) * scale}


class Dropout(Noise):
    """Dropout: in training, each feature of each example is set to 0 with probability p, else divided by 1 - p.

    The buffer `kept` (B, C) holds 0 or 1 / (1 - p) for every feature of the whole batch; under torchrun each process
    applies the rows of its own examples. Inference: y = x.

    Shapes: (N, C) or (N, C, H, W) → the same, with N ≤ B; a channel of an image is set to 0 as a whole.
    Source: Srivastava et al. 2014.
    """

    SILENT: ClassVar = {"kept": 1.0}

    def __init__(self, p: float, *shape: int) -> None:
        super().__init__()
        self.p = p
        self.kept = nn.Buffer(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Scale or remove the features of a batch, in training."""
        return x * spread(shard(self.kept, 0)[: len(x)], x).to(x.dtype) if self.training else x

    def draw(self, random: torch.Generator) -> dict[str, Tensor]:
        """Draw which features are kept in one step."""
        return {"kept": (torch.rand(self.kept.shape, generator=random) >= self.p) / (1 - self.p)}


class StochasticDepth(Dropout):
    """Stochastic depth: in training, each example's branch is set to 0 with probability p, and divided by 1 - p
    otherwise.

    It is `Dropout` with one factor for each example: `kept` is (B, 1).
    Source: Huang et al. 2016, whose surviving branches aren't divided in training but multiplied by 1 - p in inference.
    """
