"""The graph of a training step: which runs share a compiled step, and which can form a stack."""

import json
from collections.abc import Collection
from typing import Any

import torch

from bnexp.data.load import Data
from bnexp.models.norm_registry import find_norm
from bnexp.models.registry import stacks
from bnexp.runs.config import RunConfig
from bnexp.training.optim import STACKABLE

# Keys that a step does not depend on: a member's initial weights and batches, and what happens outside of the step.
OUTSIDE_THE_STEP = {"seed", "init", "init_from", "init_sha256", "steps", "eval", "checkpoint"}
OUTSIDE_THE_STEP |= {"device", "threads", "compile"}


def shape_of(config: RunConfig, compiled: bool) -> dict[str, Any]:
    """Return the part of a configuration that determines the graph of a run's step; equal parts can share a step.

    It leaves out the keys in OUTSIDE_THE_STEP and optim.STACKABLE and, for a compiled step of an MLP, those that its
    norm declares stackable: other steps may call torch's kernels, which take these as numbers.
    """
    values = without(config.as_dict(), OUTSIDE_THE_STEP)
    stackable = find_norm(config.norm).stackable if compiled and stacks(config) else ()
    values["norm"] = without(values["norm"], stackable)
    values["optim"] = without(values["optim"], STACKABLE)
    return values


def without(values: dict[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a copy without these keys."""
    return {key: value for key, value in values.items() if key not in keys}


def graph_key(config: RunConfig, data: Data, size: int) -> str:
    """Return a text that identifies a compiled step. Stacks with equal texts, and no others, share it.

    size: number of members that one call of the step updates.
    """
    return json.dumps(
        [shape_of(config, compiled=True), data.checksum, str(data.scale.device), torch.get_num_threads(), size]
    )
