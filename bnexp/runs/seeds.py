"""Random generators by purpose: each use has its own generator, derived from the run's seed and the purpose.

No random number comes from global state, so none depends on earlier ones: two arms of a comparison have the same
initial values of every parameter that both have, and the same order of batches, and no state needs to be saved.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Make the CPU generator of a purpose, as `generator(seed, "order", epoch)`. Equal arguments give equal numbers."""
    name = "/".join(str(part) for part in (seed, *purpose))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
