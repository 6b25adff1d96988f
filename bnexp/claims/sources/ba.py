"""Ba et al. 2016, "Layer Normalization", §6.6 and figure 6: permutation-invariant MNIST with batches of 128 and of 4.

The paper's network has two layers of 1,000 units; these have 300, so that ten seeds take a minute or two. Adam as
there; its rate isn't published.
"""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import by_batch_size
from bnexp.claims.rules import Directional, Sooner
from bnexp.claims.values import Values, at_batch_size, difference, error_on_test

SOURCE = "Ba et al. 2016"
STEPS = {128: 1_500, 4: 5_000}
SWEEPS = {
    size: ClaimSweep(
        f"ba_{size}",
        f"norm=batch,layer arch.hidden=[300,300] init=kaiming optim=adam optim.lr=0.001 batch_size={size} "
        f"steps={steps} eval.first_every=50 eval.every=500 compile=true",
    )
    for size, steps in STEPS.items()
}
FIGURE = by_batch_size(
    "ba",
    "Ba et al. 2016, figure 6: MNIST, 784-300-300-10, Adam",
    {"batch normalization": "batch", "layer normalization": "layer"},
    STEPS,
)


def error(norm: str, size: int) -> Values:
    """Return the `Values` of test errors with a norm at a batch size."""
    return error_on_test(at_batch_size(norm, size))


CLAIMS = [
    Claim(
        id="ba.faster",
        source=f"{SOURCE}, §6.6, figure 6",
        statement="Layer norm reaches 97% in fewer steps than BN, at batch 128.",
        published="faster",
        rules={"": Sooner(0.97, at_batch_size("layer", 128), at_batch_size("batch", 128), steps=True)},
        sweeps=[SWEEPS[128]],
        figure=FIGURE,
    ),
    Claim(
        id="ba.small_batch",
        source=f"{SOURCE}, §6.6, figure 6",
        statement="At batch 4, layer norm has less test error than BN.",
        published="less",
        rules={"": Directional(error("layer", 4), error("batch", 4), lower=True)},
        sweeps=[SWEEPS[4]],
        figure=FIGURE,
    ),
    Claim(
        id="ba.robust",
        source=f"{SOURCE}, §6.6, figure 6",
        statement="From batch 128 to 4, layer norm loses less than BN.",
        published="robust to the batch size",
        rules={
            "": Directional(
                difference(error("layer", 4), error("layer", 128)),
                difference(error("batch", 4), error("batch", 128)),
                lower=True,
            )
        },
        sweeps=list(SWEEPS.values()),
        note="Both norms see the same images: 192,000 at batch 128, 20,000 at batch 4.",
        figure=FIGURE,
    ),
]
