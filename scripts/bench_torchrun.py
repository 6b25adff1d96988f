"""What a second process of torchrun gains, and what the average of gradients over the processes takes of a step.

    python scripts/bench_torchrun.py [ROUNDS]

ResNet-20 on CIFAR-10's photographs, 256 images a batch, uncompiled, in interleaved rounds: one process on one core, one
on all, and two on one core each.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bnexp.runs import distributed

ROOT = Path(__file__).parents[1]
TRAIN = ("train", "dataset=image_folder", f"dataset.path={ROOT}/data/cifar10-jpeg", "arch=resnet", "arch.depth=20")
TRAIN += ("init=kaiming", "norm=batch", "batch_size=256", "steps=20", "eval.first_every=20", "compile=false")
TRAIN += ("device=cpu", "optim.lr=0.1", f"dataset.root={ROOT}/data")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ALONE = (sys.executable, "-m", "bnexp", *TRAIN)
CONTENDERS = {
    "1 process, 1 core": (*ALONE, "threads=1"),
    "1 process, 2 cores": (*ALONE, "threads=2"),
    "2 processes, 1 core each": (*TORCHRUN, "-m", "bnexp", *TRAIN, "threads=1"),
    "2 processes, norm=sync_batch": (*TORCHRUN, "-m", "bnexp", *TRAIN, "threads=1", "norm=sync_batch"),
}


def steps_per_second(command: tuple[str, ...]) -> float:
    """Train once, and return the updates a second, evaluation excluded."""
    with TemporaryDirectory() as folder:
        subprocess.run([*command, f"hydra.run.dir={folder}/r"], check=True, capture_output=True)
        return float(json.loads(Path(folder, "r", "summary.json").read_text(encoding="utf-8"))["steps_per_second"])


def time_averages() -> None:
    """As one of the processes of torchrun: print the mean milliseconds that a step's averages take."""
    import torch  # noqa: PLC0415

    from bnexp.cli.compose import configurations  # noqa: PLC0415
    from bnexp.data.load import load_data  # noqa: PLC0415
    from bnexp.models.registry import make_model  # noqa: PLC0415

    torch.set_num_threads(1)
    distributed.init_process_group()
    with configurations() as composer:
        config = composer.compose_run([*TRAIN[1:]])
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    distributed.average(gradients)
    distributed.barrier()
    began = time.perf_counter()
    for _ in range(50):
        distributed.average(gradients)
    if distributed.rank() == 0:
        print(1000 * (time.perf_counter() - began) / 50)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    speeds = [{name: steps_per_second(command) for name, command in CONTENDERS.items()} for _ in range(rounds)]
    for name in CONTENDERS:
        each = [speed[name] for speed in speeds]
        ratios = [speed[name] / speed["1 process, 1 core"] for speed in speeds]
        ends = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name}: {median(each):.2f} steps/s, {median(ratios):.2f} {ends} times one process on one core")
    step = 1000 / median(speed["2 processes, 1 core each"] for speed in speeds)
    shown = subprocess.run([*TORCHRUN, __file__, "average"], check=True, capture_output=True, encoding="utf-8").stdout
    print(f"the average of the gradients takes {float(shown):.1f} ms of a step's {step:.0f}: {float(shown) / step:.1%}")


if __name__ == "__main__":
    time_averages() if sys.argv[1:] == ["average"] else main()
