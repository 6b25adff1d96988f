"""The Udacity batch-normalization lesson (batch-norm/Batch_Normalization_Lesson.ipynb of udacity/deep-learning): every
published cell, the crossing times of its figures, the inference cell and the throughput.

Its figures are single unseeded runs. Where its text is less exact than its figures, the figures are judged.
"""

from bnexp.claims.claim import Claim, ClaimSweep
from bnexp.claims.drawings import Drawing, curves
from bnexp.claims.probes import distinct_answers, rate_ratio, right_one_by_one
from bnexp.claims.rules import Equivalent, Numeric, Share, TimeToAccuracy
from bnexp.claims.values import Arm, each, on_test, on_validation, where

SOURCE = "Udacity lesson"
GRID = "experiment=udacity norm=none,batch act=relu,sigmoid"
TABLE = ClaimSweep("udacity", f"{GRID} init.std=0.05 optim.lr=0.01")
# only the final accuracy of these runs is judged, and when they reach 90% in the first 2,000 steps
RATES = ClaimSweep("udacity_rates", f"{GRID} init.std=0.05 optim.lr=1,2 eval.every=2500", most_seeds=5)
WIDE = ClaimSweep(
    "udacity_wide", f"{GRID} init.std=5 optim.lr=0.01,1,2 eval.first_every=2500 eval.every=2500", most_seeds=5
)
START = ClaimSweep("udacity_start", "experiment=udacity norm=none,batch act=relu optim.lr=0.01 steps=2000 compile=true")

TOLERANCE = 0.005  # of an accuracy: 50 of the 10,000 test images, 25 of the 5,000 for validation
CHANCE = 0.15  # a constant answer is right for 8.9% to 11.5% of the images, depending on the class
CHANCE_TOLERANCE = 0.025  # so two networks that are both at chance can differ by this much
TRAINS = 0.5  # test accuracy that tells a run that trained from one that stayed at chance

COLUMNS = (("none", "test"), ("batch", "test"), ("none", "validation"), ("batch", "validation"))
# (init.std, learning rate, activation, steps), accuracies in the order of COLUMNS
CELLS = (
    ((0.05, 0.01, "relu", 50_000), (0.9748, 0.9803, 0.9730, 0.9832)),
    ((0.05, 0.01, "relu", 2_000), (0.8262, 0.9525, 0.8286, 0.9578)),
    ((0.05, 0.01, "sigmoid", 50_000), (0.8271, 0.9732, 0.8344, 0.9756)),
    ((0.05, 1, "relu", 50_000), (0.0980, 0.9834, 0.0958, 0.9844)),
    ((0.05, 1, "relu", 50_000), (0.1010, 0.9822, 0.0986, 0.9840)),
    ((0.05, 1, "sigmoid", 50_000), (0.9752, 0.9812, 0.9784, 0.9838)),
    ((0.05, 2, "relu", 50_000), (0.1010, 0.9827, 0.0986, 0.9828)),
    ((0.05, 2, "sigmoid", 50_000), (0.9782, 0.9782, 0.9796, 0.9804)),
    ((5, 0.01, "relu", 50_000), (0.0980, 0.7990, 0.0958, 0.7946)),
    ((5, 0.01, "sigmoid", 50_000), (0.2270, 0.8527, 0.2202, 0.8592)),
    ((5, 1, "relu", 50_000), (0.1135, 0.9208, 0.1126, 0.9244)),
    ((5, 1, "relu", 50_000), (0.1135, 0.1010, 0.1126, 0.0988)),
    ((5, 1, "sigmoid", 50_000), (0.8957, 0.9505, 0.8970, 0.9570)),
    ((5, 2, "relu", 50_000), (0.0980, 0.9054, 0.0958, 0.9128)),
    ((5, 2, "relu", 50_000), (0.0980, 0.1010, 0.0958, 0.0986)),
    ((5, 2, "sigmoid", 50_000), (0.9067, 0.9583, 0.9094, 0.9614)),
)
SEED_DEPENDENT = {(5, 1, "relu"), (5, 2, "relu")}  # published twice, with opposite outcomes with batch normalization

