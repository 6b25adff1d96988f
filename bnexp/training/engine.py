"""The training step of a stack (`make_step`), and the evaluation of a member.

A stack's members have the same computation graph: they differ in what it doesn't depend on, such as seed, initial
weights and learning rate. If the step is compiled, it is mapped over all members with vmap: they compute as one
network, and each gets exactly the bytes that it gets alone. If it is not, and for convolutions, which gain nothing from
stacking on a CPU, the members step one after the other.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from bnexp.data.batches import Batch, Examples, gather
from bnexp.data.images import Images
from bnexp.data.load import Data, data_on
from bnexp.models.noise import noises
from bnexp.models.norms import use_kernels
from bnexp.models.registry import make_model, stacks
from bnexp.runs import distributed
from bnexp.runs.config import RunConfig
from bnexp.runs.seeds import generator
from bnexp.training.compiled import Compiled
from bnexp.training.evaluation import Evaluation, Evaluator, ShouldStop, Tensors, answer_of, make_answer, never_stop
from bnexp.training.graph import graph_key
from bnexp.training.optim import Optimizer, find_optimizer, schedule_factor
from bnexp.training.state import MemberState, start_member
from bnexp.training.torch_internals import keep_in_place, map_tensors

WARM_UP = {"cuda": 3}  # steps to warm up: compile, record a CUDA graph, replay it; other devices: 1
Loss = Callable[[Tensors, Tensors, Examples], tuple[Tensor, Tensor]]


def make_loss(model: nn.Module, config: RunConfig, data: Data) -> Loss:
    """Make the function (parameters, buffers, batch) → (mean cross-entropy, cross-entropy of each example (N,)). The
    latter is recorded, since the compiler sums a mean in another order if a run is alone.
    """
    answer = make_answer(model)

    def loss_of(parameters: Tensors, buffers: Tensors, batch: Examples) -> tuple[Tensor, Tensor]:
        logits = logits_of(partial(answer, parameters, buffers), config, data, batch)
        losses = F.cross_entropy(logits, batch[1], reduction="none")
        return losses.mean(), losses.detach()

    return loss_of


def logits_of(
    answer: Callable[[Tensor, Tensor | None], Tensor], config: RunConfig, data: Data, batch: Examples
) -> Tensor:
    """Return the logits (N, classes) of a batch in fp32. answer: (scaled images, condition) → logits."""
    pixels, _, condition = batch
    bf16 = torch.autocast(data.scale.device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()
    with bf16:
        logits = answer(data.scaled(pixels), condition)
    return logits.float()


def make_step(model: nn.Module, config: RunConfig, data: Data) -> Callable[..., Tensor]:
    """Make the step that is compiled: a function (state, index, crop, training set) that updates one member once, in
    place: its parameters, buffers, optimizer slots and record. It returns the loss of each example of the batch, (N,).

    It differentiates with torch.func, so that it can be mapped over members and compiled whole.
    """
    gradient_of = grad_and_value(make_loss(model, config, data), has_aux=True)
    optimizer = find_optimizer(config.optim)

    def step(state: MemberState, index: Tensor, crop: Tensor | None, train: Examples) -> Tensor:
        gradients, (_, losses) = gradient_of(state.parameters, state.buffers, gather(index, crop, train))
        return update(state, optimizer, gradients, losses)

    return step


class PlainStep:
    """The step of one member that is not compiled, as a loop in plain PyTorch takes it: the member's tensors are those
    of a network of its own, which costs a tenth less than calling a common one with them.
    """

    def __init__(self, config: RunConfig, member: MemberState, data: Data) -> None:
        self.config, self.data, self.member = config, data, member
        self.optimizer = find_optimizer(config.optim)
        self.model = make_network(config, data, kernels=True)
        self.model.load_state_dict(member.parameters | member.buffers, assign=True)
        parameters = dict(self.model.named_parameters())
        self.trained = {name: parameters[name] for name in member.parameters}
        self.answer = answer_of(self.model)

    def __call__(self, index: Tensor, crop: Tensor | None, train: Examples) -> Tensor:
        """Update the member once, in place. It returns its batch's (or shard's) mean loss for each example, (N,)."""
        batch = gather(index, crop, train)
        loss = F.cross_entropy(logits_of(self.answer, self.config, self.data, batch), batch[1])
        gradients = dict(zip(self.trained, torch.autograd.grad(loss, list(self.trained.values())), strict=True))
        return update(self.member, self.optimizer, gradients, loss.detach().expand(len(index)), as_floats=True)


@torch.no_grad()
def update(
    state: MemberState, optimizer: Optimizer, gradients: Tensors, losses: Tensor, as_floats: bool = False
) -> Tensor:
    """Update a member by the gradients of a step, in place, and return the losses of the whole batch, (N,).

    losses: of this process's shard. as_floats: give the optimizer its hyperparameters as Python's numbers.
    """
    gradients, losses = distributed.average(gradients), distributed.all_gather(losses)
    keep_record(state.record, losses)
    tensors = state.numbers | {"t": state.record["step"].to(losses.dtype)}
    numbers = {name: number.item() for name, number in tensors.items()} if as_floats else tensors
    for name, parameter in state.parameters.items():
        slots = {slot: tensors[name] for slot, tensors in state.slots.items()}
        optimizer.update(parameter, gradients[name], slots, numbers)
    return losses


def keep_record(record: Tensors, losses: Tensor) -> None:
    """Count the update, add the losses (N,), and record the first step with a loss that isn't finite; in place."""
    record["step"].add_(1)
    record["losses"].add_(losses)
    finite = losses.amax() < torch.inf  # no loss is negative, and a NaN among them is the maximum
    diverges = (record["diverged_at"] < 0) & ~finite
    # no torch.where: it would copy a step that is on the CPU to the device, and wait for the copy
    record["diverged_at"].add_(diverges * (record["step"] - record["diverged_at"]))


