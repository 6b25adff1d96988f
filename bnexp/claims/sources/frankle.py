"""Frankle et al. 2021, "Training BatchNorm and Only BatchNorm": γ and β alone, all other weights random, on CIFAR-10's
photographs; 200 steps, where the paper trains 160 epochs.
"""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import curves
from bnexp.claims.rules import Directional, Share
from bnexp.claims.sources.santurkar import PHOTOGRAPHS
from bnexp.claims.values import on_test, where

SOURCE = "Frankle et al. 2021"
ABOVE = 15  # percent of the test images: half again as many as by chance
SWEEP = ClaimSweep(
    "frankle",
    f"{PHOTOGRAPHS} arch=resnet arch.depth=8,20 norm=batch trainable=norms init=kaiming optim=momentum optim.lr=0.1 "
    "batch_size=32 steps=200 threads=1 eval.first_every=50",
)
SHALLOW, DEEP = (where(f"arch.depth={depth}") for depth in (8, 20))
FIGURE = curves("frankle", "γ and β alone, CIFAR-10's photographs", {"": {"ResNet-8": SHALLOW, "ResNet-20": DEEP}})

CLAIMS = [
    Claim(
        id="frankle.above_chance",
        source=f"{SOURCE}, §4, figure 2",
        statement="γ and β alone train a ResNet-20 far above chance.",
        published="about 50% (ResNet-20)",
        rules={"": Share(on_test(DEEP), ABOVE)},
        sweeps=[SWEEP],
        note=f"Taken as: at least {ABOVE}% for most seeds, after 200 steps.",
        figure=FIGURE,
    ),
    Claim(
        id="frankle.depth",
        source=f"{SOURCE}, §4, figure 2",
        statement="The deeper the network, the more γ and β alone reach.",
        published="69.5% with 110 layers, 48% with 14",
        rules={"": Directional(on_test(DEEP), on_test(SHALLOW))},
        sweeps=[SWEEP],
        figure=FIGURE,
    ),
]
