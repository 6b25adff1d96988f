"""Where and how a run computes: its device, its threads, and whether its step is compiled."""

import os

import torch

from bnexp.models.registry import stacks
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.directory import Compilation
from bnexp.training.compiler import compiler_problem

COMPILE_FROM = 5_000  # steps; compiling costs 1 to 10 s, a step then takes half the time


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is CUDA if available, else the CPU. Raises ConfigError if it is absent."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available[name]:
        choices = ", ".join(device for device in available if available[device])
        raise ConfigError(f"device={name} is not available: choose from {choices}")
    return torch.device(name)


def decide_compilation(config: RunConfig) -> Compilation:
    """Decide whether a run's step is compiled, from its configuration and the machine.

    The stack plays no role, since the bytes of the results depend on the decision. Before a step is compiled on a CPU,
    the compiler is tested, which may take seconds (`compiler_problem`). Raises ConfigError for compile=true without a
    working compiler, and for a device that isn't there.
    """
    device = pick_device(config.device)
    if not wants_compiled(config, device):
        return Compilation()
    problem = compiler_problem(device.type)
    if problem and config.compile is True:
        raise ConfigError(f"compile=true is not allowed: {problem}")
    return Compilation(problem is None, problem)


def wants_compiled(config: RunConfig, device: torch.device) -> bool:
    """Return whether a run's step should be compiled if a compiler works: not under torchrun, with auto if it pays."""
    if distributed.processes() > 1:
        return False  # gradients are averaged between the backward pass and the update
    if config.compile != "auto":
        return bool(config.compile)
    gains = device.type == "cuda" or (device.type == "cpu" and stacks(config))
    return gains and config.steps >= COMPILE_FROM


def thread_count(config: RunConfig, device: torch.device) -> int:
    """Return the number of threads of a run: one on the CPU for an MLP, whose runs can train as one network, else this
    process's share of cores.

    `config.threads` overrides that if it is a number. With one thread a run writes the same bytes alone and in a stack.
    """
    if isinstance(config.threads, int):
        return config.threads
    return 1 if device.type == "cpu" and stacks(config) else max(1, usable_cores() // distributed.processes_here())


def prepare_torch(config: RunConfig, device: torch.device) -> None:
    """Set the number of threads, and flush denormal numbers to zero. Call this before anything of a run is computed.

    On CUDA, also choose deterministic algorithms (cuBLAS, cuDNN), and fp32 without TF32 for convolutions.
    """
    torch.set_num_threads(thread_count(config, device))
    torch.set_flush_denormal(True)  # saturated sigmoids have denormal gradients, which are slow
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
