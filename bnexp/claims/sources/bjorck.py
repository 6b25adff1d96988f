"""Bjorck et al. 2018, "Understanding Batch Normalization": gradients and activations at the start of a narrow VGG-A on
CIFAR-10's photographs, where the paper has a ResNet of 110 layers.
"""

from bnexp.claims.claim import Claim
from bnexp.claims.initial import alignment, log_kurtosis, mean_shift
from bnexp.claims.rules import Directional
from bnexp.claims.sources.weight_norms import BATCH, LAST_SHIFT, NONE, START
from bnexp.claims.values import Values, each


def claim(name: str, place: str, words: tuple[str, str], pair: tuple[Values, Values], note: str = "") -> Claim:
    """Return the claim that the first of two values is larger; `words` are the statement and what was published."""
    return Claim(
        id=f"bjorck.{name}",
        source=f"Bjorck et al. 2018, {place}",
        statement=words[0],
        published=words[1],
        rules={"": Directional(*pair)},
        sweeps=[START],
        note=note,
    )


TAILS = "log10 of the kurtosis of the middle layer's gradients"
ALIGNED = "log10 of |sum| over the sum of |·|"
CLAIMS = [
    claim(
        "tails",
        "§3.2, figure 5",
        ("Without BN the gradients at the start have heavier tails.", "heavy-tailed"),
        (each(TAILS, log_kurtosis, NONE), each(TAILS, log_kurtosis, BATCH)),
    ),
    claim(
        "aligned",
        "§3.2, table 1",
        ("Without BN a weight's gradient summands cancel less.", "|sum| near the sum of |·|; with BN far below"),
        (each(ALIGNED, alignment, NONE), each(ALIGNED, alignment, BATCH)),
        "Over the examples and positions of the batch, mean over the convolutions.",
    ),
    claim(
        "channel_means",
        "§3.1, figure 3",
        ("Without BN the channels' means grow with depth.", "grow"),
        (LAST_SHIFT, each("mean shift of the first layer", mean_shift(0), NONE)),
        "|mean| over standard deviation of a channel, before the ReLU.",
    ),
]
