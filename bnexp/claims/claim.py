"""What a claim is: a published statement, the sweeps that test it, and the rule that decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from bnexp.compare.statistics import Estimate
from bnexp.runs.record import RunRecord

Runs = list[RunRecord]


class Figure(Protocol):
    """What draws a claim's runs, into results/figures/NAME.svg."""

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        ...

    def draw(self, runs: Runs, files: list[Path]) -> None:
        """Draw these runs into every file."""
        ...


class Verdict(StrEnum):
    """What a rule decides of a claim."""

    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class ClaimSweep:
    """A sweep whose runs test claims, which may share it.

    `name` is its folder's name; `overrides` are those of the command line, without the seeds. `most_seeds` bounds the
    seeds where more would take too long; `after` is the sweep whose runs these runs start from.
    """

    name: str
    overrides: str
    most_seeds: int | None = None
    after: "ClaimSweep | None" = None


@dataclass(frozen=True)
class Evidence:
    """What a rule measured.

    `scale` and `unit` show it to a reader: 0.98 with (100, "%") is 98%. `p` is that of a test, before Holm's
    correction. `difference`: it is one between two arms, and shown with its sign. `shift` is the published number that
    was subtracted, and is added again for the reader. `detail` says what the numbers leave out, `problem` why no
    verdict can be given.
    """

    measured: Estimate
    scale: float = 1.0
    unit: str = ""
    p: float | None = None
    difference: bool = False
    shift: float = 0.0
    detail: str = ""
    problem: str | None = None


class NoVerdictError(ValueError):
    """These runs cannot decide the claim; the text says why."""


class Rule(Protocol):
    """How a claim is decided, fixed before its runs: what is measured, and which verdict follows from it."""

    @property
    def description(self) -> str:
        """The rule in a sentence, for the record."""
        ...

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Return what the runs show. Raises NoVerdictError where they cannot decide the claim."""
        ...

    def judge(self, evidence: Evidence, p: float | None) -> tuple[Verdict, str]:
        """Return the verdict, and why it is inconclusive; `p` is corrected over the claims of the source."""
        ...


@dataclass(frozen=True)
class Claim:
    """A published statement with the sweeps that test it and the rule that decides.

    `published` is its figure as printed. `note` says what a reader should know besides: of a claim that comes out
    differently, what explains it. Claims may share a figure.
    """

    id: str
    source: str
    statement: str
    rule: Rule
    sweeps: Sequence[ClaimSweep] = ()
    published: str = ""
    note: str = ""
    figure: Figure | None = None
