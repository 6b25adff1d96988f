"""Counter-claims: cases in which batch normalization is said not to help."""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import against, by_layer
from bnexp.claims.initial import gradient_growth, gradient_norms
from bnexp.claims.prediction import LOG
from bnexp.claims.published import PublishedRun
from bnexp.claims.rules import Equivalent, Share
from bnexp.claims.values import TRAINS, best, each, on_test, on_validation, validation_accuracy, where
from bnexp.compare.figures import Scales

YANG = "Yang et al. 2019"
LAYERS = 50
DEEP = ClaimSweep(
    "yang",
    f"norm=none,batch init=kaiming arch.depth={LAYERS} optim.lr=0.01,0.1 steps=2000 compile=true eval.first_every=500",
    tuned=True,
)
TUNED = ClaimSweep(
    "tuned", "norm=none,batch optim.lr=0.03,0.1,0.3,1 steps=10000 eval.first_every=2500 eval.every=2500", tuned=True
)
NONE, BATCH = where("norm=none"), where("norm=batch")
MARGIN = 0.2  # points of test accuracy
ARMS = {"without": NONE, "with batch normalization": BATCH}
STARTS = {label: where(f"{arm.label} optim.lr=0.01") for label, arm in ARMS.items()}
GRADIENTS = by_layer(
    "yang",
    f"Yang et al. 2019: {LAYERS} layers of 100 ReLU units at the start",
    {"": STARTS},
    gradient_norms,
    "squared gradient norm",
)

CLAIMS = [
    Claim(
        id="counter.yang.gradient",
        source=f"{YANG}, §3.4",
        statement="BN: squared gradient grows 1.467-fold a layer.",
        published="1.467",
        rules={
            "": PublishedRun(
                each("growth a layer", gradient_growth, STARTS["with batch normalization"]), 1.467, 0.25, 1.0, LOG
            )
        },
        sweeps=[DEEP],
        note="It is π/(π-1), at infinite width and batch; here 100 units and 60 examples. Without BN it is 1.",
        changed="a tolerance of 0.1 stood beside the interval, which was normal on the scale of the factor",
        figure=GRADIENTS,
    ),
    Claim(
        id="counter.yang.untrainable",
        source=f"{YANG}, §1, §4",
        statement=f"{LAYERS} layers train without BN, not with it.",
        published="does not train",
        rules={
            "": Share(
                on_validation(best(BATCH, "optim.lr")),
                100 * TRAINS,
                most=False,
                control=on_validation(best(NONE, "optim.lr")),
            )
        },
        sweeps=[DEEP],
        note="Trains: validation accuracy of at least 90% after 2,000 steps; rates 0.01 and 0.1. "
        "Without normalization it gets further, but not to 90%.",
        changed="that the control must train was added after one seed of each, at 1,000 steps and 0.01, didn't train",
        figure=GRADIENTS,
    ),
    Claim(
        id="counter.tuned_relu",
        source="Counter-claim",
        statement="Tuned, a network without BN isn't worse.",
        published="not worse",
        rules={
            "": Equivalent(on_test(best(NONE, "optim.lr")), on_test(best(BATCH, "optim.lr")), MARGIN, one_sided=True)
        },
        sweeps=[TUNED],
        note=f"Taken as: by no more than {MARGIN:g} points of test accuracy. Rates 0.03, 0.1, 0.3 and 1, the "
        "best of each arm on validation and on other seeds; 10,000 steps.",
        figure=against(
            "tuned",
            "ReLU, 10,000 steps",
            {"": ARMS},
            "optim.lr",
            validation_accuracy,
            Scales("learning rate", "validation accuracy", log="x"),
        ),
    ),
]
