"""Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift".

§4.1 trains 3×100 sigmoid units on binarised MNIST, 60 examples a batch, 50,000 steps, "small random Gaussian" weights.
Its learning rate isn't published: the plain network gets the best of a grid, chosen on validation, and the network with
batch normalization the same one.
"""

from bnexp.claims.claim import Claim, ClaimSweep, of_family
from bnexp.claims.drawings import against, curves, percentiles
from bnexp.claims.rules import Directional, Exact, Share, Sooner
from bnexp.claims.sources.identities import bias_before, scaled_gradient, scaled_weights
from bnexp.claims.values import (
    TRAINS,
    at_best_of,
    best,
    drift,
    drift_of_spread,
    each,
    largest_that_trains,
    on_test,
    on_validation,
    validation_accuracy,
    where,
)
from bnexp.compare.figures import Scales

SOURCE = "Ioffe & Szegedy 2015"
BINARY = "dataset.binarize=true act=sigmoid"
FIG1 = [
    ClaimSweep("ioffe_szegedy_none", f"{BINARY} norm=none optim.lr=1,3 eval.first_every=100", tuned=True),
    ClaimSweep("ioffe_szegedy_batch", f"{BINARY} norm=batch optim.lr=1 eval.first_every=100"),
]
RATES = ClaimSweep(
    "ioffe_szegedy_rates",
    f"{BINARY} norm=none,batch optim.lr=0.3,1,3,5,15,30,90 steps=5000 eval.first_every=500",
    tuned=True,
)

NONE, BATCH = where("norm=none"), where("norm=batch")
PLAIN = best(NONE, "optim.lr")
SAME_RATE = at_best_of(BATCH, NONE, "optim.lr")
LAST = "hidden.2"  # the last hidden sigmoid
SETTLED = 100  # steps after which the running averages, which evaluation uses, no longer depend on their initial values
WARM_UP = "Earlier ones are left out since the lesson's runs, not these, showed the averages' warm-up in them."
CHOSEN = (
    "Rates 1 and 3, among the best of seven after 5,000 steps; the better one after 50,000, on validation and on other "
    "seeds, is that of both networks."
)
CUT = (
    "left out, for time, after their runs had been seen: rate 0.3, which was worse, and rate 3 with batch "
    "normalization, by which nothing is judged unless it is the plain network's best"
)

FIGURE_1A = curves(
    "ioffe_szegedy_1a",
    "Ioffe & Szegedy 2015, figure 1a: 3×100 sigmoid, binarised MNIST",
    {"the plain network's best rate": {"without": PLAIN, "with batch normalization": SAME_RATE}},
)
FIGURE_1BC = percentiles(
    "ioffe_szegedy_1bc",
    "Ioffe & Szegedy 2015, figure 1b, c: a typical input of the last hidden sigmoid, percentiles",
    {"without": {"": PLAIN}, "with batch normalization": {"": SAME_RATE}},
    LAST,
)
FIGURE_RATES = against(
    "ioffe_szegedy_rates",
    "3×100 sigmoid, binarised MNIST, 5,000 steps",
    {"": {"without": NONE, "with batch normalization": BATCH}},
    "optim.lr",
    validation_accuracy,
    Scales("learning rate", "validation accuracy", log="x", share=True),
)


INCEPTION = "The paper's networks are Inception's on ImageNet; here its own MNIST network of §4.1."


def multiple(norm: str, times: int, most: bool, statement: str, note: str = INCEPTION) -> Claim:
    """Return the claim that with `norm` most seeds train, at `times` the best learning rate without normalization.

    With `most` false, the claim is that most do not.
    """
    runs = at_best_of(where(f"norm={norm}"), NONE, "optim.lr", times)
    return Claim(
        id=f"ioffe_szegedy.rate_x{times}.{norm}",
        source=f"{SOURCE}, §4.2.2",
        statement=statement,
        published=f"×{times}: {'trains' if most else 'does not train'}",
        rules={"": Share(on_validation(runs), 100 * TRAINS, most)},
        sweeps=[RATES],
        note=note,
        figure=FIGURE_RATES,
    )


