"""The training loop: it trains the members of a stack, evaluates them, and closes their runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bnexp.data.batches import Batches, batches_of
from bnexp.data.load import load_data
from bnexp.runs import distributed
from bnexp.runs.directory import CHECKPOINT, checkpoint_path, clear_progress, write_summary
from bnexp.runs.record import write_failure
from bnexp.training.checkpoint import newest_checkpoint, save_checkpoint, save_progress
from bnexp.training.device import COMPILE_FROM, pick_device, prepare_torch
from bnexp.training.engine import Stack
from bnexp.training.evaluation import Evaluation, ShouldStop, Stopped
from bnexp.training.member import Member
from bnexp.training.recalibrate import recalibrated
from bnexp.training.signals import Interrupted, StopRequest
from bnexp.training.timing import Stopwatch, Timer


def train_together(members: list[Member]) -> None:
    """Train the runs of a stack, then close their files and unlock their directories.

    Each member's `outcome` is then its summary or an error. Members that are resumed from different steps train as
    separate stacks, in turn. Raises what `train_members` raises; members not trained by then have no outcome.
    """
    try:
        for step in sorted({member.start.step for member in members}):
            train_members([member for member in members if member.start.step == step])
    finally:
        for member in members:
            member.release()


def train_members(members: list[Member]) -> None:
    """Train members, all of which start from the same step, as one stack. An error on the way becomes the outcome of
    every member that has none yet. Raises Interrupted after a signal and where another process of torchrun is lost, and
    errors of finding the device and the data.
    """
    config = members[0].config
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    try:
        compiled = members[0].launch.compilation.compiled
        stack = Stack([member.config for member in members], data, device, compiled)
        restore_members(members, stack)
        train(members, stack)
    except distributed.PeerLostError as error:
        for member in members:
            interrupt(member, stack)
        raise Interrupted(signal.SIGTERM) from error
    except Exception as error:
        for member in members:
            if member.outcome is None:
                fail(member, error)


def train(members: list[Member], stack: Stack) -> None:
    """Train a stack to its last step, evaluate its members on the way, and close their runs.

    All members start from the same step. A member that diverged is deactivated at the next evaluation; one whose files
    can't be read or written fails, and is deactivated at once. After a signal, runs that aren't complete are closed as
    interrupted, and it raises Interrupted. Raises CompileError if the step can't be compiled.
    """
    config, data, active = stack.config, stack.data, members
    device = data.train.labels.device
    batches, watch = batches_of(stack.configs, len(data.train), device), Stopwatch(device)
    saving = Timer(config.checkpoint.every_seconds)
    start = distributed.broadcast(stack.members[0].flat(), members[0].start.step)
    stack.warm_up(batches.batch(start))  # compiling takes seconds to minutes, in which there is nothing to save
    with StopRequest() as stop:
        watch.start()
        for step in range(start, config.steps + 1):
            if config.eval.due(step, config.steps):
                watch.stop(len(active))
                active = [member for member in active if stays_active(member, stack, step, watch.total, stop.requested)]
                if step == config.steps or not active or stop.requested():
                    break
                repack(active, stack, batches, step)
                watch.start()
            if stop.requested():
                watch.stop(len(active))
                break
            if saving.due():
                watch.stop(len(active))
                active = [member for member in active if save(member, stack, watch.total)]
                if not active:
                    break
                watch.start()
            stack.update(step, batches.batch(step))
        for member in active:
            status = "finished" if member.evaluated(config.steps) else "interrupted"
            close(member, stack, step, watch.total, status, stop.requested)
    if stop.signum is not None:
        raise Interrupted(stop.signum)


def save(member: Member, stack: Stack, seconds: float) -> bool:
    """Save a checkpoint to resume the run from; return whether that succeeded. An OSError fails the run."""
    with failing(member):
        member.recorder.sync()
        state = stack.members[member.row]
        save_progress(member.launch.directory, state, member.config, member.start.seconds + seconds)
    return member.outcome is None


def restore_members(members: list[Member], stack: Stack) -> None:
    """Assign each member its row of the stack, and restore the checkpoint that it is resumed from."""
    assign_rows(members)
    for member in members:
        if member.start.tensors is not None:
            stack.restore(member.row, member.start.tensors)


def assign_rows(members: list[Member]) -> None:
    """Set each member's `row` to its position in the list."""
    for row, member in enumerate(members):
        member.row = row


def repack(active: list[Member], stack: Stack, batches: Batches, step: int) -> None:
    """Remove deactivated members from the stack, if that pays. A mapped stack (compiled as one network) is compiled
    anew for its smaller size: so at least half of its members must be deactivated, and at least 5,000 steps remain.
    """
    size = len(stack.members)
    pays = len(active) <= size / 2 and stack.config.steps - step >= COMPILE_FROM if stack.mapped else len(active) < size
    if pays:
        rows = [member.row for member in active]
        stack.keep(rows)
        batches.keep(rows)
        assign_rows(active)
        stack.warm_up(batches.batch(step))


