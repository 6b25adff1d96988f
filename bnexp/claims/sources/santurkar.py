"""Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", with a VGG-A on CIFAR-10's photographs.

Its widths are a quarter of the paper's, so that ten seeds fit into minutes on 2 cores.
"""

import numpy as np

from bnexp.claims.claim import Claim, ClaimSweep, Rule, Runs
from bnexp.claims.drawings import Drawing, band_line
from bnexp.claims.probes import over_probes, probes_of
from bnexp.claims.rules import Directional, Equivalent
from bnexp.claims.values import Arm, Values, each, recalibrated_accuracy, where
from bnexp.compare.figures import Line, Scales
from bnexp.compare.landscape import Probe
from bnexp.compare.landscape_report import loss_range

SOURCE = "Santurkar et al. 2018"
PHOTOGRAPHS = "dataset=image_folder dataset.path=data/cifar10-jpeg dataset.standardize=true dataset.validation=1000"
NETWORK = "arch=vgg arch.channels=[16,32,64,64,128,128,128,128] arch.dense=128"
VGG = ClaimSweep(
    "santurkar",
    f"{PHOTOGRAPHS} dataset.limit=10000 norm=none,batch,noisy_batch {NETWORK} init=kaiming batch_size=64 optim.lr=0.05 "
    "steps=500 threads=1 eval.first_every=100 eval.keep=true eval.recalibrate=true",
)
NONE, BATCH, NOISY = (where(f"norm={norm}") for norm in ("none", "batch", "noisy_batch"))


def smoothness_lines(label: str, runs: Runs) -> list[Line]:
    """Return the line of an arm's effective smoothness, at the checkpoints that all of its runs have."""
    probes = [probes_of(run) for run in runs]
    steps = list(zip(*probes, strict=False))  # up to the earliest end, that of a run that diverged
    return [band_line(label, [float(at[0].step) for at in steps], [[probe.smoothness for probe in at] for at in steps])]


FIGURE = Drawing(
    "santurkar",
    "A narrow VGG-A on CIFAR-10's photographs, SGD at 0.05: along the gradient",
    {"": {"without": NONE, "with batch normalization": BATCH, "and noise after it": NOISY}},
    Scales("iteration (updates)", "effective smoothness", log="y"),
    smoothness_lines,
)
MARGIN = 2.0  # points of test accuracy
ALIKE = 0.05  # a difference of cosines
DECADES = 0.1  # a factor of 1.26


def shift(probe: Probe) -> float:
    """Return log10 of the mean over layers of the internal covariate shift."""
    return float(np.log10(np.mean(list(probe.shift.values()))))


def cosine(probe: Probe) -> float:
    """Return the mean over layers of the cosine between a layer's gradients, those of `Probe.cosine`."""
    return float(np.mean(list(probe.cosine.values())))


STATISTICS = "Statistics are those of the whole training set, without noise."
LOOKED = (
    "a look at two seeds had shown that running averages, which are taken under the noise, don't fit the network "
    "without it (16% of the test images, not 52%)"
)
MEASURES = {
    "loss_range": ("range of the loss along the gradient", loss_range),
    "gradient_distance": ("largest distance of the gradient along it", lambda probe: max(probe.distances)),
    "smoothness": ("effective smoothness", lambda probe: probe.smoothness),
    "shift": ("log10 of the internal covariate shift", shift),
    "cosine": ("cosine of a layer's gradients before and after the earlier layers' step", cosine),
}


def values(measure: str, arm: Arm) -> Values:
    """Return the `Values` of a metric of an arm's runs: the mean over checkpoints of one of MEASURES."""
    name, read = MEASURES[measure]
    return each(name, over_probes(read), arm)


def recalibrated(arm: Arm) -> Values:
    """Return the `Values` of an arm's test accuracies with batch statistics of the whole training set."""
    return each("test accuracy by population statistics", recalibrated_accuracy, arm, 100, "%")


def claim(
    name: str, section: str, statement: str, published: str, rule: Rule, note: str = "", changed: str = ""
) -> Claim:
    """Return a claim about the sweep of VGG networks."""
    return Claim(
        id=f"santurkar.{name}",
        source=f"{SOURCE}, {section}",
        statement=statement,
        published=published,
        rules={"": rule},
        sweeps=[VGG],
        note=note,
        changed=changed,
        family="santurkar",
        figure=FIGURE,
    )


def smoother(measure: str, statement: str) -> Claim:
    """Return the claim that one of MEASURES is lower with batch normalization than without."""
    rule = Directional(values(measure, BATCH), values(measure, NONE), lower=True)
    return claim(measure, "§3.1, figure 4", statement, "lower", rule, "Means over the checkpoints of a run.")


CLAIMS = [
    smoother("loss_range", "BN: the loss varies less along the gradient."),
    smoother("gradient_distance", "BN: the gradient changes less along it."),
    smoother("smoothness", "BN: the effective smoothness is lower."),
    claim(
        "noise.better",
        "§2.1, figure 2",
        "BN with noise still beats no BN.",
        "better",
        Directional(recalibrated(NOISY), recalibrated(NONE)),
        STATISTICS,
        LOOKED,
    ),
    claim(
        "noise.as_good",
        "§2.1, figure 2",
        "BN with noise is as good as without.",
        "almost no difference",
        Equivalent(recalibrated(NOISY), recalibrated(BATCH), MARGIN, one_sided=True),
        f"Taken as: worse by no more than {MARGIN:g} points. {STATISTICS} Noise is drawn for a channel "
        "at each step, in the paper for each example as well.",
        LOOKED,
    ),
    claim(
        "shift",
        "§2.2, figure 3",
        "BN makes the covariate shift no smaller.",
        "similar or larger",
        Equivalent(values("shift", BATCH), values("shift", NONE), DECADES, one_sided=True),
        f"Definition 2.1: how far a layer's gradient moves when the layers before it take their step. Taken as: not "
        f"smaller by more than {DECADES:g} decades.",
    ),
    claim(
        "cosine",
        "§2.2, figure 3",
        "BN keeps the gradients' direction no better.",
        "similar or worse",
        Equivalent(values("cosine", NONE), values("cosine", BATCH), ALIKE, one_sided=True),
        f"Taken as: the cosine is not larger by more than {ALIKE:g}. Here, in the first 500 steps of a narrow network, "
        "layers' gradients keep their direction better with batch normalization.",
    ),
]
