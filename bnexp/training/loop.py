"""The loop: members in, metrics out."""

from contextlib import suppress

from bnexp.data.batches import Batches
from bnexp.data.load import load_data
from bnexp.runs import distributed
from bnexp.runs.config import RunConfig
from bnexp.runs.directory import CHECKPOINT, checkpoint_at, clear_progress, write_summary
from bnexp.runs.record import write_failure
from bnexp.training.checkpoint import save_checkpoint, save_progress
from bnexp.training.device import COMPILE_FROM, pick_device, prepare_torch
from bnexp.training.engine import Stack
from bnexp.training.evaluation import Asked, Evaluation, Stopped, never
from bnexp.training.member import Member
from bnexp.training.recalibrate import recalibrated
from bnexp.training.signals import Interrupted, StopRequest
from bnexp.training.timing import Stopwatch, Timer


def follow(config: RunConfig) -> None:
    """A process beside rank 0: its share of every batch, and nothing else. Where rank 0 stops, so does it."""
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    stack = Stack([config], data, device, compiled=False)
    batches = Batches([config.seed], len(data.train), config.batch_size, config.dataset.augment != "none", device)
    with StopRequest() as stop:
        try:
            stack.warm_up(batches.batch(0))
            for step in range(config.steps):
                if config.eval.due(step, config.steps) and stack.diverged_at(0) is not None:
                    break
                stack.update(step, batches.batch(step))
        except RuntimeError:  # rank 0 has left
            if not stop.asked():
                raise


def train_together(members: list[Member]) -> None:
    """Train runs of a stack and close their directories; `outcome` of each tells how it ended. Resumed runs train
    beside members of the same step. Raises Interrupted.
    """
    try:
        for step in sorted({member.start.step for member in members}):
            train_members([member for member in members if member.start.step == step])
    finally:
        for member in members:
            member.release()


def train_members(members: list[Member]) -> None:
    """Train members that start from the same step as one stack; whatever fails is the outcome of all of them."""
    config = members[0].config
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    try:
        compiled = members[0].launch.compilation.compiled
        stack = Stack([member.config for member in members], data, device, compiled)
        take_places(members, stack)
        train(members, stack)
    except Exception as error:
        for member in members:
            if member.outcome is None:
                fail(member, error)


def train(members: list[Member], stack: Stack) -> None:
    """The loop. A member that diverges or fails is deactivated at the evaluation that finds out. All members start from
    the same step.
    """
    config, data, active = stack.config, stack.data, members
    augment = config.dataset.augment != "none"
    seeds = [member.config.seed for member in members]
    batches = Batches(seeds, len(data.train), config.batch_size, augment, data.train.labels.device)
    watch = Stopwatch(data.train.labels.device)
    saving = Timer(config.checkpoint.every_seconds)
    start = members[0].start.step
    stack.warm_up(batches.batch(start))  # compiling takes seconds to minutes, in which there is nothing to save
    with StopRequest() as stop:
        asked = stop.asked if distributed.processes() == 1 else never  # torchrun's cannot be resumed: better a late end
        watch.start()
        for step in range(start, config.steps + 1):
            if config.eval.due(step, config.steps):
                watch.stop(len(active))
                active = [member for member in active if stays_active(member, stack, step, watch.total, asked)]
                if step == config.steps or not active or asked():
                    break
                repack(active, stack, batches, step)
                watch.start()
            if stop.asked():
                watch.stop(len(active))
                break
            if saving.due():
                watch.stop(len(active))
                active = [member for member in active if saved(member, stack, watch.total)]
                if not active:
                    break
                watch.start()
            stack.update(step, batches.batch(step))
        for member in active:
            status = "finished" if member.evaluated(config.steps) else "interrupted"
            close(member, stack, step, watch.total, status, asked)
    if stop.signum is not None:
        raise Interrupted(stop.signum)


def saved(member: Member, stack: Stack, seconds: float) -> bool:
    """Keep a checkpoint that a killed run is resumed from; whether that went well."""
    try:
        member.recorder.sync()
        state = stack.members[member.row]
        save_progress(member.launch.directory, state, member.config, member.start.seconds + seconds)
    except OSError as error:
        fail(member, error)
        return False
    return True


