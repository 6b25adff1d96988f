"""Random numbers by purpose: every use has its own generator, derived from the run's seed and what it is for.

Nothing is drawn from global state, so no draw depends on what was drawn before it: two arms of a comparison share
the starting weights of every parameter they both have and the order of every batch, and there is nothing to save.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Generator for one purpose, say `generator(seed, "order", epoch)`: the same for the same words, on the CPU."""
    words = "/".join(str(word) for word in (seed, *purpose))
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
