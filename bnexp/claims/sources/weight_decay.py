"""Weight decay under batch normalization is a learning rate: van Laarhoven 2017, "L2 Regularization versus Batch and
Weight Normalization", and Li & Arora 2020, "An Exponential Learning Rate Schedule for Deep Learning". Identities.
"""

from bnexp.claims.claim import Claim
from bnexp.claims.rules import Exact
from bnexp.claims.sources.identities import decay_as_schedule, scale_as_rate

TOLERANCE = 1e-6  # of the outputs of 30 updates, relative to the largest

CLAIMS = [
    Claim(
        id="laarhoven.scale",
        source="van Laarhoven 2017, §2",
        statement="Weights times a with BN, and a² times the rate, give the same training.",
        published="equal",
        rules={"": Exact(scale_as_rate, TOLERANCE)},
    ),
    Claim(
        id="li_arora.schedule",
        source="Li & Arora 2020, theorem 2.7",
        statement="With BN, weight decay equals a rate that grows exponentially.",
        published="equal",
        rules={"": Exact(decay_as_schedule, TOLERANCE)},
    ),
]
