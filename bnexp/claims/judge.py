"""Judge claims from their samples: one verdict for each block of seeds, and the claim's verdict from both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bnexp.claims.claim import BLOCKS, SEEDS, Claim, Finding, NoVerdictError, Rule, Samples, Verdict
from bnexp.claims.rules import SIGNIFICANT, Directional, Exact, Sooner
from bnexp.compare.statistics import FEWEST_PAIRS, Estimate, holm

BOTH = "both"  # the two blocks of seeds together
TESTS = (Directional, Sooner)  # rules that have a p-value
OLDER = "its samples were read by an older rule: run it again"
MORE_SEEDS = 2 * SEEDS  # of a block, by which both together decide where the blocks disagree

BySample = dict[str, dict[str, Samples]]  # block, as "0" or BOTH → name of a claim's rule → its samples
Problems = dict[str, str]  # block → why it could not be measured


@dataclass(frozen=True)
class Judged:
    """What is found of a claim.

    `findings`: block, as "0" or BOTH → name of a rule → its finding. `p_holm`: block → the claim's p-value after Holm's
    correction, of blocks with a test. `detectable`: name of a rule → the smallest deviation that would have
    contradicted it. `verdict` and `why` are the claim's.
    """

    findings: dict[str, dict[str, Finding]]
    p_holm: dict[str, float]
    detectable: dict[str, str]
    verdict: Verdict
    why: str


def judge(claims: list[Claim], samples: Mapping[str, BySample], problems: Mapping[str, Problems]) -> dict[str, Judged]:
    """Judge claims by what was measured: id → what is found.

    `samples` and `problems`: id of a claim → what was measured of it, and what could not be. Tests of a family that
    have no sample count as p = 1.
    """
    measured = {claim.id: with_both(samples.get(claim.id, {})) for claim in claims}
    found = {claim.id: find_all(claim, measured[claim.id], problems.get(claim.id, {})) for claim in claims}
    p = {claim.id: {block: largest_p(claim, each) for block, each in found[claim.id].items()} for claim in claims}
    adjusted = adjust(claims, p)
    return {
        claim.id: conclude(
            claim, found[claim.id], adjusted.get(claim.id, {}), measured[claim.id], tests_of(claim, claims)
        )
        for claim in claims
    }


def with_both(samples: BySample) -> BySample:
    """Return the samples of each block, and of both blocks together where both were measured."""
    blocks = [samples[str(block)] for block in BLOCKS if str(block) in samples]
    return samples if len(blocks) < len(BLOCKS) else {**samples, BOTH: merged(blocks)}


def merged(blocks: list[dict[str, Samples]]) -> dict[str, Samples]:
    """Return the samples of several blocks together: their seeds differ."""
    together: dict[str, Samples] = {}
    for block in blocks:
        for rule, samples in block.items():
            for role, values in samples.items():
                together.setdefault(rule, {}).setdefault(role, {}).update(values)
    return together


# ---- findings


def find_all(claim: Claim, samples: BySample, problems: Problems) -> dict[str, dict[str, Finding]]:
    """Return block → name of a rule → what it finds; a block that could not be measured is inconclusive."""
    found = {
        block: {name: find(rule, by_rule.get(name, {})) for name, rule in claim.all_rules.items()}
        for block, by_rule in samples.items()
    }
    return {block: {name: nothing(why) for name in claim.all_rules} for block, why in problems.items()} | found


def find(rule: Rule, samples: Samples) -> Finding:
    """Return what a rule finds in samples; it is inconclusive where they can't decide it or the mean is no number."""
    if not samples:
        return nothing(OLDER)
    try:
        finding = rule.find(samples, np.random.default_rng(0))
    except NoVerdictError as error:
        return nothing(str(error))
    except KeyError:
        return nothing(OLDER)
    return nothing("what was measured is not a number") if math.isnan(finding.measured.mean) else finding


def nothing(why: str) -> Finding:
    """Return the finding that nothing could be measured."""
    return Finding(Verdict.INCONCLUSIVE, Estimate(math.nan, None, None, 0), why=why)


def largest_p(claim: Claim, findings: dict[str, Finding]) -> float | None:
    """Return the largest p-value of a claim's rules, all of which have to hold; None where none is a test."""
    return max((p for name in claim.rules if (p := findings[name].p) is not None), default=None)


def family(claim: Claim) -> str:
    """Return the name of the family of tests that a claim belongs to: its own id where it is alone."""
    return claim.family or claim.id


def is_test(claim: Claim) -> bool:
    """Return whether any of a claim's rules has a p-value."""
    return any(isinstance(rule, TESTS) for rule in claim.rules.values())


def is_identity(claim: Claim) -> bool:
    """Return whether a claim is an identity, which has no seeds."""
    return all(isinstance(rule, Exact) for rule in claim.rules.values())


def tests_of(claim: Claim, claims: list[Claim]) -> int:
    """Return the number of tests in a claim's family."""
    return sum(is_test(other) and family(other) == family(claim) for other in claims)


