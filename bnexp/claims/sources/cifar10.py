"""CIFAR-10's counterpart of the lesson: a ConvNet with and without batch normalization, ReLU and sigmoid, on CIFAR-10's
photographs (`experiment=cifar10`). The rate is one for all arms: of 0.03, 0.1 and 0.3 the one with the highest mean
validation accuracy of the four arms after 1,000 steps, on the seeds 100 and 101.
"""

from bnexp.claims.claim import Claim, ClaimSweep, Rule, of_family
from bnexp.claims.drawings import AccuracyFigure
from bnexp.claims.rules import Directional, Sooner
from bnexp.claims.values import Arm, on_test, where

SOURCE = "Handbooks on CIFAR-10"
ACTS = ("relu", "sigmoid")
TARGET = 0.5
SWEEP = ClaimSweep(
    "cifar10",
    "experiment=cifar10 dataset=image_folder dataset.path=data/cifar10-jpeg norm=none,batch act=relu,sigmoid",
    seeds=6,
)


def arms(act: str) -> tuple[Arm, Arm]:
    """Return the arms with and without batch normalization, with one activation."""
    return where(f"norm=batch act={act}"), where(f"norm=none act={act}")


FIGURE = AccuracyFigure(
    "cifar10",
    "CIFAR-10's photographs, ConvNet, SGD, 64 images a batch",
    {act: {"without": arms(act)[1], "with batch normalization": arms(act)[0]} for act in ACTS},
    TARGET,
)


def claims(act: str) -> list[Claim]:
    """Return the claims about the networks with one activation."""
    batch, none = arms(act)
    rules: dict[str, tuple[str, Rule]] = {
        "accuracy": ("BN is more accurate in the end", Directional(on_test(batch), on_test(none))),
        "steps": (f"BN reaches {TARGET:.0%} in fewer steps", Sooner(TARGET, batch, none, steps=True)),
        "seconds": (f"BN reaches {TARGET:.0%} in fewer seconds", Sooner(TARGET, batch, none)),
    }
    return [
        Claim(
            id=f"cifar10.{act}.{name}",
            source=SOURCE,
            statement=f"{statement}, {act}.",
            published="better" if name == "accuracy" else "sooner",
            rules={"": rule},
            sweeps=[SWEEP],
            note="Each run is trained by itself, with its own clock, two side by side." if name == "seconds" else "",
            figure=FIGURE,
        )
        for name, (statement, rule) in rules.items()
    ]


CLAIMS = of_family("cifar10", [claim for act in ACTS for claim in claims(act)])
