"""The Udacity batch-normalization lesson (batch-norm/Batch_Normalization_Lesson.ipynb of udacity/deep-learning): every
published cell, the crossing times of its figures, the inference cell and the throughput.

Its figures are single unseeded runs; reruns.csv has what others got who executed the same notebook again in
TensorFlow 1, read from public copies of it. A copy whose network is edited is shown and not counted. Where the lesson's
text is less exact than its figures, the figures are judged.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from bnexp.claims.claim import Claim, ClaimSweep, of_family
from bnexp.claims.drawings import Strips, curves
from bnexp.claims.prediction import CHANCE
from bnexp.claims.probes import rate_ratio, right_one_by_one
from bnexp.claims.published import AtChance, Divided, PublishedRun, PublishedSample, TimeToAccuracy
from bnexp.claims.rules import Equivalent, Exact
from bnexp.claims.sources.identities import one_example_is_beta
from bnexp.claims.values import Arm, Values, each, on_test, on_validation, where

SOURCE = "Udacity lesson"
GRID = "experiment=udacity norm=none,batch act=relu,sigmoid"
TABLE = ClaimSweep("udacity", f"{GRID} init.std=0.05 optim.lr=0.01")
# rests at chance for 20,000 steps and more: what it reaches scatters widely
RESTING = ClaimSweep(
    "udacity_resting", "experiment=udacity norm=none act=sigmoid init.std=0.05 optim.lr=0.01", seeds=40
)
# only the final accuracy of these runs is judged, and when they reach 90% in the first 2,000 steps
RATES = ClaimSweep("udacity_rates", f"{GRID} init.std=0.05 optim.lr=1,2 eval.every=2500")
WIDE = ClaimSweep("udacity_wide", f"{GRID} init.std=5 optim.lr=0.01,1,2 eval.first_every=2500 eval.every=2500")
# evaluated every 10 steps: the lesson's first crossings come within 100 steps of each other
START = ClaimSweep(
    "udacity_start",
    "experiment=udacity norm=none,batch act=relu optim.lr=0.01 steps=2000 compile=true eval.first_every=10",
)
BENCHED = "experiment=udacity act=relu optim.lr=0.01"

COLUMNS = (("none", "test"), ("batch", "test"), ("none", "validation"), ("batch", "validation"))
Setting = tuple[float, float, str, int]  # init.std, learning rate, activation, steps
# accuracies in the order of COLUMNS; a setting that is here twice was published twice
CELLS: tuple[tuple[Setting, tuple[float, float, float, float]], ...] = (
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
LEAST_MARGIN, MARGIN_SHARE = 0.25, 0.25  # points of a difference of means; of the published difference between the arms
LEAST_WIDTH, WIDTH_SHARE = 0.5, 0.5  # points of an interval of one run; of that difference

TEXT = "The lesson's text says "
AS_IT_RAN = (
    "TensorFlow 1 ran its layer for vectors operation by operation, each a kernel of its own (it had a fused one for "
    "images alone), as norm=batch_scratch does uncompiled: the published ratio is made of that. One thread."
)
LOOKED = (
    "at first the prediction interval of a round of one measurement; then the interval of the mean, of norm=batch, "
    "which was a formula of a dozen operations; now that of norm=batch_scratch, since norm=batch is torch's fused "
    "kernel, over launches that are processes of their own"
)


def arm(norm: str, std: float = 0.05, rate: float = 0.01, act: str = "relu") -> Arm:
    """Return the arm of a cell of the lesson's table; `std` is that of the initial weights."""
    return where(f"norm={norm} act={act} optim.lr={rate:g} init.std={std:g}")


def sweeps_for(runs: Arm) -> list[ClaimSweep]:
    """Return the sweeps that train an arm's runs of 50,000 steps."""
    if runs.label == arm("none", act="sigmoid").label:
        return [TABLE, RESTING]
    return [WIDE if "init.std=5" in runs.label else TABLE if "optim.lr=0.01" in runs.label else RATES]


def pair(std: float, rate: float, act: str) -> dict[str, Arm]:
    """Return label → arm, without and with batch normalization, of a cell."""
    return {"without": arm("none", std, rate, act), "with batch normalization": arm("batch", std, rate, act)}