def adjust(claims: list[Claim], p: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Return id → block → p-value after Holm's correction over the tests of the claim's family in that block.

    `p`: id → block → p-value, if any. A test without a p-value counts as p = 1, so that a claim alone is judged as
    strictly as among all of its family.
    """
    adjusted: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(map(family, claims)):
        members = [claim.id for claim in claims if family(claim) == name and is_test(claim)]
        for block in (*map(str, BLOCKS), BOTH):
            values = {key: p.get(key, {}).get(block) for key in members}
            if all(value is None for value in values.values()):
                continue
            corrected = holm({key: 1.0 if value is None else value for key, value in values.items()})
            for key in members:
                adjusted.setdefault(key, {})[block] = corrected[key]
    return adjusted


# ---- verdicts


def conclude(
    claim: Claim, found: dict[str, dict[str, Finding]], p_holm: dict[str, float], samples: BySample, tests: int
) -> Judged:
    """Return what is found of a claim, with its verdict; `tests` is the number of tests of its family."""
    corrected = {
        block: {name: after_holm(finding, p_holm.get(block)) for name, finding in by_rule.items()}
        for block, by_rule in found.items()
    }
    detectable = {name: smallest_deviation(rule, name, samples, tests) for name, rule in claim.rules.items()}
    deciding = {block: {name: by_rule[name] for name in claim.rules} for block, by_rule in corrected.items()}
    verdicts = {block: together(by_rule) for block, by_rule in deciding.items()}
    verdict, why = verdict_of(claim, verdicts, {block: fewest(by_rule) for block, by_rule in deciding.items()})
    if verdict is not Verdict.INCONCLUSIVE and not all(detectable.values()):
        verdict, why = Verdict.INCONCLUSIVE, "nothing could have contradicted it with these seeds"
    return Judged(corrected, p_holm, detectable, verdict, why)


def after_holm(finding: Finding, p: float | None) -> Finding:
    """Return a finding as it stands after Holm's correction: inconclusive where the corrected p is not below 0.05."""
    if finding.p is None or p is None or p < SIGNIFICANT or finding.verdict is Verdict.INCONCLUSIVE:
        return finding
    return replace(finding, verdict=Verdict.INCONCLUSIVE, why=f"p = {p:.2g} after Holm's correction")


def smallest_deviation(rule: Rule, name: str, samples: BySample, tests: int) -> str:
    """Say how small a deviation would have contradicted a rule in the last block that was measured; "" where none."""
    own = [by_rule[name] for block, by_rule in samples.items() if block != BOTH and name in by_rule]
    if not own or ("ours" in own[-1] and len(own[-1]["ours"]) < FEWEST_PAIRS):  # an identity has no seeds
        return ""
    try:
        return rule.detectable(own[-1], np.random.default_rng(0), tests)
    except (NoVerdictError, KeyError):  # the finding says why
        return ""


def together(findings: dict[str, Finding]) -> tuple[Verdict, str]:
    """Return the verdict of a block: reproduced where all of its rules are, contradicted where any is."""
    verdicts = [finding.verdict for finding in findings.values()]
    if Verdict.CONTRADICTED in verdicts:
        return Verdict.CONTRADICTED, ""
    if Verdict.INCONCLUSIVE in verdicts:
        name, finding = next((n, f) for n, f in findings.items() if f.verdict is Verdict.INCONCLUSIVE)
        return Verdict.INCONCLUSIVE, f"{name}: {finding.why}" if name else finding.why
    return Verdict.REPRODUCED, ""


def fewest(findings: dict[str, Finding]) -> int:
    """Return the smallest number of seeds of a block's findings."""
    return min(finding.measured.n for finding in findings.values())


def verdict_of(claim: Claim, verdicts: dict[str, tuple[Verdict, str]], seeds: dict[str, int]) -> tuple[Verdict, str]:
    """Return a claim's verdict from those of its blocks, and why it is inconclusive.

    Identities have no seeds. A claim whose rule was changed after its result was seen is decided by the second block.
    Otherwise both blocks have to agree. Where they don't, both together decide once each has MORE_SEEDS seeds.
    """
    first, second = map(str, BLOCKS)
    if is_identity(claim) and first in verdicts:
        return verdicts[first]
    if second not in verdicts or (first not in verdicts and not claim.changed):
        missing = second if second not in verdicts else first
        return Verdict.INCONCLUSIVE, f"the block of seeds from {missing} on was not run"
    if claim.changed or verdicts[first][0] is verdicts[second][0]:
        return verdicts[second]
    if min(seeds[first], seeds[second]) >= MORE_SEEDS:
        return verdicts[BOTH]
    disagree = f"the blocks disagree ({verdicts[first][0]}, {verdicts[second][0]})"
    return Verdict.INCONCLUSIVE, f"{disagree}: {MORE_SEEDS} seeds of each decide"
