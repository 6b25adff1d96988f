"""Norms of weights: Salimans & Kingma 2016, "Weight Normalization", and Brock et al. 2021, "Characterizing signal
propagation to close the performance gap in unnormalized ResNets", on a small ConvNet and CIFAR-10's photographs.

The papers' networks have nine layers (table 1) and up to 288; these have two convolutions, so that ten seeds take a few
minutes. Gains start at 1, without the initialization by the first batch of Salimans & Kingma.
"""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import against, curves
from bnexp.claims.initial import mean_shift
from bnexp.claims.rules import Directional, Equivalent
from bnexp.claims.sources.santurkar import NETWORK, PHOTOGRAPHS
from bnexp.claims.values import each, how_many_train, on_test, on_validation, validation_accuracy, where
from bnexp.compare.figures import Scales

SALIMANS, BROCK = "Salimans & Kingma 2016", "Brock et al. 2021"
MARGIN = 2.0  # points of test accuracy
NORMS = {
    "without": "none",
    "with batch normalization": "batch",
    "with normalized weights": "weight",
    "with scaled, centred weights": "scaled_weight",
}
ARMS = {label: where(f"norm={norm}") for label, norm in NORMS.items()}
NONE, BATCH, WEIGHT, SCALED = ARMS.values()
CONVNET = ClaimSweep(
    "weight_norms",
    f"{PHOTOGRAPHS} norm={','.join(NORMS.values())} arch=convnet arch.channels=[16,32] arch.dense=64 init=kaiming "
    "optim=adam optim.lr=0.001 batch_size=64 steps=300 threads=1 eval.first_every=50",
)
RATES = ClaimSweep(
    "weight_norm_rates",
    "norm=none,weight optim.lr=0.01,0.03,0.1,0.3,1,3,10 steps=2000 compile=true eval.first_every=500",
)
START = ClaimSweep(
    "initial_vgg",
    f"{PHOTOGRAPHS} dataset.limit=10000 norm=none,batch,scaled_weight {NETWORK} init=kaiming batch_size=64 steps=1 "
    "threads=1",
)
LAST_SHIFT = each("mean shift of the last layer", mean_shift(-1), NONE)
FIGURE = curves("weight_norms", "A small ConvNet on CIFAR-10's photographs, Adam", {"": ARMS})

CLAIMS = [
    Claim(
        id="salimans.faster",
        source=f"{SALIMANS}, §5.1, figure 1",
        statement="Normalized weights: better than none after as many steps.",
        published="faster",
        rules={"": Directional(on_validation(WEIGHT), on_validation(NONE))},
        sweeps=[CONVNET],
        note="Validation accuracy after 300 steps, where the paper shows the training error over 200 epochs.",
        figure=FIGURE,
    ),
    Claim(
        id="salimans.batch_better",
        source=f"{SALIMANS}, §5.1, table 2",
        statement="BN has less test error than normalized weights.",
        published="8.05% against 8.46%",
        rules={"": Directional(on_test(BATCH), on_test(WEIGHT))},
        sweeps=[CONVNET],
        figure=FIGURE,
    ),
    Claim(
        id="salimans.rates",
        source=f"{SALIMANS}, §2.1",
        statement="Normalized weights train at more learning rates.",
        published="robust to the learning rate",
        rules={"": Directional(how_many_train(WEIGHT, "optim.lr"), how_many_train(NONE, "optim.lr"))},
        sweeps=[RATES],
        note="MNIST, the lesson's network; seven rates from 0.01 to 10; trains: validation accuracy of at least 90% "
        "after 2,000 steps.",
        figure=against(
            "weight_norm_rates",
            "MNIST, 784-100-100-100-10, 2,000 steps",
            {"": {"without": NONE, "with normalized weights": WEIGHT}},
            "optim.lr",
            validation_accuracy,
            Scales("learning rate", "validation accuracy", log="x", share=True),
        ),
    ),
    Claim(
        id="brock.mean_shift",
        source=f"{BROCK}, §4",
        statement="Scaled, centred weights: less mean shift at the start.",
        published="eliminates the mean shift",
        rules={
            "": Directional(
                each("mean shift of the last layer", mean_shift(-1), SCALED),
                LAST_SHIFT,
                lower=True,
            )
        },
        sweeps=[START],
        note="|mean| over standard deviation of a channel, before the last ReLU of a narrow VGG-A.",
    ),
    Claim(
        id="brock.better_than_none",
        source=f"{BROCK}, §5",
        statement="Scaled, centred weights: better than no norm.",
        published="trains without a norm",
        rules={"": Directional(on_test(SCALED), on_test(NONE))},
        sweeps=[CONVNET],
        figure=FIGURE,
    ),
    Claim(
        id="brock.competitive",
        source=f"{BROCK}, §5, table 1",
        statement="Scaled, centred weights: as good as BN.",
        published="matches",
        rules={"": Equivalent(on_test(SCALED), on_test(BATCH), MARGIN, one_sided=True)},
        sweeps=[CONVNET],
        note=f"Taken as: worse by no more than {MARGIN:g} points. The paper's networks are residual.",
        figure=FIGURE,
    ),
]
