"""Batch renormalization: batch normalization in training that is corrected towards the running averages."""

import torch
from torch import Tensor

from bnexp.models.norms import BatchNorm, affine, at_least_fp32, normalize, scalar, spread
from bnexp.runs.config import NormConfig


class BatchRenorm(BatchNorm):
    """Batch renormalization: y = γ (r (x - mean) / √(variance + ε) + d) + β, with r and d for each channel.

    Training: mean and biased variance of the batch, and, with σ = √(variance + ε) and σ̄ that of the running average,

        r = σ / σ̄, limited to [1/R, R], and d = (mean - running mean) / σ̄, limited to ±D,

    through which no gradient flows. Without limits, y would be normalized by the running averages, as in inference; R
    rises from 1 to `r_max` and D from 0 to `d_max` over the first `ramp` updates, so that training begins as batch
    normalization. The running averages are updated as in `BatchNorm`, after they were used.
    Inference: as `BatchNorm`.

    Shapes: (N, C) or (N, C, H, W) → the same; γ, β, r, d and the running averages are (C,). Always the formula: torch
    has no kernel for it.
    Source: Ioffe 2017, algorithm 1, which averages σ, not the variance.
    """

    updates: Tensor

    def __init__(self, config: NormConfig, features: int) -> None:
        super().__init__(config, features)
        self.updates = scalar(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize a batch; in training, also correct it by r and d, and update the running averages."""
        if not self.training:
            return super().forward(x)
        x = at_least_fp32(x)
        mean = self.mean(x)
        variance = self.mean((x - spread(mean, x)).square())
        r, d = self.correction(mean, variance)
        self.update_averages(mean.detach(), variance.detach(), self.values_averaged(x))
        return affine(affine(normalize(x, mean, variance, self.epsilon), r, d), self.weight, self.bias)

    @torch.no_grad()
    def correction(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return r and d, (C,), for a batch's mean and variance, and count the update."""
        risen = (self.updates / self.config.ramp).clamp(max=1)
        largest, shift = 1 + (self.config.r_max - 1) * risen, self.config.d_max * risen
        self.updates.add_(1)
        known = torch.sqrt(self.running_var + self.epsilon)
        r = torch.sqrt(variance + self.epsilon) / known
        d = (mean - self.running_mean) / known
        return (
            torch.minimum(torch.maximum(r, 1 / largest), largest).to(mean.dtype),
            torch.minimum(torch.maximum(d, -shift), shift).to(mean.dtype),
        )