def take_places(members: list[Member], stack: Stack) -> None:
    """Each in its row, with what it goes on from."""
    number_rows(members)
    for member in members:
        if member.start.tensors is not None:
            stack.restore(member.row, member.start.tensors)


def number_rows(members: list[Member]) -> None:
    for row, member in enumerate(members):
        member.row = row


def repack(active: list[Member], stack: Stack, batches: Batches, step: int) -> None:
    """Leave the deactivated members out: at once where that is free; where it means to compile a smaller stack, when
    half are gone and the remaining steps pay for it.
    """
    size = len(stack.members)
    pays = len(active) <= size / 2 and stack.config.steps - step >= COMPILE_FROM if stack.mapped else len(active) < size
    if pays:
        rows = [member.row for member in active]
        stack.keep(rows)
        batches.keep(rows)
        number_rows(active)
        stack.warm_up(batches.batch(step))


def stays_active(member: Member, stack: Stack, step: int, seconds: float, asked: Asked) -> bool:
    """Evaluate a member, unless it was before it was interrupted; whether it trains on."""
    try:
        if not member.evaluated(step):
            evaluate(member, stack, step, seconds, asked)
    except Stopped:
        return True
    except OSError as error:
        fail(member, error)
        return False
    member.diverged_at = stack.diverged_at(member.row)
    if member.diverged_at is not None:
        close(member, stack, step, seconds, "diverged", asked)
    return member.diverged_at is None


def evaluate(member: Member, stack: Stack, step: int, seconds: float, asked: Asked) -> None:
    """Note its validation accuracy and training loss. Raises Stopped."""
    updates = step - member.steps[-1] if member.steps else 0
    result = stack.evaluate(member.row, stack.data.validation, asked)
    loss = stack.take_loss(member.row, updates) if updates else None
    member.note(step, member.start.seconds + seconds, loss, result)
    if member.config.eval.keep:
        save_checkpoint(checkpoint_at(member.launch.directory, step), stack.members[member.row], member.config)


def close(member: Member, stack: Stack, step: int, seconds: float, status: str, asked: Asked) -> None:
    """Test accuracy, checkpoint and summary."""
    directory, state = member.launch.directory, stack.members[member.row]
    try:
        status, tests = tested(member, stack, status, asked)
        for split, result in tests.items():
            member.recorder.evaluation(step, split, result)
        seconds += member.start.seconds
        found = member.summary(status, step, seconds, tests)
        member.recorder.sync()
        check_kept(member)
        if status == "interrupted":
            save_progress(directory, state, member.config, seconds)
        save_checkpoint(directory / CHECKPOINT, state, member.config)
        write_summary(directory, found)
        member.outcome = found
        if status != "interrupted":
            clear_progress(directory)
    except OSError as error:
        fail(member, error)


def check_kept(member: Member) -> None:
    """Raises OSError where a checkpoint that an evaluation kept is gone."""
    for step in member.steps if member.config.eval.keep else []:
        checkpoint_at(member.launch.directory, step).stat()


def tested(member: Member, stack: Stack, status: str, asked: Asked) -> tuple[str, dict[str, Evaluation]]:
    """Its tests, and its status: interrupted, where it was asked to stop meanwhile; then it is tested when it goes on.
    What a diverged network answers is its result, so it is tested too.
    """
    if status == "interrupted":
        return status, {}
    try:
        tests = {"test": stack.evaluate(member.row, stack.data.test, asked)}
        if member.config.eval.recalibrate and status == "finished":
            tests |= test_recalibrated(member, stack, asked)
    except Stopped:
        return "interrupted", {}
    return status, tests


def test_recalibrated(member: Member, stack: Stack, asked: Asked) -> dict[str, Evaluation]:
    """The test once more, with population statistics in the place of running averages, where there are some."""
    parameters, buffers = stack.members[member.row].parameters, recalibrated(stack, member.row, asked)
    if buffers is None:
        return {}
    found = stack.evaluator.evaluate(parameters, buffers, stack.data.test, asked)
    return {"test_recalibrated": found}


def fail(member: Member, error: Exception) -> None:
    member.outcome = error
    with suppress(OSError):  # what failed may be the directory itself
        write_failure(member.launch.directory, f"{type(error).__name__}: {error}")
