"""A claim's verdict from its blocks of seeds, on samples made up for it."""

import math
from typing import Any

import numpy as np
import pytest

from bnexp.claims.claim import Claim, Verdict
from bnexp.claims.judge import BySample, Judged, judge
from bnexp.claims.record import parse_block
from bnexp.claims.rules import Directional, Exact, Share
from bnexp.claims.values import on_test, where

BATCH, NONE = on_test(where("norm=batch")), on_test(where("norm=none"))
BETTER = Directional(BATCH, NONE)


def claim(**changes: Any) -> Claim:
    given: dict[str, Any] = {"id": "a.b", "source": "S", "statement": "It is.", "rules": {"": BETTER}}
    return Claim(**(given | changes))


def block(first: int, gain: float, n: int = 10, spread: float = 1.0) -> dict[str, Any]:
    """Samples of a block: ours are better by `gain` on average."""
    draw = np.random.default_rng(first + n)
    noise = draw.normal(0, spread, n)
    noise -= noise.mean()
    seeds = range(first, first + n)
    ours = dict(zip(seeds, (90 + gain + noise).tolist(), strict=True))
    return {"": {"ours": ours, "control": dict.fromkeys(seeds, 90.0)}}


def judged(samples: BySample, problems: dict[str, str] | None = None, **changes: Any) -> Judged:
    return judge([claim(**changes)], {"a.b": samples}, {"a.b": problems or {}})["a.b"]


@pytest.mark.parametrize(
    ("gains", "verdict", "why"),
    [
        ((3, 3), Verdict.REPRODUCED, ""),
        ((-3, -3), Verdict.CONTRADICTED, ""),
        ((0, 0), Verdict.INCONCLUSIVE, "the difference may be either way"),
        ((3, -3), Verdict.INCONCLUSIVE, "the blocks disagree (reproduced, contradicted): 20 seeds of each decide"),
        ((3, 0), Verdict.INCONCLUSIVE, "the blocks disagree (reproduced, inconclusive): 20 seeds of each decide"),
    ],
)
def test_both_blocks_have_to_agree(gains: tuple[float, float], verdict: Verdict, why: str) -> None:
    found = judged({"0": block(0, gains[0]), "1000": block(1000, gains[1])})
    assert (found.verdict, found.why) == (verdict, why)
    assert list(found.findings) == ["0", "1000", "both"]
    assert found.findings["both"][""].measured.n == 20
    assert found.findings["both"][""].measured.mean == pytest.approx(sum(gains) / 2)


def test_more_seeds_decide_where_the_blocks_disagree() -> None:
    found = judged({"0": block(0, 0.9, 20), "1000": block(1000, 0.4, 20)})
    assert [finding[""].verdict for finding in found.findings.values()] == ["reproduced", "inconclusive", "reproduced"]
    assert (found.verdict, found.why) == (Verdict.REPRODUCED, "")


def test_one_block_is_no_verdict() -> None:
    assert judged({"0": block(0, 3)}).why == "the block of seeds from 1000 on was not run"
    assert judged({"1000": block(1000, 3)}).why == "the block of seeds from 0 on was not run"


def test_the_second_block_decides_a_rule_that_was_changed_after_a_look() -> None:
    for first in (block(0, 3), block(0, -3)):
        assert judged({"0": first, "1000": block(1000, 3)}, changed="a margin").verdict == Verdict.REPRODUCED
    assert judged({"1000": block(1000, -3)}, changed="a margin").verdict == Verdict.CONTRADICTED
    assert judged({"0": block(0, 3)}, changed="a margin").verdict == Verdict.INCONCLUSIVE


def test_all_rules_of_a_claim_have_to_hold() -> None:
    rules = {"80": BETTER, "90": Directional(BATCH, NONE, lower=True)}
    samples = {
        name: {rule: each[""] for rule in rules} for name, each in (("0", block(0, 3)), ("1000", block(1000, 3)))
    }
    assert judged(samples, rules=rules).verdict == Verdict.CONTRADICTED
    vague = {"80": BETTER, "90": Share(BATCH, 93.0)}
    found = judged(samples, rules=vague)
    assert (found.verdict, found.why) == (Verdict.INCONCLUSIVE, "90: the interval holds one half")


def test_what_stands_aside_has_no_part_in_the_verdict() -> None:
    aside = {"validation": Directional(BATCH, NONE, lower=True)}
    samples = {
        name: {"test": each[""], "validation": each[""]}
        for name, each in (("0", block(0, 3)), ("1000", block(1000, 3)))
    }
    found = judged(samples, rules={"test": BETTER}, aside=aside)
    assert found.verdict == Verdict.REPRODUCED
    assert found.findings["0"]["validation"].verdict == Verdict.CONTRADICTED
    assert list(found.detectable) == ["test"]


def test_holms_correction_runs_over_a_family_in_each_block() -> None:
    claims = [claim(id=f"a.{number}", family="a") for number in range(30)]
    samples: BySample = {"0": block(0, 1.0), "1000": block(1000, 1.0)}
    alone = judge(claims[:1], {"a.0": samples}, {})["a.0"]
    among = judge(claims, {"a.0": samples}, {})["a.0"]
    assert alone.verdict == Verdict.REPRODUCED
    assert among.verdict == Verdict.INCONCLUSIVE
    assert among.why.endswith("after Holm's correction")
    assert among.p_holm["0"] == pytest.approx(min(1, 30 * alone.p_holm["0"]))


def test_a_verdict_that_nothing_could_have_contradicted_is_none() -> None:
    """Five seeds of which all get there are too few for a verdict; nothing is said of what would have been seen."""
    rules = {"": Share(BATCH, 80.0)}
    found = judged({"0": block(0, 3, 5), "1000": block(1000, 3, 5)}, rules=rules)
    assert (found.verdict, found.detectable) == (Verdict.INCONCLUSIVE, {"": ""})


def test_a_block_that_could_not_be_measured() -> None:
    found = judged({"0": block(0, 3)}, {"1000": "no more disk"})
    assert found.findings["1000"][""].why == "no more disk"
    assert (found.verdict, found.why) == (
        Verdict.INCONCLUSIVE,
        "the blocks disagree (reproduced, inconclusive): 20 seeds of each decide",
    )


def test_samples_of_an_older_rule() -> None:
    old = {"": {"values": {0: 1.0}}}
    found = judged({"0": old, "1000": block(1000, 3)})
    assert found.findings["0"][""].why == "its samples were read by an older rule: run it again"
    assert found.verdict == Verdict.INCONCLUSIVE


def test_an_identity_has_no_seeds() -> None:
    found = judged({"0": {"": {"error": {0: 1e-12}}}}, rules={"": Exact(lambda: 0.0)})
    assert found.verdict == Verdict.REPRODUCED


def test_equal_samples_give_equal_findings() -> None:
    samples: BySample = {"0": block(0, 0.5), "1000": block(1000, 0.5)}
    assert judged(samples) == judged(samples)


def test_a_stored_block_has_numbers_for_seeds_and_infinity_for_never() -> None:
    stored = {"samples": {"": {"ours": {"3": 5.0, "1000": None}}}, "runs": 2, "of a later version": 1}
    read = parse_block(stored)
    assert read.samples == {"": {"ours": {3: 5.0, 1000: math.inf}}}
    assert read.runs == 2