def stays_active(member: Member, stack: Stack, step: int, seconds: float, should_stop: ShouldStop) -> bool:
    """Evaluate a member unless that was done; if it diverged, close its run. Return whether it has no outcome yet."""
    with failing(member), suppress(Stopped):
        if not member.evaluated(step):
            evaluate(member, stack, step, seconds, should_stop)
        member.diverged_at = stack.diverged_at(member.row)
        if member.diverged_at is not None:
            close(member, stack, step, seconds, "diverged", should_stop)
    return member.outcome is None


def evaluate(member: Member, stack: Stack, step: int, seconds: float, should_stop: ShouldStop) -> None:
    """Log validation results and mean training loss; with eval.keep, save a checkpoint. Raises Stopped if `should_stop`
    returns True before all images are evaluated, and OSError if a file can't be written.
    """
    updates = step - member.steps[-1] if member.steps else 0
    result = stack.evaluate(member.row, stack.data.validation, should_stop)
    loss = stack.take_loss(member.row, updates) if updates else None
    member.log(step, member.start.seconds + seconds, loss, result)
    if member.config.eval.keep:
        save_checkpoint(checkpoint_path(member.launch.directory, step), stack.members[member.row], member.config)


def close(member: Member, stack: Stack, step: int, seconds: float, status: str, should_stop: ShouldStop) -> None:
    """Test a member unless it was interrupted, and write its checkpoint and its summary, which becomes its outcome.

    With checkpoint.keep=none, only an interrupted run gets a checkpoint, to resume from. An OSError becomes the outcome
    instead. status: "finished", "diverged" or "interrupted". seconds: of training since the run was started or resumed.
    """
    directory, state = member.launch.directory, stack.members[member.row]
    with failing(member):
        status, tests = evaluate_tests(member, stack, status, should_stop)
        for split, result in tests.items():
            member.recorder.evaluation(step, split, result)
        seconds += member.start.seconds
        summary = member.summary(status, step, seconds, tests)
        member.recorder.sync()
        check_kept_checkpoints(member)
        if status == "interrupted":
            save_progress(directory, state, member.config, seconds)
        if member.config.checkpoint.keep == "last":
            save_checkpoint(directory / CHECKPOINT, state, member.config)
        write_summary(directory, summary)
        member.outcome = summary
        if status != "interrupted":
            clear_progress(directory)


def check_kept_checkpoints(member: Member) -> None:
    """Raise OSError if a checkpoint of one of the member's evaluations (eval.keep) is missing."""
    for step in member.steps if member.config.eval.keep else []:
        checkpoint_path(member.launch.directory, step).stat()


def evaluate_tests(
    member: Member, stack: Stack, status: str, should_stop: ShouldStop
) -> tuple[str, dict[str, Evaluation]]:
    """Test a member; return its status and its results by split ("test", for eval.recalibrate "test_recalibrated").

    A diverged network is tested too, but not recalibrated, nor is one without running averages. If it is interrupted,
    or `should_stop` returns True meanwhile, the status is "interrupted" and there are no results.
    """
    if status == "interrupted":
        return status, {}
    parameters = stack.members[member.row].parameters
    try:
        tests = {"test": stack.evaluate(member.row, stack.data.test, should_stop)}
        if member.config.eval.recalibrate and status == "finished":
            buffers = recalibrated(stack, member.row, should_stop)
            if buffers is not None:
                result = stack.evaluators[member.row].evaluate(parameters, buffers, stack.data.test, should_stop)
                tests["test_recalibrated"] = result
    except Stopped:
        return "interrupted", {}
    return status, tests


@contextmanager
def failing(member: Member) -> Iterator[None]:
    """Make an OSError of the `with` block, which it ends, the outcome of a member (`fail`)."""
    try:
        yield
    except OSError as error:
        fail(member, error)


def interrupt(member: Member, stack: Stack) -> None:
    """Close a run whose current step is half done: it is resumed from its last saved state.

    The summary has the step of that state, or 0 where there is none.
    """
    member.recorder.sync()
    shapes = {name: tensor.shape for name, tensor in stack.members[member.row].flat().items()}
    saved = newest_checkpoint(member.launch.directory, member.config, shapes)
    write_summary(member.launch.directory, {"status": "interrupted", "steps": saved.step})


def fail(member: Member, error: Exception) -> None:
    """Make an error the outcome of a member, and record it in the run's directory if that can be written."""
    member.outcome = error
    with suppress(OSError):  # the error may be that of the directory itself
        write_failure(member.launch.directory, f"{type(error).__name__}: {error}")
