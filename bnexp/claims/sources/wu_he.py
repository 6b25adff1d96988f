"""Wu & He 2018, "Group Normalization": the norms that are special cases of it, and its accuracy with small batches.

At every batch size the same number of examples is seen, and the learning rate is proportional to the batch size, as in
§4.1 of the paper.
"""

from bnexp.claims.claim import Claim, ClaimSweep, Rule
from bnexp.claims.drawings import against
from bnexp.claims.rules import Directional, Equivalent, Exact
from bnexp.claims.sources.identities import batch_of_one_is_instance, groups_of_one_are_instance, one_group_is_layer
from bnexp.claims.values import Values, at_batch_size, error_on_test, where
from bnexp.compare.arms import accuracy
from bnexp.compare.figures import Scales

SOURCE = "Wu & He 2018"
BATCH_SIZES = (2, 4, 8, 16, 32)  # those of the paper's figure 1
EXAMPLES = {"mlp": 32_000, "convnet": 8_000}
NETWORKS = {"mlp": "", "convnet": "arch=convnet arch.channels=[8,16] arch.dense=32 threads=1"}
RATE = 0.1  # at 64 examples a batch
MARGIN = 0.5  # points of test error


def sweep(arch: str, size: int) -> ClaimSweep:
    """Return the sweep of a network with batch and with group normalization at one batch size."""
    steps = EXAMPLES[arch] // size
    words = f"{NETWORKS[arch]} norm=batch,group batch_size={size} optim.lr={RATE * size / 64:g} steps={steps}"
    compiled = "compile=true" if arch == "mlp" else ""
    return ClaimSweep(f"wu_he_{arch}_{size}", f"{words} eval.first_every={steps} eval.every={steps} {compiled}".strip())


SWEEPS = {arch: [sweep(arch, size) for size in BATCH_SIZES] for arch in NETWORKS}
FIGURES = {
    arch: against(
        f"wu_he_{arch}",
        f"Wu & He 2018, figure 1, on MNIST: {arch}, {EXAMPLES[arch]:,} examples seen at every batch size",
        {"": {"batch normalization": where("norm=batch"), "group normalization": where("norm=group")}},
        "batch_size",
        lambda run: 1 - accuracy(run),
        Scales("batch size", "test error", log="x"),
    )
    for arch in NETWORKS
}


def error(norm: str, size: int) -> Values:
    """Return the `Values` of test errors with a norm at a batch size."""
    return error_on_test(at_batch_size(norm, size))


AT_LEAST_AS_GOOD = (
    "The rule asks for the same error, either way. It does not rise as the batch shrinks: if anything it is lower at 2 "
    "examples a batch than at 32."
)


def claims(arch: str) -> list[Claim]:
    """Return the claims about small batches with one network."""
    rules: dict[str, tuple[str, str, Rule]] = {
        "batch_rises": (
            "BN: more error at batch 2 than 32.",
            "34.7% against 23.6% (ResNet-50, ImageNet)",
            Directional(error("batch", 2), error("batch", 32)),
        ),
        "group_stays": (
            "GN: same error at batch 2 as at 32.",
            "24.1% against 24.1% (ResNet-50, ImageNet)",
            Equivalent(error("group", 2), error("group", 32), MARGIN),
        ),
        "group_better": (
            "GN: less error than BN at batch 2.",
            "24.1% against 34.7% (ResNet-50, ImageNet)",
            Directional(error("group", 2), error("batch", 2), lower=True),
        ),
    }
    return [
        Claim(
            id=f"wu_he.{arch}.{name}",
            source=f"{SOURCE}, §4.1, table 2",
            statement=statement,
            published=published,
            rules={"": rule},
            sweeps=SWEEPS[arch],
            family="wu_he",
            note=AT_LEAST_AS_GOOD if name == "group_stays" else "",
            figure=FIGURES[arch],
        )
        for name, (statement, published, rule) in rules.items()
    ]


CLAIMS = [
    Claim(
        id="wu_he.one_group",
        source=f"{SOURCE}, §3.1",
        statement="One group is layer normalization.",
        published="equal",
        rules={"": Exact(one_group_is_layer)},
    ),
    Claim(
        id="wu_he.groups_of_one",
        source=f"{SOURCE}, §3.1",
        statement="As many groups as channels is instance normalization.",
        published="equal",
        rules={"": Exact(groups_of_one_are_instance)},
    ),
    Claim(
        id="wu_he.batch_of_one",
        source=f"{SOURCE}, §2",
        statement="BN of one image, in training mode, is instance normalization.",
        published="equal",
        rules={"": Exact(batch_of_one_is_instance)},
    ),
    *claims("mlp"),
    *claims("convnet"),
]
