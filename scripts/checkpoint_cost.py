"""What checkpoints cost: the share of a stack's time that goes into them at the default interval.

    python scripts/checkpoint_cost.py [OVERRIDE …]

Trains one stack of the MNIST sweep of 64 (five seeds) with a checkpoint every second instead of every minute, so that
there are enough of them to measure.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bnexp.cli.compose import configurations
from bnexp.runs.config import CheckpointConfig
from bnexp.runs.directory import Launch
from bnexp.training import loop as train

SIZE, STEPS = 5, 10_000


def main() -> None:
    spent = list[float]()
    save = train.saved

    def timed(*arguments: Any) -> bool:
        began = time.perf_counter()
        went_well = save(*arguments)
        spent.append(time.perf_counter() - began)
        return went_well

    train.saved = timed
    often = ["checkpoint.every_seconds=1", f"steps={STEPS}"]
    with configurations() as composer:
        configs = [composer.compose_run([*often, *sys.argv[1:], f"seed={seed}"]) for seed in range(SIZE)]
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        launches = [Launch(Path(folder, str(number)), [], number) for number in range(SIZE)]
        members = [
            train.create_or_reopen_run(config, launch, SIZE) for config, launch in zip(configs, launches, strict=True)
        ]
        train.train_together(members)
    each, every = sum(spent) / len(spent), CheckpointConfig().every_seconds
    print(f"{len(spent)} checkpoints of {1000 * each:.1f} ms")
    print(f"those of a stack of {SIZE} every {every:.0f} s: {SIZE * each / every:.3%} of its time")


if __name__ == "__main__":
    main()
