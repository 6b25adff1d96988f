"""A university wiki's retelling of the Udacity lesson: ReLU and sigmoid at 0.01, N(0, 0.05²), 50,000 iterations."""

from bnexp.claims.claim import Claim
from bnexp.claims.probes import rate_ratio, rates
from bnexp.claims.rules import Directional, Equivalent, Share, Sooner
from bnexp.claims.sources.udacity import AS_IT_RAN, LESSON, LOOKED, START, TABLE, arm
from bnexp.claims.values import each, on_test, steps_within, still_to_gain, where

SOURCE = "Wiki on the lesson"
ACTS = ("relu", "sigmoid")
SOLO = where("act=relu optim.lr=0.01 seed=0")
NEAR = 0.01  # to the maximum: a point of accuracy


def sooner(act: str, target: int) -> Claim:
    """Return the claim that, with this activation, batch normalization reaches `target` percent of validation accuracy
    in fewer seconds of training than no normalization.
    """
    return Claim(
        id=f"wiki.sooner_in_seconds.{act}.{target}",
        source=SOURCE,
        statement=f"BN: {target}% sooner in seconds.",
        published="sooner",
        rule=Sooner(target / 100, arm("batch", act=act), arm("none", act=act)),
        sweeps=[TABLE],
        note="Each batch is slower. Seconds are a run's share of its stack's: the seeds of a stack share a clock.",
        figure=LESSON,
    )


CLAIMS = [
    Claim(
        id="wiki.both_get_there",
        source=SOURCE,
        statement="Without BN, ReLU gets over 90% in the end, too.",
        rule=Share(on_test(arm("none")), 0.90, most=True),
        sweeps=[TABLE],
        published="over 90%",
        figure=LESSON,
    ),
    Claim(
        id="wiki.at_once",
        source=SOURCE,
        statement="With BN, accuracy passes 90% almost at once.",
        published="almost at once",
        note="Taken as: within 1,000 of 50,000 iterations.",
        rule=Directional(steps_within(0.90, arm("batch")), 1_000, lower=True),
        sweeps=[TABLE],
        figure=LESSON,
    ),
    Claim(
        id="wiki.maximum",
        source=SOURCE,
        statement="With BN, the maximum comes by about 10,000 steps.",
        published="by about 10,000",
        note="Taken as: less than 1 point of validation accuracy is gained after.",
        rule=Directional(
            each("gain after step 10,000", still_to_gain(10_000), arm("batch"), 100, "%"), NEAR, lower=True
        ),
        sweeps=[TABLE],
        figure=LESSON,
    ),
    Claim(
        id="wiki.batches_per_second",
        source=SOURCE,
        statement="510 batches/s without BN, 270 with: 0.53.",
        published="0.53",
        rule=Equivalent(rate_ratio(SOLO), 270 / 510, 0.05),
        sweeps=[START],
        note=f"{AS_IT_RAN} {LOOKED}",
    ),
    Claim(
        id="wiki.slower_a_batch",
        source=SOURCE,
        statement="A batch takes longer with BN.",
        published="slower",
        rule=Directional(rates(SOLO, "compiled", "batch"), rates(SOLO, "compiled", "none"), lower=True),
        sweeps=[START],
        note="Compiled, as runs of 5,000 steps and more are; rounds stand for seeds.",
    ),
    *(sooner(act, target) for act in ACTS for target in (80, 90, 95)),
    Claim(
        id="wiki.sigmoid_45000",
        source=SOURCE,
        statement="Sigmoid without BN: 80% after 45,000 steps.",
        published="over 45,000",
        rule=Directional(steps_within(0.80, arm("none", act="sigmoid")), 45_000),
        sweeps=[TABLE],
        note="A run that isn't there after 50,000 counts 50,000.",
        figure=LESSON,
    ),
]
