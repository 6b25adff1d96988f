"""Random numbers by purpose: every use has its own generator, derived from the run's seed and what it is for.

Nothing is drawn from global state, so no draw depends on what was drawn before it: two arms of a comparison share
the initial values of every parameter they both have and the order of every batch, and there is nothing to save.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Make the generator of a purpose, say `generator(seed, "order", epoch)`, on the CPU: equal for equal arguments."""
    name = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
