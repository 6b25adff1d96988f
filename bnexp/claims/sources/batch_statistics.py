"""What batch statistics do: Ioffe 2017, "Batch Renormalization"; Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm";
Luo et al. 2019, "Towards Understanding Regularization in Batch Normalization". On MNIST with the lesson's network.

The first is about Inception-v3 on ImageNet, the second about ResNet-50, the third about CIFAR-10 and ImageNet.
"""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import by_batch_size
from bnexp.claims.probes import ADAPTED, accuracy_on_altered, train_test_gap
from bnexp.claims.rules import Directional, Equivalent
from bnexp.claims.values import Metric, Values, at_batch_size, difference, each, on_test, recalibrated_accuracy, where
from bnexp.runs.record import RunRecord

IOFFE, WU, LUO = "Ioffe 2017", "Wu & Johnson 2021", "Luo et al. 2019"
MARGIN = 0.5  # points of test accuracy
RENORM = {
    size: ClaimSweep(
        f"renorm_{size}",
        f"norm=batch,batch_renorm norm.momentum=0.01 batch_size={size} optim.lr={rate} steps={steps} compile=true "
        "eval.first_every=100 eval.every=500",
    )
    for size, rate, steps in ((4, 0.02, 8_000), (32, 0.1, 2_000))
}
AVERAGES = ClaimSweep(
    "running_averages", "norm=batch norm.momentum=0.01,0.1 optim.lr=0.1 steps=100 compile=true eval.recalibrate=true"
)
SETTLED = ClaimSweep(
    "running_averages_settled",
    "norm=batch norm.momentum=0.01 optim.lr=0.1 steps=2000 compile=true eval.recalibrate=true eval.first_every=500",
)
FEW_IMAGES = {
    size: ClaimSweep(
        f"luo_{size}",
        f"norm=none,batch dataset.limit=5000 batch_size={size} optim.lr=0.1 steps=3000 compile=true "
        "eval.first_every=500",
    )
    for size in (16, 256)
}
ALTERED = "blurred"  # the images of another distribution
SLOW, FAST = where("norm.momentum=0.01"), where("norm.momentum=0.1")
FIGURE = by_batch_size(
    "renorm",
    "MNIST, SGD, running averages keep 0.99",
    {"batch normalization": "batch", "batch renormalization": "batch_renorm"},
    RENORM,
)


def accurate(norm: str, size: int) -> Values:
    """Return the `Values` of test accuracies with a norm at a batch size."""
    return on_test(at_batch_size(norm, size))


def gained(size: int) -> Values:
    """Return the `Values` of how much batch normalization narrows the gap from training to test accuracy."""
    gaps = [
        each("training minus test accuracy", train_test_gap, at_batch_size(norm, size), 100, "%")
        for norm in ("none", "batch")
    ]
    return difference(*gaps)


def altered(adapted: bool) -> Metric:
    """Return a function: run → test accuracy on altered images, with statistics of such images if `adapted`."""

    def read(run: RunRecord) -> float:
        return accuracy_on_altered(run, ALTERED, adapted)

    return read


def at_step(step: int) -> Metric:
    """Return a function: run → validation accuracy at a step."""

    def read(run: RunRecord) -> float:
        return float(run.validation[step]["accuracy"])

    return read


CLAIMS = [
    Claim(
        id="ioffe_2017.small_batch",
        source=f"{IOFFE}, §4.2",
        statement="Batches of 4: batch renorm is better than BN.",
        published="76.5% against 74.2%",
        rules={"": Directional(accurate("batch_renorm", 4), accurate("batch", 4))},
        sweeps=[RENORM[4]],
        figure=FIGURE,
    ),
    Claim(
        id="ioffe_2017.large_batch",
        source=f"{IOFFE}, §4.1",
        statement="Batches of 32: batch renorm is as good as BN.",
        published="78.5% against 78.3%",
        rules={"": Equivalent(accurate("batch_renorm", 32), accurate("batch", 32), MARGIN)},
        sweeps=[RENORM[32]],
        note=f"Taken as: within {MARGIN:g} points of test accuracy.",
        figure=FIGURE,
    ),
    Claim(
        id="ioffe_2017.dependence",
        source=f"{IOFFE}, §4.2",
        statement="From batches of 32 to 4, batch renorm loses less than BN.",
        published="2.0 against 4.1 points",
        rules={
            "": Directional(
                difference(accurate("batch_renorm", 4), accurate("batch_renorm", 32)),
                difference(accurate("batch", 4), accurate("batch", 32)),
            )
        },
        sweeps=list(RENORM.values()),
        note="Rates 0.02 and 0.1; 32,000 and 64,000 images seen, by both norms alike.",
        figure=FIGURE,
    ),
    Claim(
        id="wu_johnson.early",
        source=f"{WU}, §3.1, figure 2",
        statement="Early on, recomputed statistics beat running averages.",
        published="better early in training",
        rules={
            "": Directional(
                each("test accuracy by recomputed statistics", recalibrated_accuracy, SLOW, 100, "%"), on_test(SLOW)
            )
        },
        sweeps=[AVERAGES],
        note="After 100 steps; running averages that keep 0.99, as TensorFlow's do.",
    ),
    Claim(
        id="wu_johnson.late",
        source=f"{WU}, §3.1, figure 2",
        statement="Later, both are alike.",
        published="alike at the end",
        rules={
            "": Equivalent(
                each("test accuracy by recomputed statistics", recalibrated_accuracy, SLOW, 100, "%"),
                on_test(SLOW),
                MARGIN,
            )
        },
        sweeps=[SETTLED],
        note=f"After 2,000 steps. Taken as: within {MARGIN:g} points of test accuracy.",
    ),
    Claim(
        id="wu_johnson.lag",
        source=f"{WU}, §3.1",
        statement="At step 50 averages that keep 0.99 mislead more than ones that keep 0.9.",
        published="the average lags",
        rules={
            "": Directional(
                each("validation accuracy at step 50", at_step(50), SLOW, 100, "%"),
                each("validation accuracy at step 50", at_step(50), FAST, 100, "%"),
                lower=True,
            )
        },
        sweeps=[AVERAGES],
        note="The networks are the same to the last bit: only what evaluations read differs.",
    ),
    Claim(
        id="wu_johnson.other_images",
        source=f"{WU}, §4.1",
        statement="Images of another distribution: their own statistics are better.",
        published="better",
        rules={
            "": Directional(
                each(f"accuracy on {ALTERED} images, adapted", altered(True), SLOW, 100, "%"),
                each(f"accuracy on {ALTERED} images", altered(False), SLOW, 100, "%"),
            )
        },
        sweeps=[SETTLED],
        note=f"Trained on MNIST as it is, tested on {ALTERED} digits; statistics of {ADAPTED:,} such training images, "
        "without their labels.",
    ),
    Claim(
        id="luo.small_batches",
        source=f"{LUO}, §3, §5",
        statement="BN narrows the training to test gap more at batch 16 than at 256.",
        published="regularizes less with larger batches",
        rules={"": Directional(gained(16), gained(256))},
        sweeps=list(FEW_IMAGES.values()),
        note="5,000 training images, 3,000 steps; without BN is the control at each batch size, for the noise of SGD.",
    ),
]