CLAIMS = of_family(
    "ioffe_szegedy",
    [
        Claim(
            id="ioffe_szegedy.fig1a.accuracy",
            source=f"{SOURCE}, §4.1, figure 1a",
            statement="BN has the higher test accuracy.",
            published="higher",
            rules={"": Directional(on_test(SAME_RATE), on_test(PLAIN))},
            sweeps=FIG1,
            note=CHOSEN,
            changed=CUT,
            figure=FIGURE_1A,
        ),
        Claim(
            id="ioffe_szegedy.fig1a.faster",
            source=f"{SOURCE}, §4.1, figure 1a",
            statement="BN reaches 95% in fewer steps.",
            published="faster",
            rules={"": Sooner(0.95, SAME_RATE, PLAIN, steps=True)},
            sweeps=FIG1,
            note=CHOSEN,
            changed=CUT,
            figure=FIGURE_1A,
        ),
        Claim(
            id="ioffe_szegedy.fig1b.median",
            source=f"{SOURCE}, §4.1, figure 1b, c",
            statement="The last sigmoid's median moves less.",
            published="more stable",
            rules={
                "": Directional(
                    each("range of the median", drift(f"{LAST}/p50", SETTLED), SAME_RATE),
                    each("range of the median", drift(f"{LAST}/p50", SETTLED), PLAIN),
                    lower=True,
                )
            },
            sweeps=FIG1,
            note=f"The range, from step {SETTLED} on, of the first unit's median over 500 validation images. {WARM_UP}",
            figure=FIGURE_1BC,
        ),
        Claim(
            id="ioffe_szegedy.fig1b.spread",
            source=f"{SOURCE}, §4.1, figure 1b, c",
            statement="Nor does its spread move as much.",
            published="more stable",
            rules={
                "": Directional(
                    each("range of the spread", drift_of_spread(LAST, SETTLED), SAME_RATE),
                    each("range of the spread", drift_of_spread(LAST, SETTLED), PLAIN),
                    lower=True,
                )
            },
            sweeps=FIG1,
            note=f"The range, from step {SETTLED} on, of the first unit's spread over 500 validation images. {WARM_UP}",
            figure=FIGURE_1BC,
        ),
        Claim(
            id="ioffe_szegedy.rates",
            source=f"{SOURCE}, §3.3",
            statement="BN trains at higher learning rates.",
            published="larger",
            rules={"": Directional(largest_that_trains(BATCH, "optim.lr"), largest_that_trains(NONE, "optim.lr"))},
            sweeps=[RATES],
            note="Trains: validation accuracy of at least 90% after 5,000 steps.",
            figure=FIGURE_RATES,
        ),
        multiple("none", 5, False, "Without BN, 5 times the best rate fails."),
        multiple("batch", 5, True, "With BN, 5 times that rate trains."),
        multiple(
            "batch",
            30,
            True,
            "With BN, 30 times that rate trains.",
            note=f"{INCEPTION} The paper multiplies Inception's customary rate; here it is the best of a grid, which "
            "leaves less room: the largest rate that trains with batch normalization is 10 times as high.",
        ),
        Claim(
            id="ioffe_szegedy.scale.output",
            source=f"{SOURCE}, §3.3",
            statement="BN((aW)u) = BN(Wu).",
            published="equal",
            rules={"": Exact(scaled_weights)},
        ),
        Claim(
            id="ioffe_szegedy.scale.gradient",
            source=f"{SOURCE}, §3.3",
            statement="∂BN((aW)u) / ∂(aW) = (1/a) ∂BN(Wu) / ∂W.",
            published="equal",
            rules={"": Exact(scaled_gradient)},
        ),
        Claim(
            id="ioffe_szegedy.bias",
            source=f"{SOURCE}, §3.2",
            statement="A bias before BN has no effect: BN(Wu + b) = BN(Wu), and its gradient is 0.",
            published="equal",
            rules={"": Exact(bias_before)},
            note="So a layer before batch normalization needs no bias (Chollet, Deep Learning with Python, ch. 9).",
            replaces=["chollet.bias"],
        ),
    ],
)
