"""The state of a member: the tensors that a training step changes, and their values before the first step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bnexp.data.load import Data
from bnexp.models.init import initialize
from bnexp.models.norm_registry import norm_parameters
from bnexp.models.registry import make_model
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.training.evaluation import Tensors
from bnexp.training.optim import NUMBERS, find_optimizer
from bnexp.training.pretrained import load_start
from bnexp.training.torch_internals import map_tensors


class MemberState(NamedTuple):
    """The tensors of a member that a step uses; in `Stack.state`, those of all members, in a leading dimension."""

    parameters: Tensors
    buffers: Tensors
    slots: dict[str, Tensors]  # slot of the optimizer → parameter → tensor
    # step: updates made; losses: (N,), sums since the last evaluation (uncompiled, of the batches' means); diverged_at:
    # step or -1
    record: Tensors
    numbers: Tensors  # hyperparameters of the optimizer: lr, weight_decay, …

    def map(self, change: Callable[[Tensor], Tensor]) -> "MemberState":
        """Return a copy with a function applied to every tensor."""
        return map_tensors(change, self)

    def flat(self) -> Tensors:
        """Return all tensors but `numbers` by their names in a checkpoint, such as "parameters.classifier.weight"."""
        slots = {f"optimizer.{slot}": tensors for slot, tensors in self.slots.items()}
        groups = {"parameters": self.parameters, "buffers": self.buffers, **slots, "record": self.record}
        return {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def start_member(config: RunConfig, data: Data) -> MemberState:
    """Return a member's state before its first update, on the CPU. A parameter that isn't trained is a buffer.

    Weights are drawn from its seed or, if they match, loaded from a finished run (init_from); the losses' sums and the
    optimizer's slots are 0. Raises ConfigError as `load_start` and `trained_names` do.
    """
    model = make_model(config, data.shape, data.classes, device="cpu")
    initialize(model, config.init, config.seed)
    if config.init_from is not None:
        load_start(model, config)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    parameters = {name: values.pop(name) for name in trained_names(model, config)}
    slots = {
        slot: {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for slot in find_optimizer(config.optim).slots
    }
    record = {"step": torch.tensor(0), "losses": torch.zeros(config.batch_size), "diverged_at": torch.tensor(-1)}
    numbers = {name: torch.tensor(getattr(config.optim, name)) for name in NUMBERS}
    buffers = {name: buffer.float() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    return MemberState(parameters, values | buffers, slots, record, numbers)


def trained_names(model: nn.Module, config: RunConfig) -> list[str]:
    """Return the names of the trained parameters: all, those of the norms, or those of the head, the last linear layer.

    Raises ConfigError if there are none.
    """
    names = [name for name, _ in model.named_parameters()]
    if config.trainable == "norms":
        norms = norm_parameters(model)
        names = [name for name in names if name in norms]
        if not names:
            raise ConfigError(f"trainable=norms is not allowed: norm={config.norm.name} has nothing that is trained")
    if config.trainable == "head":
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise ConfigError(f"trainable=head is not allowed: arch={config.arch.name} has no linear layer")
        names = [name for name in names if name.rpartition(".")[0] == linear[-1]]
    return names
