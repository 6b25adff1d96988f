"""Architectures for images: the first steps of each without and with batch normalization, on CIFAR-10's photographs;
and LeNet on MNIST.
"""

from bnexp.claims.claim import Claim, ClaimSweep, Rule
from bnexp.claims.drawings import curves
from bnexp.claims.rules import Directional
from bnexp.claims.sources.santurkar import NETWORK as NARROW_VGG
from bnexp.claims.sources.santurkar import PHOTOGRAPHS
from bnexp.claims.values import Arm, on_test, where

STEPS = 200
SEEDS = 8  # of a block; few, to save time
COMMON = f"{PHOTOGRAPHS} init=kaiming batch_size=32 optim.lr=0.05 steps={STEPS} threads=1 eval.first_every=50"
NETWORKS = {
    "convnet": "arch=convnet arch.channels=[32,64] arch.dense=128",
    "resnet8": "arch=resnet arch.depth=8",
    "resnet20": "arch=resnet arch.depth=20",
    "densenet10": "arch=densenet arch.depth=10",
    "vgg": NARROW_VGG,
}
SWEEPS = {
    name: ClaimSweep(f"architectures_{name}", f"{COMMON} {words} norm=none,batch", seeds=SEEDS)
    for name, words in NETWORKS.items()
}
SKIP_INIT = ClaimSweep(
    "architectures_skip_init", f"{COMMON} {NETWORKS['resnet20']} norm=none arch.skip_init=true", seeds=SEEDS
)


def arms(name: str) -> dict[str, Arm]:
    """Return label → arm of a network: without and with batch normalization; for resnet20 also with skip_init."""
    settings = " ".join(word for word in NETWORKS[name].split() if word.startswith(("arch=", "arch.depth")))
    plain = f"{settings} arch.skip_init=false" if "resnet" in name else settings
    pair = {"without": where(f"{plain} norm=none"), "with batch normalization": where(f"{plain} norm=batch")}
    return pair | ({"skip_init": where(f"{settings} arch.skip_init=true")} if name == "resnet20" else {})


FIGURE = curves(
    "architectures", "CIFAR-10's photographs, 32 a batch, SGD at 0.05", {name: arms(name) for name in NETWORKS}
)


def claim(name: str, source: str, statement: str, rule: Rule, sweeps: list[ClaimSweep]) -> Claim:
    """Return a claim about a network's first STEPS steps."""
    return Claim(
        id=f"architectures.{name}",
        source=source,
        statement=statement,
        published="better",
        rules={"": rule},
        sweeps=sweeps,
        family="architectures",
        note="Eight seeds a block, for time.",
        figure=FIGURE,
    )


def better(name: str) -> Claim:
    """Return the claim that batch normalization raises a network's test accuracy after STEPS steps."""
    none, batch, *_ = arms(name).values()
    statement = f"BN is better after {STEPS} steps."
    return claim(
        name, "Handbooks on architectures", statement, Directional(on_test(batch), on_test(none)), [SWEEPS[name]]
    )


LENET = ClaimSweep("lenet", "experiment=d2l dataset=mnist norm=none,batch steps=1290 threads=1 eval.first_every=50")
LENET_ARMS = {"without": where("norm=none"), "with batch normalization": where("norm=batch")}
CLAIMS = [
    Claim(
        id="architectures.lenet",
        source="Handbooks on architectures",
        statement="LeNet with sigmoid is better with BN.",
        published="better",
        rules={"": Directional(on_test(LENET_ARMS["with batch normalization"]), on_test(LENET_ARMS["without"]))},
        sweeps=[LENET],
        family="architectures",
        note="Settings of Dive into Deep Learning §8.5; 3 epochs of MNIST where the book trains 10 of Fashion-MNIST.",
        figure=curves("lenet", "LeNet, sigmoid, SGD at 0.1, 128 images a batch", {"": LENET_ARMS}),
    ),
    *(better(name) for name in NETWORKS),
    claim(
        "skip_init",
        "De & Smith 2020",
        "Branches that start at 0 are better.",
        Directional(on_test(arms("resnet20")["skip_init"]), on_test(arms("resnet20")["without"])),
        [SWEEPS["resnet20"], SKIP_INIT],
    ),
]
