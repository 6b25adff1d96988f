"""What checkpoints cost: the share of a sweep's time that goes into them.

    python scripts/checkpoint_cost.py [OVERRIDE …]     (by default the MNIST sweep of 64, 5,000 steps each)

The sweep trains in this process, one stack after the other, so that the clock sees every checkpoint.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bnexp import train
from bnexp.cli import run
from bnexp.engine import Stack
from bnexp.train import Display, Member

SWEEP = ["norm=none,batch", "seed=range(32)", "steps=5000"]
HERE = ["hydra.launcher.workers=1"]


def main() -> None:
    spent = list[float]()
    save = train.saved

    def timed(member: Member, stack: Stack, seconds: float, display: Display) -> bool:
        began = time.perf_counter()
        went_well = save(member, stack, seconds, display)
        spent.append(time.perf_counter() - began)
        return went_well

    train.saved = timed
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        began = time.perf_counter()
        status = run(["train", "-m", *(sys.argv[1:] or SWEEP), *HERE, f"hydra.sweep.dir={folder}/sweep"])
        whole = time.perf_counter() - began
    assert status == 0
    each = 1000 * sum(spent) / max(len(spent), 1)
    print(f"{len(spent)} checkpoints of {each:.1f} ms: {sum(spent):.2f} s of {whole:.0f} s, {sum(spent) / whole:.2%}")


if __name__ == "__main__":
    main()
