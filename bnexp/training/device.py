"""Where and how a run computes: its device, its threads, and whether its step is compiled."""

import ctypes
import os
import sys

import torch

from bnexp.models.registry import stacks
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.directory import Compilation
from bnexp.training.compiler import compiler_problem

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt in glibc's malloc.h
CORES = "BNEXP_CORES"  # environment variable that the executors of clusters set in their jobs
COMPILE_FROM = 5_000  # steps; compiling costs 1 to 40 s, a step then takes 0.4 to 0.9 of its time
FASTER = {"lenet", "resnet"}  # networks for images whose compiled step is; in wider ones convolutions take the time


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
    """Return whether a run's step should be compiled if a compiler works: not by several processes, with auto if it
    pays.
    """
    if distributed.processes() > 1:
        return False  # gradients are averaged between the backward pass and the update
    if config.compile != "auto":
        return bool(config.compile)
    gains = device.type == "cuda" or (device.type == "cpu" and compiled_is_faster(config))
    return gains and config.steps >= COMPILE_FROM


def compiled_is_faster(config: RunConfig) -> bool:
    """Return whether this architecture's compiled step is faster on a CPU than its uncompiled one, by measurement.

    The norm plays no role, so that the speeds of a comparison's arms are of the same kind.
    """
    return stacks(config) or config.arch.name in FASTER


def thread_count(config: RunConfig, device: torch.device) -> int:
    """Return the number of threads of a run: one on the CPU for an MLP, whose runs can train as one network, else this
    process's share of cores.

    `config.threads` overrides that if it is a number. With one thread a run writes the same bytes alone and in a stack.
    """
    if isinstance(config.threads, int):
        return config.threads
    return 1 if device.type == "cpu" and stacks(config) else max(1, usable_cores() // distributed.processes_here())


def prepare_torch(config: RunConfig, device: torch.device) -> None:
    """Set the number of threads (`thread_count`), flush denormal numbers to zero, and keep freed memory.

    Call this before anything of a run is computed. On CUDA, also choose deterministic algorithms (cuBLAS, cuDNN), and
    fp32 without TF32 for convolutions.
    """
    torch.set_num_threads(thread_count(config, device))
    torch.set_flush_denormal(True)  # saturated sigmoids have denormal gradients, which are slow
    keep_freed_memory()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Make the C library's malloc keep freed memory for the next tensors, where it can (glibc).

    It would return the memory of large tensors to the system and get it anew, filled with zeros, in each step: for
    networks on images that takes up to a third of the time on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # allocate no block by mmap, which a free unmaps
        mallopt(M_TRIM_THRESHOLD, -1)  # never shrink the heap


def usable_cores() -> int:
    """Return the number of cores that this process may run on; on a cluster, what its job was given (CORES)."""
    if allotted := os.environ.get(CORES, ""):
        return int(allotted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
