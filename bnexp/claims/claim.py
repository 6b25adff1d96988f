"""What a claim is: a published statement, the sweeps that test it, and the rules that decide it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from bnexp.compare.statistics import Estimate
from bnexp.runs.record import RunRecord

Runs = list[RunRecord]
PerSeed = dict[int, float]  # seed → value; infinity is the time to an accuracy that was never reached
Samples = dict[str, PerSeed]  # what was measured, as "ours" → its values

SEEDS = 10  # of an arm in a block
BLOCKS = (0, 1000)  # first seeds of the two blocks: 0 to 9, and 1000 to 1009
TUNING = range(100, 105)  # seeds on which a rate is chosen; no claim is judged by them


class Figure(Protocol):
    """A figure that shows a claim's runs, saved as figures/NAME.svg beside claims.json."""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        ...

    def draw(self, runs: Runs, files: list[Path]) -> None:
        """Draw these runs, and save the figure to every file; where none of them is shown, write nothing."""
        ...


class Verdict(StrEnum):
    """The result of judging a claim by its rule."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class ClaimSweep:
    """A sweep whose runs test one or more claims.

    `name` is its folder's name; `overrides` are those of the command line, without the seeds. `seeds` is the number of
    seeds of an arm in a block. `tuned`: the TUNING seeds are trained too, to choose a rate. `after` is the sweep whose
    runs these runs start from.
    """

    name: str
    overrides: str
    seeds: int = SEEDS
    tuned: bool = False
    after: "ClaimSweep | None" = None


class NoVerdictError(ValueError):
    """Raised where runs cannot decide a claim; the message says why."""


@dataclass(frozen=True)
class Reading:
    """What a rule read off runs: its samples, and a remark on them for the reader, as which rate was chosen."""

    samples: Samples
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """What a rule finds in samples: the verdict, and what it rests on.

    `measured` is in `unit`, and `difference` says that it is one between two arms, which is shown with its sign. `p` is
    the p-value, before Holm's correction, of a rule that is a test; its verdict holds if it stays below 0.05. `theirs`
    are the reruns of the published experiment, if any, their mean and the interval of one of them. `detail` adds what
    the numbers leave out. `why` says why the verdict is inconclusive, else "".
    """

    verdict: Verdict
    measured: Estimate
    unit: str = ""
    why: str = ""
    p: float | None = None
    difference: bool = False
    theirs: Estimate | None = None
    detail: str = ""


class Rule(Protocol):
    """How a claim is decided, fixed before its runs exist: what is measured, and which verdict follows from it."""

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        ...

    def read(self, runs: Runs) -> Reading:
        """Read the samples off runs of one block of seeds and, where a rate is chosen, of the TUNING seeds.

        Raises NoVerdictError where the runs cannot decide the claim. A rule that reads a run's checkpoint or data may
        also raise ConfigError, DamagedFileError or OSError.
        """
        ...

    def find(self, samples: Samples, random: np.random.Generator) -> Finding:
        """Judge samples of one block, or of both together; `random` is for resampling."""
        ...

    def detectable(self, samples: Samples, random: np.random.Generator, tests: int) -> str:
        """Say how small a deviation from the claim would have contradicted it with these samples.

        A deviation of a mean or of a single run is one that is detected in 8 of 10 cases, simulated from the samples.
        `tests` is the number of tests that Holm's correction counts. It is "" where nothing could have contradicted it.
        """
        ...


@dataclass(frozen=True)
class Claim:
    """A published statement with the sweeps that test it and the rules that decide it.

    `source` is the publication and the place in it, `published` the result there, in figures or words. `rules` has a
    rule for each figure of the claim, by its name, as "test", or by "" where there is one alone; `aside` has rules of
    further figures of the same runs, which are shown, and have no part in the verdict. `family` names the claims over
    which Holm's correction runs, fixed when the claim was written: "" is the claim alone. `note` tells the reader how
    the statement was understood, or why the result differs. `changed` says what of the rule was changed after its
    result on the first block of seeds was seen: then only the second block decides. `replaces` are the ids of the first
    edition's claims that this one takes together or judges anew. Claims may share a figure.
    """

    id: str
    source: str
    statement: str
    rules: Mapping[str, Rule]
    sweeps: Sequence[ClaimSweep] = ()
    published: str = ""
    family: str = ""
    aside: Mapping[str, Rule] = field(default_factory=dict)
    note: str = ""
    changed: str = ""
    replaces: Sequence[str] = ()
    figure: Figure | None = None

    @property
    def all_rules(self) -> Mapping[str, Rule]:
        """The rules that decide, and those aside, by name."""
        return {**self.rules, **self.aside}


def of_family(name: str, claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims as members of the family `name`, whose tests share Holm's correction."""
    return [replace(claim, family=name) for claim in claims]