TEXT = "The lesson's text says "
FEW = "Five seeds: the whole table at ten would take the set past 90 minutes on 2 cores."
AS_IT_RAN = (
    "TensorFlow 1 ran its layer for vectors operation by operation, each a kernel of its own (it had a fused one for "
    "images alone), as norm=batch_scratch does uncompiled: the published ratio is made of that. One thread."
)
LOOKED = (
    "The rule was changed after a look: at first the prediction interval of a round, with 10 rounds, which a noisy "
    "machine makes too wide to contradict anything; then the interval of the mean, with 20, of norm=batch, which was a "
    "formula of a dozen operations; now that of norm=batch_scratch, since norm=batch is torch's fused kernel."
)


def arm(norm: str, std: float = 0.05, rate: float = 0.01, act: str = "relu") -> Arm:
    """Return the arm of a cell of the lesson's table; `std` is that of the initial weights."""
    return where(f"norm={norm} act={act} optim.lr={rate:g} init.std={std:g}")


def sweep_of(runs: Arm) -> ClaimSweep:
    """Return the sweep that trains an arm's runs of 50,000 steps."""
    return WIDE if "init.std=5" in runs.label else TABLE if "optim.lr=0.01" in runs.label else RATES


def note_of(runs: Arm) -> str:
    """Return the note of a claim about an arm; empty where there is nothing to note."""
    if runs.label == arm("none", act="sigmoid").label:
        return (
            "The network rests at chance for 20,000 steps and more, and what it has reached at 50,000 depends on when "
            "it leaves: the lesson's one run did so some 3,000 steps before ours. With normalization the cell agrees."
        )
    return "" if sweep_of(runs) is TABLE else FEW


def pair(std: float, rate: float, act: str) -> dict[str, Arm]:
    """Return label → arm, without and with batch normalization, of a cell."""
    return {"without": arm("none", std, rate, act), "with batch normalization": arm("batch", std, rate, act)}


def table_figure(std: float) -> Drawing:
    """Return the figure of all cells with one standard deviation of the initial weights."""
    panels = {f"{act}, rate {rate:g}": pair(std, rate, act) for rate in (0.01, 1, 2) for act in ("relu", "sigmoid")}
    return curves(f"udacity_{std:g}", f"The lesson's table: MNIST, weights N(0, {std:g}²)", panels)


LESSON = curves(
    "lesson",
    "MNIST, 784-100-100-100-10, SGD at 0.01",
    {"ReLU": pair(0.05, 0.01, "relu"), "sigmoid": pair(0.05, 0.01, "sigmoid")},
)
FIRST_STEPS = curves("udacity_start", "The lesson's first 2,000 steps", {"ReLU, rate 0.01": pair(0.05, 0.01, "relu")})
TABLES = {std: table_figure(std) for std in (0.05, 5)}


# ---- the table


def cells() -> list[Claim]:
    """Return a claim for each published accuracy.

    Left out are those with batch normalization in SEED_DEPENDENT cells, which were published with opposite outcomes.
    """
    claims: dict[str, Claim] = {}
    for (std, rate, act, steps), accuracies in CELLS:
        for (norm, split), published in zip(COLUMNS, accuracies, strict=True):
            if norm == "batch" and (std, rate, act) in SEED_DEPENDENT:
                continue
            name = f"{'start.' if steps == 2_000 else ''}{act}_{rate:g}_{std:g}.{norm}.{split}"
            name = name if name not in claims else f"{name}.again"
            claims[name] = cell(name, std, arm(norm, std, rate, act), split, published)
    return list(claims.values())


def cell(name: str, std: float, runs: Arm, split: str, published: float) -> Claim:
    """Return the claim about one published accuracy on `split`, test or validation."""
    start = name.startswith("start.")
    values = on_test(runs) if split == "test" else on_validation(runs)
    return Claim(
        id=f"udacity.{name}",
        source=f"{SOURCE}, {runs.label}",
        statement=f"{split.capitalize()}: {published:.2%} right.",
        published=f"{published:.2%}",
        rule=Numeric(values, published, CHANCE_TOLERANCE if published < CHANCE else TOLERANCE),
        sweeps=[START if start else sweep_of(runs)],
        note=note_of(runs),
        figure=FIRST_STEPS if start else TABLES[std],
    )


