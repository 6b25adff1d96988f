"""The Keras guide on transfer learning: batch normalization stays frozen while a trained network is fine-tuned.

torchvision's ResNet-18 is trained on five classes of CIFAR-10's photographs, then on the other five, with about 64
images a class. At every batch size the same number of examples is seen, and the learning rate is proportional to the
batch size: of 0.001, 0.003, 0.01 and 0.03 the one at which the frozen network is best at a batch of 32, on the seeds
100 and 101. There the network whose statistics move was better, and is best at 0.03.
"""

from bnexp.claims.claim import ClaimSweep
from bnexp.claims.sources.fine_tuning import frozen_against_moving
from bnexp.claims.sources.santurkar import PHOTOGRAPHS

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
CLAIMS = frozen_against_moving(
    "keras",
    SOURCE,
    f"A trained ResNet-18 fine-tuned on {LIMIT} photographs of five new classes, {EXAMPLES:,} examples at every size",
    SWEEPS,
    {size: f"Batches of {size}: a trained ResNet-18 is fine-tuned better with frozen BN." for size in BATCH_SIZES},
)
