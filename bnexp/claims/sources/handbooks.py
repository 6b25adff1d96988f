"""What handbooks say of batch normalization: Chollet's "Deep Learning with Python" and others."""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import against, curves
from bnexp.claims.probes import train_test_gap
from bnexp.claims.rules import Directional, Equivalent
from bnexp.claims.values import each, how_many_train, on_test, validation_accuracy, where
from bnexp.compare.arms import accuracy
from bnexp.compare.figures import Scales

CHOLLET = "Chollet, Deep Learning with Python, ch. 9"
HANDBOOKS = "Handbooks"
MARGIN = 0.5  # points of test accuracy

ORDER = ClaimSweep(
    "order", "norm=batch act=relu,sigmoid arch.norm_position=before,after optim.lr=0.1 steps=5000 eval.first_every=200"
)
SCALE = ClaimSweep(
    "init_scale",
    "norm=none,batch optim.lr=0.1 init.std=0.001,0.003,0.01,0.03,0.1,0.3,1,3,10 steps=2000 compile=true "
    "eval.first_every=500",
)
OVERFIT = ClaimSweep("overfit", "norm=none,batch dataset.limit=5000 optim.lr=0.1 steps=10000 eval.first_every=500")
INITS = {"sigmoid": "xavier", "tanh": "xavier", "relu": "kaiming"}  # each activation's own, so that none is handicapped
DEEP = {
    act: ClaimSweep(
        f"depth_{act}",
        f"arch.depth=30,20,10 norm=batch,none act={act} init={init} optim.lr=0.1 steps=1000 compile=true "
        "eval.first_every=1000 executor.max_stack=10",  # each graph compiled once, which is most of it
    )
    for act, init in INITS.items()
}
NONE, BATCH = where("norm=none"), where("norm=batch")
ARMS = {"without": NONE, "with batch normalization": BATCH}
DEPTH = against(
    "depth",
    "Layers of 100 units, SGD at 0.1, 1,000 steps, each activation's own initialization",
    {
        act: {"without": where(f"norm=none act={act}"), "with batch normalization": where(f"norm=batch act={act}")}
        for act in INITS
    },
    "arch.depth",
    accuracy,
    Scales("hidden layers", "test accuracy", share=True),
)


AFTER_SIGMOID = (
    " With sigmoid, whose outputs are all positive, after is better: there the norm centres what the next layer reads; "
    "before, it doesn't."
)


def order(act: str) -> Claim:
    """Return the claim that test accuracy with batch normalization before and after `act` differs by under MARGIN."""
    before, after = (where(f"act={act} arch.norm_position={place}") for place in ("before", "after"))
    return Claim(
        id=f"chollet.order.{act}",
        source=CHOLLET,
        statement="BN before or after the activation: alike.",
        published="alike",
        note=f"Taken as: within {MARGIN:g} points of test accuracy.{AFTER_SIGMOID if act == 'sigmoid' else ''}",
        rules={"": Equivalent(on_test(after), on_test(before), MARGIN)},
        sweeps=[ORDER],
        figure=curves(
            "order",
            "The order of batch normalization and activation, SGD at 0.1",
            {
                name: {
                    f"{place} the activation": where(f"act={name} arch.norm_position={place}")
                    for place in ("before", "after")
                }
                for name in ("relu", "sigmoid")
            },
        ),
    )


def depth(act: str, layers: int) -> Claim:
    """Return the claim that batch normalization raises the test accuracy of a network with this many hidden layers."""
    ours, control = (where(f"norm={norm} act={act} arch.depth={layers}") for norm in ("batch", "none"))
    return Claim(
        id=f"handbooks.depth.{act}.{layers}",
        source=HANDBOOKS,
        statement=f"BN is better: {layers} layers, {act}.",
        published="higher",
        rules={"": Directional(on_test(ours), on_test(control))},
        sweeps=[DEEP[act]],
        family="handbooks",
        note=f"1,000 steps of SGD at 0.1, weights by {INITS[act]}.",
        figure=DEPTH,
    )


CLAIMS = [
    order("relu"),
    order("sigmoid"),
    Claim(
        id="handbooks.init_scale",
        family="handbooks",
        source=HANDBOOKS,
        statement="With BN more of nine initial scales train.",
        published="more",
        rules={"": Directional(how_many_train(BATCH, "init.std"), how_many_train(NONE, "init.std"))},
        sweeps=[SCALE],
        note="N(0, σ²), nine σ from 0.001 to 10; trains: validation accuracy of at least 90% after 2,000 steps.",
        figure=against(
            "init_scale",
            "Initial scale of the weights, N(0, σ²): ReLU, SGD at 0.1, 2,000 steps",
            {"": ARMS},
            "init.std",
            validation_accuracy,
            Scales("σ", "validation accuracy", log="x", share=True),
        ),
    ),
    *(depth(act, layers) for act in INITS for layers in (10, 20, 30)),
    Claim(
        id="handbooks.regularises",
        family="handbooks",
        source=f"{HANDBOOKS}; Ioffe & Szegedy 2015, §3.4",
        statement="BN narrows the training to test gap.",
        published="smaller",
        rules={
            "": Directional(
                each("training minus test accuracy", train_test_gap, BATCH, 100, "%"),
                each("training minus test accuracy", train_test_gap, NONE, 100, "%"),
                lower=True,
            )
        },
        sweeps=[OVERFIT],
        note="5,000 training images, 120 epochs: both networks fit them.",
        figure=curves("overfit", "5,000 training images, SGD at 0.1", {"ReLU": ARMS}),
    ),
]