def seed_dependent(std: float, rate: float, act: str) -> Claim:
    """Return the claim that a cell that was published with opposite outcomes depends on the seed."""
    values = on_test(arm("batch", std, rate, act))
    return Claim(
        id=f"udacity.{act}_{rate:g}_{std:g}.batch.rate",
        source=f"{SOURCE}, {values.label.removeprefix('test accuracy of ')}",
        statement="Whether it trains depends on the seed.",
        published="1 of 2 runs trains",
        rule=Share(values, TRAINS, most=None),
        sweeps=[sweep_of(arm("batch", std, rate, act))],
        note=note_of(arm("batch", std, rate, act)),
        figure=TABLES[std],
    )


# ---- crossing times


def crossing(name: str, target: float, runs: Arm, published: str, low: float, high: float, note: str = "") -> Claim:
    """Return the claim about the step at which an arm first reaches the validation accuracy `target`.

    `published` is the step as the lesson gives it; it is judged as the range from `low` to `high`.
    """
    return Claim(
        id=f"udacity.crossing.{name}",
        source=f"{SOURCE}, figure of {runs.label}",
        statement=f"{target:.0%} at step {published}.",
        published=f"step {published}",
        rule=TimeToAccuracy(target, runs, low, high),
        sweeps=[sweep_of(runs)],
        note=note or note_of(runs),
        figure=LESSON if "optim.lr=0.01" in runs.label else TABLES[0.05],
    )


# ---- the claims; a step that is read off a figure is taken as ±10%, one in words as the range they leave

CLAIMS = [
    *cells(),
    seed_dependent(5, 1, "relu"),
    seed_dependent(5, 2, "relu"),
    crossing("relu.batch.70", 0.70, arm("batch"), "100", 90, 110),
    crossing("relu.batch.80", 0.80, arm("batch"), "200", 180, 220),
    crossing("relu.batch.90", 0.90, arm("batch"), "500", 450, 550),
    crossing("relu.none.80", 0.80, arm("none"), "1,750", 1_575, 1_925),
    crossing("relu.none.90", 0.90, arm("none"), "4,000", 3_600, 4_400),
    crossing(
        "sigmoid.batch.90",
        0.90,
        arm("batch", act="sigmoid"),
        "2,000 to 2,500",
        2_000,
        2_500,
        note=TEXT + "about 1,000 steps; its figure passes 90% between 2,000 and 2,500, which is what is judged.",
    ),
    crossing("sigmoid.none.80", 0.80, arm("none", act="sigmoid"), "47,000", 45_000, 50_000, note=TEXT + "over 45,000."),
    crossing("sigmoid_1.batch.90", 0.90, arm("batch", rate=1, act="sigmoid"), "400", 360, 440),
    crossing("sigmoid_1.none.90", 0.90, arm("none", rate=1, act="sigmoid"), "over 1,700", 1_700, 2_000),
    Claim(
        id="udacity.inference.identical",
        source=f"{SOURCE}, inference cell",
        statement="In training mode, single images all get one answer.",
        published="1 answer",
        rule=Numeric(each("number of different answers", distinct_answers, arm("batch")), 1, 0),
        sweeps=[START],
    ),
    Claim(
        id="udacity.inference.training_mode",
        source=f"{SOURCE}, inference cell",
        statement="That answer is right for 5% of them.",
        published="5%",
        rule=Numeric(each("share of right answers", right_one_by_one(True), arm("batch"), 100, "%"), 0.05, TOLERANCE),
        sweeps=[START],
        note="Which class the identical answer names depends on the seed, and each class has its share of the images.",
    ),
    Claim(
        id="udacity.inference.population",
        source=f"{SOURCE}, inference cell",
        statement="Population statistics: 97% are right.",
        published="97%",
        rule=Numeric(each("share of right answers", right_one_by_one(False), arm("batch"), 100, "%"), 0.97, 0.02),
        sweeps=[START],
    ),
    Claim(
        id="udacity.throughput",
        source=f"{SOURCE}, progress bars of all cells",
        statement="With BN 0.35 to 0.50 times the batches a second.",
        published="0.35 to 0.50",
        rule=Equivalent(rate_ratio(where("act=relu optim.lr=0.01 seed=0")), 0.425, 0.075),
        sweeps=[START],
        note=f"Published: 1,069 to 1,412 batches a second without, 488 to 537 with batch normalization. {AS_IT_RAN} "
        f"{LOOKED}",
    ),
]
