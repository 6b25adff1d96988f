"""All claims, in the order of their sources, and how to pick some by name."""

from difflib import get_close_matches

from bnexp.claims.claim import Claim
from bnexp.claims.sources import (
    architectures,
    ba,
    batch_statistics,
    bjorck,
    cifar10,
    counter,
    fine_tuning,
    frankle,
    handbooks,
    ioffe_szegedy,
    keras,
    santurkar,
    styles,
    udacity,
    weight_decay,
    weight_norms,
    wiki,
    wu_he,
)
from bnexp.runs.config import ConfigError

CLAIMS: list[Claim] = [
    *udacity.CLAIMS,
    *wiki.CLAIMS,
    *ioffe_szegedy.CLAIMS,
    *wu_he.CLAIMS,
    *handbooks.CLAIMS,
    *counter.CLAIMS,
    *styles.CLAIMS,
    *fine_tuning.CLAIMS,
    *keras.CLAIMS,
    *santurkar.CLAIMS,
    *architectures.CLAIMS,
    *cifar10.CLAIMS,
    *ba.CLAIMS,
    *batch_statistics.CLAIMS,
    *weight_decay.CLAIMS,
    *weight_norms.CLAIMS,
    *bjorck.CLAIMS,
    *frankle.CLAIMS,
]


def source(claim: Claim) -> str:
    """Return the first part of a claim's id, which its source's claims share, as "wiki"."""
    return claim.id.split(".", maxsplit=1)[0]


def pick(names: list[str]) -> list[Claim]:
    """Return the claims whose ids begin with one of `names`, or all claims where there are no names.

    Raises ConfigError for a name with which no id begins.
    """
    for name in names:
        if not any(claim.id.startswith(name) for claim in CLAIMS):
            starts = sorted({".".join(c.id.split(".")[:n]) for c in CLAIMS for n in range(1, 5)})
            near = get_close_matches(name, starts, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            families = ", ".join(dict.fromkeys(map(source, CLAIMS)))
            raise ConfigError(f"{name} is not a claim: {hint}choose from {families}, or see bnexp reproduce --list")
    return [claim for claim in CLAIMS if not names or claim.id.startswith(tuple(names))]