LESSON = curves(
    "lesson",
    "MNIST, 784-100-100-100-10, SGD at 0.01",
    {
        panel: {label: where(f"{runs.label} steps=50000") for label, runs in pair(0.05, 0.01, act).items()}
        for panel, act in (("ReLU", "relu"), ("sigmoid", "sigmoid"))  # the runs of the first 2,000 steps are others
    },
)
TABLE_CURVES = curves(
    "udacity_0.05",
    "The lesson's table: MNIST, weights N(0, 0.05²)",
    {f"{act}, rate {rate:g}": pair(0.05, rate, act) for rate in (0.01, 1, 2) for act in ("relu", "sigmoid")},
)


# ---- the table


@dataclass(frozen=True)
class Cell:
    """A cell of the lesson's table: a setting, the accuracies published for it, and those of unedited reruns.

    All are in percent, the published ones in `published` and the reruns, which include these, in `reruns`: (norm, data)
    → values. `edited` are those of copies whose network is edited.
    """

    setting: Setting
    published: dict[tuple[str, str], list[float]]
    reruns: dict[tuple[str, str], list[float]]
    edited: dict[tuple[str, str], list[float]]

    @property
    def name(self) -> str:
        """The first part of the ids of the cell's claims."""
        std, rate, act, steps = self.setting
        return f"{'start.' if steps == 2_000 else ''}{act}_{rate:g}_{std:g}"

    def arm(self, norm: str) -> Arm:
        """Return the cell's arm with this norm."""
        std, rate, act, _ = self.setting
        return arm(norm, std, rate, act)

    def other(self, norm: str, data: str) -> float | None:
        """Return what was published for the other arm, None where that is at chance."""
        value = self.published["batch" if norm == "none" else "none", data][0]
        return value if value > CHANCE else None


def read_cells() -> list[Cell]:
    """Return the cells of the table, with the reruns of reruns.csv."""
    text = files("bnexp.claims.sources").joinpath("reruns.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    return [
        Cell(
            setting,
            {
                column: [100 * values[place] for known, values in CELLS if known == setting]
                for place, column in enumerate(COLUMNS)
            },
            accuracies([row for row in rows if row["edited"] == "0" and setting_of(row) == setting]),
            accuracies([row for row in rows if row["edited"] == "1" and setting_of(row) == setting]),
        )
        for setting in dict.fromkeys(setting for setting, _ in CELLS)
    ]


def accuracies(rows: list[dict[str, str]]) -> dict[tuple[str, str], list[float]]:
    """Return (norm, data) → the accuracies of rows of reruns.csv, in percent."""
    return {(norm, data): [100 * float(row[f"{data}_accuracy_{norm}"]) for row in rows] for norm, data in COLUMNS}


def setting_of(row: dict[str, str]) -> Setting:
    """Return the setting of a row of reruns.csv."""
    return float(row["init_std"]), float(row["learning_rate"]), row["activation"], int(row["steps"])


def rule_of(cell: Cell, norm: str, data: str) -> PublishedSample:
    """Return the rule for one figure of a cell, whose margins are shares of the published difference of the arms."""
    published, *also = cell.published[norm, data]
    other = cell.other(norm, data)
    apart = abs(published - other) if other is not None else 0.0
    return PublishedSample(
        ours=values_on(data, cell.arm(norm)),
        published=published,
        limit=max(LEAST_WIDTH, WIDTH_SHARE * apart),
        other=other,
        theirs=cell.reruns[norm, data],
        margin=max(LEAST_MARGIN, MARGIN_SHARE * apart),
        also=also,
        edited=cell.edited[norm, data],
    )


def values_on(data: str, runs: Arm) -> Values:
    """Return the `Values` of an arm's accuracies on "test" or "validation"."""
    return on_test(runs) if data == "test" else on_validation(runs)


def kind_of(cell: Cell, norm: str) -> str:
    """Return what a cell shows with a norm: "trains", "at chance", or "divided", published with opposite outcomes."""
    above = [value > CHANCE for value in cell.published[norm, "test"]]
    return "trains" if all(above) else "divided" if any(above) else "at chance"


