"""Fine-tuning: Chollet's advice to leave batch normalization frozen (Deep Learning with Python; the Keras guide on
transfer learning), on halves of CIFAR-10's photographs: five classes first, then the other five with few images.

At every batch size the same number of examples is seen, and the learning rate is proportional to the batch size. A
running average keeps 0.99 of its value at a step, as in Keras.
"""

from bnexp.claims.claim import Claim, ClaimSweep, Rule
from bnexp.claims.drawings import against
from bnexp.claims.rules import Directional
from bnexp.claims.sources.santurkar import PHOTOGRAPHS
from bnexp.claims.values import Values, at_batch_size, difference, on_test, where
from bnexp.compare.arms import accuracy
from bnexp.compare.figures import Scales

SOURCE = "Chollet on fine-tuning"
NETWORK = "arch=convnet arch.channels=[8,16] arch.dense=32 init=kaiming threads=1"
BATCH_SIZES = (2, 4, 32)
EXAMPLES, RATE = 4000, 0.05  # rate at 64 examples a batch
LIMIT = 2000  # images to fine-tune with

START = ClaimSweep(
    "fine_tuning_start",
    f"{PHOTOGRAPHS} dataset.classes=[0,1,2,3,4] {NETWORK} norm=batch norm.momentum=0.01 batch_size=64 optim.lr={RATE} "
    "steps=1000 eval.first_every=500",
)
START_RUN = "results/sweeps/claims/fine_tuning_start/seed=${seed}"


def sweep(norm: str, size: int) -> ClaimSweep:
    """Return the sweep that fine-tunes with a norm at a batch size."""
    steps = EXAMPLES // size
    words = "norm=batch norm.momentum=0.01" if norm == "batch" else f"norm={norm}"
    return ClaimSweep(
        f"fine_tuning_{norm}_{size}",
        f"{PHOTOGRAPHS} dataset.classes=[5,6,7,8,9] dataset.limit={LIMIT} {NETWORK} {words} init_from='{START_RUN}' "
        f"batch_size={size} optim.lr={RATE * size / 64:g} steps={steps} eval.first_every={steps} eval.every={steps}",
        after=START,
    )


SWEEPS = [sweep(norm, size) for size in BATCH_SIZES for norm in ("batch", "frozen_batch")]


def on_test_at(norm: str, size: int) -> Values:
    """Return the `Values` of test accuracies with a norm at a batch size."""
    return on_test(at_batch_size(norm, size))


def gained(size: int) -> Values:
    """Return the `Values` of test accuracies with frozen minus those with moving statistics, at a batch size."""
    return difference(on_test_at("frozen_batch", size), on_test_at("batch", size))


def frozen_against_moving(
    name: str, source: str, title: str, sweeps: list[ClaimSweep], statements: dict[int, str]
) -> list[Claim]:
    """Return the claims that frozen batch normalization is better, and that it gains more at 2 than at 32.

    name: of their family and figure. title: of the figure. statements: of the first claims, by their batch size.
    """
    figure = against(
        name,
        title,
        {"": {"statistics move": where("norm=batch"), "frozen": where("norm=frozen_batch")}},
        "batch_size",
        accuracy,
        Scales("batch size", "test accuracy", log="x"),
    )
    rules: dict[str, tuple[str, Rule]] = {
        f"frozen_{size}": (statement, Directional(on_test_at("frozen_batch", size), on_test_at("batch", size)))
        for size, statement in statements.items()
    }
    rules["small_batches"] = ("Freezing gains more at 2 than at 32.", Directional(gained(2), gained(32)))
    return [
        Claim(
            id=f"{name}.{claim}",
            source=source,
            statement=statement,
            published="better",
            rules={"": rule},
            sweeps=sweeps,
            family=name,
            figure=figure,
        )
        for claim, (statement, rule) in rules.items()
    ]


CLAIMS = frozen_against_moving(
    "fine_tuning",
    SOURCE,
    f"Fine-tuning on {LIMIT:,} photographs of five new classes, {EXAMPLES:,} examples seen at every batch size",
    SWEEPS,
    {size: f"Batches of {size}: frozen BN is better." for size in BATCH_SIZES[:2]},
)