_compiled: dict[str, Compiled] = {}


def compiled_step(model: nn.Module, config: RunConfig, data: Data, mapped: bool, size: int) -> Compiled:
    """Return the compiled step, cached for all stacks of this process with the same graph; if mapped, it updates all
    `size` members at once, by vmap, otherwise one.
    """
    key = graph_key(config, data, size)
    if key not in _compiled:
        step = make_step(model, config, data)
        if mapped:
            step = vmap(step, in_dims=dimensions(config))
        _compiled[key] = Compiled(step, data.scale.device, key, {"model": model, "data": data})
    return _compiled[key]


def dimensions(config: RunConfig) -> tuple[int | None, ...]:
    """Return vmap's in_dims for the arguments of a step: 0, the members; None for the training set and for no crop."""
    return 0, 0, None if config.dataset.augment == "none" else 0, None


def make_network(config: RunConfig, data: Data, kernels: bool) -> nn.Module:
    """Make the network of a run on the meta device, without values. kernels: whether its norms call torch's kernels."""
    model = make_model(config, data.shape, data.classes)
    return use_kernels(model) if kernels else model


class Stack:
    """Members that train together, with the same graph, one for each configuration. compiled: whether their step is."""

    def __init__(self, configs: list[RunConfig], data: Data, device: torch.device, compiled: bool) -> None:
        self.configs, self.config = configs, configs[0]
        self.compiled = compiled
        self.mapped = self.compiled and stacks(self.config)
        self.model = make_network(self.config, data, kernels=not compiled)
        self.noises = noises(self.model)
        convolutional = any(isinstance(module, nn.Conv2d) for module in self.model.modules())
        self.memory_format = torch.channels_last if convolutional else torch.contiguous_format
        self.data = data_on(device, data, self.memory_format)
        self.train: Examples = (self.data.train.pixels, self.data.train.labels, self.data.train.condition)
        self.evaluators = [Evaluator(make_network(config, data, kernels=True), self.data) for config in configs]
        self.hold([self.placed(start_member(config, data)) for config in configs])

    def hold(self, members: list[MemberState]) -> None:
        """Set the stack's members and make their step. If mapped (compiled as one network, by vmap), they are copied
        into `self.state`, and become views of it.
        """
        self.members = members
        if self.mapped:
            self.state = map_tensors(lambda *tensors: torch.stack(tensors), *members)
            self.members = [self.state.map(itemgetter(row)) for row in range(len(members))]
        self.steps: Sequence[Callable[..., Tensor]]
        if self.compiled:
            size = len(members) if self.mapped else 1  # that one call updates
            self.run = compiled_step(self.model, self.config, self.data, self.mapped, size)
            keep_in_place((self.state if self.mapped else self.members, self.train))
            self.steps = [partial(self.run, member) for member in self.members]
        else:
            self.steps = [PlainStep(*pair, self.data) for pair in zip(self.configs, members, strict=True)]

    def restore(self, row: int, tensors: Tensors) -> None:
        """Copy a checkpoint's tensors (parameters, buffers, slots and record, by name) into the member in a row."""
        for name, tensor in self.members[row].flat().items():
            tensor.copy_(tensors[name])

    def keep(self, rows: list[int]) -> None:
        """Remove all members except those in these rows, order the members like `rows`, and make their step anew."""
        self.configs = [self.configs[row] for row in rows]
        self.evaluators = [self.evaluators[row] for row in rows]
        self.hold([self.members[row] for row in rows])

    def placed(self, member: MemberState) -> MemberState:
        """Return a member on the stack's device. For an uncompiled step on CUDA, `numbers` and `step` stay on the CPU:
        it reads them as Python's numbers, and to read them from CUDA would wait for all kernels that were launched.
        """
        placed = member.map(self.place)
        if self.compiled or self.data.scale.device.type != "cuda":
            return placed
        return placed._replace(record=placed.record | {"step": member.record["step"]}, numbers=member.numbers)

    def place(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the stack's device; 4 dimensions (images, kernels) get the stack's memory format."""
        memory_format = self.memory_format if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.data.scale.device, memory_format=memory_format)

    def step(self, batch: Batch) -> None:
        """Update every member once, without `prepare`. Raises CompileError on the first call, if compiling fails."""
        if self.mapped:
            self.run(self.state, batch.index, batch.crop, self.train)
            return
        for row, step in enumerate(self.steps):
            step(batch.index[row], None if batch.crop is None else batch.crop[row], self.train)

    def warm_up(self, batch: Batch) -> None:
        """Compile and load what a step needs: take steps, then restore the members. Raises CompileError on failure."""
        kept = [member.map(torch.clone) for member in self.members]
        for _ in range(WARM_UP.get(self.data.scale.device.type, 1)):
            self.step(batch)
        for member, before in zip(self.members, kept, strict=True):
            map_tensors(Tensor.copy_, member, before)

    def update(self, step: int, batch: Batch) -> None:
        """Update every member once. step: number of updates before; it decides the learning rate and the noise."""
        self.prepare(step)
        self.step(batch)

    def prepare(self, step: int) -> None:
        """Set the learning rates, and draw random numbers (`Noise`), for the next update; `step` updates were made."""
        for config, member in zip(self.configs, self.members, strict=True):
            if config.optim.schedule != "constant":
                member.numbers["lr"].fill_(config.optim.lr * schedule_factor(config.optim.schedule, step, config.steps))
            for name, noise in self.noises.items():
                for key, value in noise.draw(generator(config.seed, "noise", name, step)).items():
                    member.buffers[f"{name}.{key}"].copy_(value)

    def take_loss(self, row: int, updates: int) -> float:
        """Return a member's mean training loss over its last `updates` updates, and set the sums of its losses to 0."""
        losses = self.members[row].record["losses"]
        mean = float(losses.cpu().double().mean()) / updates  # on the CPU: not every device has double precision
        losses.zero_()
        return mean

    def diverged_at(self, row: int) -> int | None:
        """Return the number of the update (from 1) in which a member's loss was first not finite, or None."""
        step = int(self.members[row].record["diverged_at"])
        return step if step >= 0 else None

    def evaluate(self, row: int, images: Images, should_stop: ShouldStop = never_stop) -> Evaluation:
        """Evaluate a member on these images. Raises Stopped if `should_stop` returns True before a batch."""
        member = self.members[row]
        return self.evaluators[row].evaluate(member.parameters, member.buffers, images, should_stop)
