"""Bjorck et al. 2018, "Understanding Batch Normalization": gradients and activations at the start of a narrow VGG-A on
CIFAR-10's photographs, where the paper has a ResNet of 110 layers.
"""

from bnexp.claims.claim import Claim
from bnexp.claims.initial import alignment, log_kurtosis, mean_shift
from bnexp.claims.rules import Directional
from bnexp.claims.sources.weight_norms import BATCH, NONE, START
from bnexp.claims.values import each

SOURCE = "Bjorck et al. 2018"

CLAIMS = [
    Claim(
        id="bjorck.tails",
        source=f"{SOURCE}, §3.2, figure 5",
        statement="Without BN the gradients at the start have heavier tails.",
        published="heavy-tailed",
        rules={
            "": Directional(
                each("log10 of the kurtosis of the middle layer's gradients", log_kurtosis, NONE),
                each("log10 of the kurtosis of the middle layer's gradients", log_kurtosis, BATCH),
            )
        },
        sweeps=[START],
    ),
    Claim(
        id="bjorck.aligned",
        source=f"{SOURCE}, §3.2, table 1",
        statement="Without BN a weight's gradient summands cancel less.",
        published="|sum| near the sum of |·|; with BN far below",
        rules={
            "": Directional(
                each("log10 of |sum| over the sum of |·|", alignment, NONE),
                each("log10 of |sum| over the sum of |·|", alignment, BATCH),
            )
        },
        sweeps=[START],
        note="Over the examples and positions of the batch, mean over the convolutions.",
    ),
    Claim(
        id="bjorck.channel_means",
        source=f"{SOURCE}, §3.1, figure 3",
        statement="Without BN the channels' means grow with depth.",
        published="grow",
        rules={
            "": Directional(
                each("mean shift of the last layer", mean_shift(-1), NONE),
                each("mean shift of the first layer", mean_shift(0), NONE),
            )
        },
        sweeps=[START],
        note="|mean| over standard deviation of a channel, before the ReLU.",
    ),
]
