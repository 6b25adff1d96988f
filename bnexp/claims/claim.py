"""What a claim is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from bnexp.runs import RunRecord
from bnexp.stats import Estimate

Runs = list[RunRecord]


class Figure(Protocol):
    """What draws a claim's runs, into results/figures/NAME."""

    @property
    def name(self) -> str: ...
    def draw(self, runs: Runs, files: list[Path]) -> None: ...


class Verdict(StrEnum):
    REPRODUCED = "reproduced"
    CONTRADICTED = "contradicted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Sweep:
    """Runs that claims share: the folder's name, and the overrides as one types them, without the seeds; `most_seeds`:
    where more would take too long; `after`: the sweep whose runs they start from.
    """

    name: str
    overrides: str
    most_seeds: int | None = None
    after: "Sweep | None" = None


@dataclass(frozen=True)
class Evidence:
    """What a rule measured. `scale` and `unit` are for the reader: 0.98 with (100, "%") is 98%; `difference`: it
    is one between two arms, and has a sign.
    """

    measured: Estimate
    scale: float = 1.0
    unit: str = ""
    p: float | None = None  # of a test, before Holm's correction
    difference: bool = False
    shift: float = 0.0  # the published number that was subtracted, for the reader to see what was measured
    detail: str = ""  # in words, what the figures leave out
    problem: str | None = None  # why no verdict can be given


class NoVerdictError(ValueError):
    """These runs cannot decide the claim; the text says why."""


class Rule(Protocol):
    """Fixed before the runs: how they are measured, and what makes a verdict of it."""

    @property
    def words(self) -> str: ...
    def measure(self, runs: Runs, random: np.random.Generator) -> Evidence: ...
    def judge(self, evidence: Evidence, p: float | None) -> tuple[Verdict, str]:
        """`p` after Holm's correction over the source's claims. Returns the verdict, and why it is inconclusive."""
        ...


@dataclass(frozen=True)
class Claim:
    """A published statement. `published`: its figure, as printed; `note`: what a reader should know besides, for one
    that comes out differently what explains it; claims may share a figure.
    """

    id: str
    source: str
    statement: str
    rule: Rule
    sweeps: Sequence[Sweep] = ()
    published: str = ""
    note: str = ""
    figure: Figure | None = None
