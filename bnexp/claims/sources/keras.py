"""The Keras guide on transfer learning: batch normalization stays frozen while a trained network is fine-tuned.

torchvision's ResNet-18 is trained on five classes of CIFAR-10's photographs, then on the other five, with about 64
images a class. At every batch size the same number of examples is seen, and the learning rate is proportional to the
batch size: of 0.001, 0.003, 0.01 and 0.03 the one at which the frozen network is best at a batch of 32, on the seeds
100 and 101. There the network whose statistics move was better, and is best at 0.03.
"""

from bnexp.claims.claim import Claim, ClaimSweep, Rule
from bnexp.claims.drawings import against
from bnexp.claims.rules import Directional
from bnexp.claims.sources.santurkar import PHOTOGRAPHS
from bnexp.claims.values import Values, at_batch_size, difference, on_test, where
from bnexp.compare.arms import accuracy
from bnexp.compare.figures import Scales

SOURCE = "Keras' guide on transfer learning"
NETWORK = "arch=torchvision arch.model=resnet18 threads=1"
BATCH_SIZES = (2, 8, 32)
EXAMPLES, RATE = 2560, 0.01  # rate at 32 examples a batch
LIMIT = 320  # images to fine-tune with

START = ClaimSweep(
    "keras_start",
    f"{PHOTOGRAPHS} dataset.classes=[0,1,2,3,4] {NETWORK} norm=batch batch_size=64 optim=momentum optim.lr=0.05 "
    "steps=600 eval.first_every=300",
    seeds=6,
)
START_RUN = "results/sweeps/claims/keras_start/seed=${seed}"


def sweep(norm: str, size: int) -> ClaimSweep:
    """Return the sweep that fine-tunes with a norm at a batch size."""
    steps = EXAMPLES // size
    return ClaimSweep(
        f"keras_{norm}_{size}",
        f"{PHOTOGRAPHS} dataset.classes=[5,6,7,8,9] dataset.limit={LIMIT} {NETWORK} norm={norm} "
        f"init_from='{START_RUN}' "
        f"batch_size={size} optim=momentum optim.lr={RATE * size / 32:g} steps={steps} eval.first_every={steps} "
        f"eval.every={steps}",
        seeds=6,
        after=START,
    )


SWEEPS = [sweep(norm, size) for size in BATCH_SIZES for norm in ("batch", "frozen_batch")]
FIGURE = against(
    "keras",
    f"A trained ResNet-18 fine-tuned on {LIMIT} photographs of five new classes, {EXAMPLES:,} examples at every size",
    {"": {"statistics move": where("norm=batch"), "frozen": where("norm=frozen_batch")}},
    "batch_size",
    accuracy,
    Scales("batch size", "test accuracy", log="x"),
)


def on_test_at(norm: str, size: int) -> Values:
    """Return the `Values` of test accuracies with a norm at a batch size."""
    return on_test(at_batch_size(norm, size))


def gained(size: int) -> Values:
    """Return the `Values` of test accuracies with frozen minus those with moving statistics, at a batch size."""
    return difference(on_test_at("frozen_batch", size), on_test_at("batch", size))


def claim(name: str, statement: str, rule: Rule) -> Claim:
    """Return a claim about fine-tuning a trained ResNet-18."""
    return Claim(
        id=f"keras.{name}",
        source=SOURCE,
        statement=statement,
        published="better",
        rules={"": rule},
        sweeps=SWEEPS,
        family="keras",
        figure=FIGURE,
    )


CLAIMS = [
    *(
        claim(
            f"frozen_{size}",
            f"Batches of {size}: a trained ResNet-18 is fine-tuned better with frozen BN.",
            Directional(on_test_at("frozen_batch", size), on_test_at("batch", size)),
        )
        for size in BATCH_SIZES
    ),
    claim("small_batches", "Freezing gains more at 2 than at 32.", Directional(gained(2), gained(32))),
]