def cell_rule(cell: Cell, norm: str) -> PublishedSample | AtChance | Divided:
    """Return the rule of a cell with a norm, about the test accuracy."""
    tested, theirs = on_test(cell.arm(norm)), cell.reruns[norm, "test"]
    match kind_of(cell, norm):
        case "trains":
            return rule_of(cell, norm, "test")
        case "divided":
            return Divided(tested, theirs)
        case _:
            return AtChance(tested, theirs)


def validation_rule(cell: Cell, norm: str) -> dict[str, PublishedSample]:
    """Return the rule about the validation accuracy of a cell that trains, which is shown beside the verdict."""
    return {"validation": rule_of(cell, norm, "validation")} if kind_of(cell, norm) == "trains" else {}


NOT_BY_TOLERANCE = "accuracies were compared within a tolerance; now the shares of seeds at chance are"
NOT_BY_RANGE = "the range of our runs, which is narrower than an interval of one more run, was compared with the figure"
NOT_BY_VALIDATION = (
    "validation accuracies, of 5,000 images, were judged as well; by the noise of so few alone, an interval of one run "
    "is wider than 0.5 points"
)
STATEMENTS = {"divided": "Whether it trains depends on the seed.", "at chance": "It doesn't train: a constant answer."}
OLD_NAMES = {"divided": ["rate"], "at chance": ["test", "validation"], "trains": ["test", "validation"]}
CONSTANT = (
    "A constant answer has two causes. Weights overflow, and a network of NaN answers with the first class, 0 (9.80% "
    "of the test images). Or all ReLUs die while the weights are finite, and the output biases answer: at 0.01 with "
    "the most frequent class, 1 (11.35%), at 1 and 2 with one of the last batches (8.92 to 11.35%). Which of them it "
    "is depends on the seed, in a loop of plain torch operations as well; a ReLU that gives 0 for NaN, as TensorFlow "
    "1's did on a GPU, changes nothing."
)


def cell_claim(cell: Cell, norm: str) -> Claim:
    """Return the claim about a cell with a norm."""
    kind, aside = kind_of(cell, norm), validation_rule(cell, norm)
    std, rate, act, steps = cell.setting
    published = "; ".join(
        f"{data} {' and '.join(f'{value:.2f}' for value in cell.published[norm, data])}%"
        for data in ("test", "validation")
    )
    ids = [f"udacity.{cell.name}.{norm}.{part}" for part in OLD_NAMES[kind]]
    again = [f"{old}.again" for old in ids] if len(cell.published[norm, "test"]) > 1 and kind != "divided" else []
    named = "with BN" if norm == "batch" else "without"
    return Claim(
        id=f"udacity.{cell.name}.{norm}",
        source=f"{SOURCE}, {cell.arm(norm).label}",
        statement=STATEMENTS.get(kind, f"{act}, rate {rate:g}, σ {std:g}, {named}: as accurate after {steps:,} steps."),
        published="1 of 2 runs trains" if kind == "divided" else published,
        rules={"test" if aside else "": cell_rule(cell, norm)},
        aside=aside,
        changed=NOT_BY_VALIDATION if aside else NOT_BY_TOLERANCE,
        sweeps=[START] if steps == 2_000 else sweeps_for(cell.arm(norm)),
        note=CONSTANT if kind == "at chance" else "",
        replaces=ids + again,
        figure=strips(cell),
    )


def strips(cell: Cell) -> Strips:
    """Return the figure of a cell: our runs and the reruns, without and with batch normalization."""
    std, rate, act, steps = cell.setting
    title = f"{act}, SGD at {rate:g}, weights N(0, {std:g}²), {steps:,} steps: final accuracy"
    rows: dict[str, PublishedSample | AtChance | Divided] = {}
    published: dict[str, list[float]] = {}
    edited: dict[str, list[float]] = {}
    for norm, named in (("none", "without"), ("batch", "with batch normalization")):
        for data, rule in {"test": cell_rule(cell, norm), **validation_rule(cell, norm)}.items():
            row = f"{named}, {data}"
            rows[row], published[row], edited[row] = rule, cell.published[norm, data], cell.edited[norm, data]
    return Strips(f"cell_{cell.name.replace('.', '_')}", title, rows, published, edited)


