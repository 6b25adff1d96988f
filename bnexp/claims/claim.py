"""What a claim is: a published statement, the sweeps that test it, and the rule that decides it."""

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

    `name` is its folder's name; `overrides` are those of the command line, without the seeds. `most_seeds` limits the
    number of seeds where more would take too long; `after` is the sweep whose runs these runs start from.
    """

    name: str
    overrides: str
    most_seeds: int | None = None
    after: "ClaimSweep | None" = None


@dataclass(frozen=True)
class Evidence:
    """What a rule measured: `measured` and, where the rule is a test, its p-value `p` before Holm's correction.

    A reader is shown scale · (measured + shift) in `unit`: 0.98 is 98% with scale 100 and unit "%". `shift` is the
    published number that was subtracted, else 0. `difference`: `measured` is one between two arms, and is shown with
    its sign. `detail` adds what the numbers leave out. `problem` says why the claim is inconclusive whatever the
    numbers are, else None.
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
    """Raised where runs cannot decide a claim; the message says why."""


class Rule(Protocol):
    """How a claim is decided, fixed before its runs exist: what is measured, and which verdict follows from it."""

    @property
    def description(self) -> str:
        """The rule in a sentence, for claims.json."""
        ...

    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence:
        """Compute the evidence from the claim's runs; `random` is for resampling.

        Raises NoVerdictError where the runs cannot decide the claim. A rule that reads a run's checkpoint or data may
        also raise ConfigError, DamagedFileError or OSError.
        """
        ...

    def judge(self, evidence: Evidence, p: float | None) -> tuple[Verdict, str]:
        """Return the verdict and, where it is inconclusive, the reason, else "".

        `p` is the p-value of the evidence after Holm's correction over the claims of the source, None without a test.
        """
        ...


@dataclass(frozen=True)
class Claim:
    """A published statement with the sweeps that test it and the rule that decides it.

    `source` is the publication and the place in it, `published` the result there, in figures or words. `note`
    tells the reader how the statement was understood, or why the result differs. Claims may share a figure.
    """

    id: str
    source: str
    statement: str
    rule: Rule
    sweeps: Sequence[ClaimSweep] = ()
    published: str = ""
    note: str = ""
    figure: Figure | None = None
