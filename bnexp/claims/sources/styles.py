"""Conditional normalization: one network for several styles of MNIST, with a γ and a β for each style.

The networks of Dumoulin et al. 2017, "A Learned Representation for Artistic Style", paint; this one classifies.
"""

import numpy as np

from bnexp.claims.claim import Claim, ClaimSweep, of_family
from bnexp.claims.drawings import at_each, curves
from bnexp.claims.probes import accuracy_on_mixture
from bnexp.claims.rules import Directional, Equivalent, Exact
from bnexp.claims.sources.identities import fraction_of_parameters
from bnexp.claims.values import Values, each, on_test, over_runs, steps_to_share, where
from bnexp.compare.arms import accuracy
from bnexp.compare.figures import Scales
from bnexp.runs.record import RunRecord

SOURCE = "Dumoulin et al. 2017"
STYLES = ("plain", "inverted", "rotated90", "edges", "noise")
STEPS = 2000  # of a network of one style; the shared network sees as many images of each style
NEAR, FAR = "blurred", "flipped"  # new styles: the features of STYLES serve the first, and don't serve the second
NEW = (NEAR, FAR)
AFAR = (
    " It isn't reached within 2,000 steps: scales and shifts choose among the features of five styles, none of which "
    "is mirrored. A near style (blurred) is served at once."
)
MIXED = ("plain", "edges")
MARGIN = 1.0  # point of test accuracy
FRACTION = 0.25
SHARE = 0.95  # of the final accuracy of a network trained on the style from scratch
FEWER = 0.5  # of the steps of the network from scratch


def each_alone(styles: tuple[str, ...]) -> str:
    """Return the overrides that train a network of its own on each style."""
    return f"dataset.conditions={','.join(f'[{style}]' for style in styles)} optim.lr=0.1 steps={STEPS}"


SHARED = ClaimSweep(
    "styles_shared",
    f"norm=batch,conditional_batch dataset.conditions=[{','.join(STYLES)}] optim.lr=0.1 steps={len(STYLES) * STEPS} "
    f"eval.first_every={STEPS} eval.every={STEPS}",
)
SEPARATE = ClaimSweep("styles_separate", f"norm=batch {each_alone(STYLES)} eval.first_every=1000")
SCRATCH = ClaimSweep("styles_scratch", f"norm=conditional_batch {each_alone(NEW)}")
TUNED = ClaimSweep(
    "styles_tuned",
    f"norm=conditional_batch {each_alone(NEW)} trainable=norms "
    "init_from='results/sweeps/claims/styles_shared/norm=conditional_batch,seed=${seed}'",
    after=SHARED,
)

CONDITIONAL, ONE_FOR_ALL = where("norm=conditional_batch"), where("norm=batch")
OWN_NETWORKS = where(f"norm=batch steps={STEPS}")


def mixed(words: str, *norms: float) -> Values:
    """Return the `Values` of the shared network's test accuracy on images that are half of each of the styles MIXED.

    `norms` are shares of the second style in γ and β; the best of them counts. `words` names them to a reader.
    """

    def read(run: RunRecord) -> float:
        return max(accuracy_on_mixture(run, MIXED, 0.5, share) for share in norms)

    return each(f"test accuracy with {words}", read, CONDITIONAL, 100, "%")


def learned_by_norms(style: str) -> Claim:
    """Return the claim that γ and β alone learn a new style in less than half the steps of a network from scratch."""
    tuned, scratch = (where(f"dataset.conditions=['{style}'] trainable={what}") for what in ("norms", "all"))
    half = steps_to_share(SHARE, scratch, scratch, FEWER)
    return Claim(
        id=f"styles.new.{style}",
        source=f"{SOURCE}, §3",
        statement="γ and β alone learn a style far sooner.",
        published="5,000 steps against 40,000",
        rules={"": Directional(steps_to_share(SHARE, scratch, tuned), half, lower=True)},
        sweeps=[TUNED, SCRATCH],
        note=f"Taken as: in less than {FEWER:g} times the steps, to {SHARE:.0%} of the accuracy that the network from "
        f"scratch ends with; all other weights are those of the network of five styles.{AFAR if style == FAR else ''}",
        figure=curves(
            f"styles_{style}",
            f"A sixth style ({style}): MNIST, SGD at 0.1",
            {"": {"from scratch": scratch, "γ and β alone": tuned}},
        ),
    )


CLAIMS = of_family(
    "styles",
    [
        Claim(
            id="styles.accuracy",
            source=f"{SOURCE}, §3",
            statement="One network is as good as one per style.",
            published="comparable",
            rules={
                "": Equivalent(
                    on_test(CONDITIONAL),
                    over_runs("mean test accuracy", accuracy, OWN_NETWORKS, np.mean, 100, "%"),
                    MARGIN,
                    one_sided=True,
                )
            },
            sweeps=[SHARED, SEPARATE],
            note=f"Taken as: no more than a point worse, over {', '.join(STYLES)}; both see as many images of each "
            "style.",
        ),
        Claim(
            id="styles.parameters",
            source=f"{SOURCE}, §2.2",
            statement="One network has a fraction of their parameters.",
            published="a fraction",
            rules={"": Exact(lambda: fraction_of_parameters(STYLES), FRACTION, "the fraction of the parameters")},
            note=f"Taken as: less than a quarter, where {len(STYLES)} styles allow a fifth at best.",
        ),
        Claim(
            id="styles.own_scale",
            source=f"{SOURCE}, §2.2",
            statement="γ and β for each style beat one for all.",
            published="better",
            rules={"": Directional(on_test(CONDITIONAL), on_test(ONE_FOR_ALL))},
            sweeps=[SHARED],
            note="Every image shows its own style, so a network with one γ and β can tell, too; a painter can't.",
        ),
        *(learned_by_norms(style) for style in NEW),
        Claim(
            id="styles.mixture",
            source=f"{SOURCE}, §3",
            statement="Mixed γ and β serve mixed images best.",
            published="better",
            rules={
                "": Directional(mixed("γ, β half of each", 0.5), mixed("the better of both styles' γ, β", 0.0, 1.0))
            },
            sweeps=[SHARED],
            note=f"Test images that are half {MIXED[0]} and half {MIXED[1]}, pixel by pixel. There the γ and β of "
            f"{MIXED[1]} alone are as good; the mixture is good all along (the figure).",
            figure=at_each(
                "styles_mixture",
                f"MNIST, images between {MIXED[0]} (0) and {MIXED[1]} (1)",
                CONDITIONAL,
                {
                    "γ, β mixed likewise": lambda run, share: accuracy_on_mixture(run, MIXED, share, share),
                    f"γ, β of {MIXED[0]}": lambda run, share: accuracy_on_mixture(run, MIXED, share, 0),
                    f"γ, β of {MIXED[1]}": lambda run, share: accuracy_on_mixture(run, MIXED, share, 1),
                },
                [0.0, 0.25, 0.5, 0.75, 1.0],
                Scales("share in the image", "test accuracy"),
            ),
        ),
    ],
)
