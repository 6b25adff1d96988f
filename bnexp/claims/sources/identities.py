"""The largest errors of identities that normalization should satisfy, computed in float64 with bnexp's own norms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.models.norms import BatchNorm, GroupNorm
from bnexp.models.registry import make_model
from bnexp.runs.config import DatasetConfig, NormConfig, RunConfig
from bnexp.runs.seeds import generator

EPS = 1e-14  # nearly 0: the identities of scaled weights hold where ε is negligible beside the variance


def draw(*shape: int) -> Tensor:
    """Return normal random numbers of a shape, in float64; equal shapes get equal numbers."""
    random = generator(0, "identity", *shape)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference between elements of two tensors of one shape."""
    return float((ours - theirs).detach().abs().max())


def batch_norm(features: int) -> nn.Module:
    """Return bnexp's batch normalization of (N, features) in training mode, without γ and β, in float64."""
    return BatchNorm(NormConfig(eps=EPS, affine=False), features).double()


def group_norm(features: int, groups: int) -> nn.Module:
    """Return bnexp's group normalization of `features` channels, without γ and β, in float64."""
    return GroupNorm(NormConfig(groups=groups, affine=False), features).double()


# ---- Ioffe & Szegedy 2015, §3.3


def normalized(u: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return BN(W u + b), (N, outputs), for a batch u, (N, inputs), and W, (outputs, inputs)."""
    y: Tensor = batch_norm(len(weight))(F.linear(u, weight, bias))
    return y


def scaled_weights() -> float:
    """Return the largest difference between BN((aW) u) and BN(W u), for a of 0.01, 3 and 100."""
    u, weight = draw(60, 100), draw(50, 100)
    return max(largest_error(normalized(u, a * weight), normalized(u, weight)) for a in (0.01, 3.0, 100.0))


def scaled_gradient() -> float:
    """Return the largest error of ∂BN((aW) u) / ∂(aW) = (1 / a) ∂BN(W u) / ∂W, for a of 0.01, 3 and 100.

    Each gradient is that of a random linear function of the output. The error is that of the equation times a, relative
    to the largest element of ∂BN(W u) / ∂W.
    """
    u, weight, direction = draw(60, 100), draw(50, 100), draw(60, 50)

    def gradient(a: float) -> Tensor:
        leaf = (a * weight).requires_grad_()
        return torch.autograd.grad((normalized(u, leaf) * direction).sum(), leaf)[0]

    plain = gradient(1.0)
    return max(largest_error(a * gradient(a), plain) for a in (0.01, 3.0, 100.0)) / float(plain.abs().max())


def bias_before() -> float:
    """Return the larger of two errors: the largest difference between BN(W u + b) and BN(W u), and the largest absolute
    gradient with respect to b, which should be 0.
    """
    u, weight, direction = draw(60, 100), draw(50, 100), draw(60, 50)
    bias = draw(50).requires_grad_()
    y = normalized(u, weight, bias)
    gradient = torch.autograd.grad((y * direction).sum(), bias)[0]
    return max(largest_error(y, normalized(u, weight)), float(gradient.abs().max()))


def one_example_is_beta() -> float:
    """Return the largest difference between batch normalization of a batch of one vector, in training mode, and β."""
    norm, beta = BatchNorm(NormConfig(), 12).double().train(), draw(12)
    y = functional_call(norm, {"bias": beta}, (draw(1, 12),))
    return largest_error(y, beta[None])


# ---- Wu & He 2018, §3.1, §3.2


def one_group_is_layer() -> float:
    """Return the largest difference between group normalization with one group and layer normalization over all
    channels and positions, for images and vectors.
    """
    inputs = (draw(8, 12, 7, 5), draw(8, 12))
    return max(largest_error(group_norm(12, 1)(x), F.layer_norm(x, x.shape[1:], eps=1e-5)) for x in inputs)


def groups_of_one_are_instance() -> float:
    """Return the largest difference, for images, between group normalization with as many groups as channels and
    instance normalization.
    """
    x = draw(8, 12, 7, 5)
    return largest_error(group_norm(12, 12)(x), F.instance_norm(x, eps=1e-5))


def batch_of_one_is_instance() -> float:
    """Return the largest difference between batch normalization of a batch of one image, in training mode, and instance
    normalization.
    """
    x = draw(1, 12, 7, 5)
    norm = BatchNorm(NormConfig(affine=False), 12).double().train()
    return largest_error(norm(x), F.instance_norm(x, eps=1e-5))


# ---- Dumoulin et al. 2017, §2.2


def fraction_of_parameters(styles: Sequence[str]) -> float:
    """Return the parameters of one network with a scale and shift for each style, over those of a network a style."""
    shared, own = (
        sum(parameter.numel() for parameter in make_model(config, (1, 28, 28), 10).parameters())
        for config in (
            RunConfig(norm=NormConfig("conditional_batch"), dataset=DatasetConfig(conditions=list(styles))),
            RunConfig(norm=NormConfig("batch")),
        )
    )
    return shared / (len(styles) * own)


# ---- weight decay and scale before batch normalization


def outputs_of_training(scale: float, rates: Sequence[float], decay: float) -> Tensor:
    """Return the outputs (updates, N, 10) of a layer with batch normalization, which feeds a fixed linear classifier.

    Its weights start `scale` times a random draw, and are trained on one batch by gradient descent, w ← w - rate ·
    (∇ + decay · w), with one update for each of `rates`. Outputs are those before each update.
    """
    u, readout, labels = draw(60, 30), draw(10, 20), torch.arange(60) % 10
    weight, found = scale * draw(20, 30), list[Tensor]()
    for rate in rates:
        leaf = weight.requires_grad_()
        logits = normalized(u, leaf) @ readout.T
        gradient = torch.autograd.grad(F.cross_entropy(logits, labels), leaf)[0]
        found.append(logits.detach())
        weight = (leaf - rate * (gradient + decay * leaf)).detach()
    return torch.stack(found)


def scale_as_rate() -> float:
    """Return the largest difference of outputs, over the largest, in 30 updates, between weights of scale 1 at a rate
    and of scale 5 at 25 times the rate.
    """
    plain, scaled = outputs_of_training(1.0, [0.5] * 30, 0.0), outputs_of_training(5.0, [25 * 0.5] * 30, 0.0)
    return largest_error(plain, scaled) / float(plain.abs().max())


def decay_as_schedule() -> float:
    """Return the largest difference of outputs, over the largest, between a constant rate with weight decay and a rate
    that grows exponentially without, in 30 updates.

    With c = 1 - rate · decay, weights w' = w / cᵗ see gradients cᵗ times as large; their rate is rate / c^(2t + 1).
    """
    rate, decay = 0.5, 0.02
    c = 1 - rate * decay
    grown = [rate / c ** (2 * step + 1) for step in range(30)]
    decayed, plain = outputs_of_training(1.0, [rate] * 30, decay), outputs_of_training(1.0, grown, 0.0)
    return largest_error(decayed, plain) / float(decayed.abs().max())