# ---- crossing times


def crossing(
    name: str,
    target: float,
    runs: Arm,
    published: tuple[str, float, float],
    sweeps: Sequence[ClaimSweep],
    note: str = "",
) -> Claim:
    """Return the claim about the step at which an arm first reaches the validation accuracy `target`.

    `published` is the step as the lesson gives it, and the range that this is judged as.
    """
    words, low, high = published
    return Claim(
        id=f"udacity.crossing.{name}",
        source=f"{SOURCE}, figure of {runs.label}",
        statement=f"{target:.0%} at step {words}.",
        published=f"step {words}",
        rules={"": TimeToAccuracy(target, runs, low, high)},
        sweeps=sweeps,
        note=note,
        changed=NOT_BY_RANGE,
        figure=LESSON if "optim.lr=0.01" in runs.label else TABLE_CURVES,
    )


# ---- the claims; a step that is read off a figure is taken as ±10%, one in words as the range they leave

CELL_LIST = read_cells()
CLAIMS = of_family(
    "udacity",
    [
        *(cell_claim(cell, norm) for cell in CELL_LIST for norm in ("none", "batch")),
        crossing("relu.batch.70", 0.70, arm("batch"), ("100", 90, 110), [START]),
        crossing("relu.batch.80", 0.80, arm("batch"), ("200", 180, 220), [START]),
        crossing("relu.batch.90", 0.90, arm("batch"), ("500", 450, 550), [START]),
        crossing("relu.none.80", 0.80, arm("none"), ("1,750", 1_575, 1_925), [TABLE]),
        crossing("relu.none.90", 0.90, arm("none"), ("4,000", 3_600, 4_400), [TABLE]),
        crossing(
            "sigmoid.batch.90",
            0.90,
            arm("batch", act="sigmoid"),
            ("2,000 to 2,500", 2_000, 2_500),
            [TABLE],
            TEXT + "about 1,000 steps; its figure passes 90% between 2,000 and 2,500, which is what is judged.",
        ),
        crossing(
            "sigmoid.none.80",
            0.80,
            arm("none", act="sigmoid"),
            ("47,000", 45_000, 50_000),
            [TABLE, RESTING],
            TEXT + "over 45,000.",
        ),
        crossing("sigmoid_1.batch.90", 0.90, arm("batch", rate=1, act="sigmoid"), ("400", 360, 440), [RATES]),
        crossing("sigmoid_1.none.90", 0.90, arm("none", rate=1, act="sigmoid"), ("over 1,700", 1_700, 2_000), [RATES]),
        Claim(
            id="udacity.inference.training_mode",
            source=f"{SOURCE}, inference cell",
            statement="In training mode, BN of a single vector is β, so that all images get one answer.",
            published="1 answer, right for 5%",
            rules={"": Exact(one_example_is_beta)},
            note="Which class it names depends on the seed.",
            replaces=["udacity.inference.identical"],
        ),
        Claim(
            id="udacity.inference.population",
            source=f"{SOURCE}, inference cell",
            statement="One by one, with population statistics, 97% of 200 images are right.",
            published="97%",
            rules={
                "": PublishedRun(
                    each("share of right answers", right_one_by_one, arm("batch"), 100, "%"), 97.0, 46.0, 5.0
                )
            },
            sweeps=[START],
            changed="a tolerance of 2 points stood beside the interval, which was normal on the scale of the share",
        ),
        Claim(
            id="udacity.throughput",
            source=f"{SOURCE}, progress bars of all cells",
            statement="With BN 0.35 to 0.50 times the batches a second.",
            published="0.35 to 0.50",
            rules={"": Equivalent(rate_ratio(BENCHED, arm("none")), 0.425, 0.075)},
            sweeps=[START],
            note="Published: 1,069 to 1,412 batches a second without, 488 to 537 with batch normalization. "
            + AS_IT_RAN,
            changed=LOOKED,
        ),
    ],
)
