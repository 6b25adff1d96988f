"""What the machine gives to a large matrix product: gemm.py THREADS, in GFLOP/s."""

import sys

import torch
from serve import Task, serve

SIZE = 2048


def make_task() -> Task:
    left, right, product = (torch.randn(SIZE, SIZE) for _ in range(3))

    def train(updates: int) -> None:
        for _ in range(updates):
            torch.mm(left, right, out=product)

    return Task(train, lambda: float("nan"), chunk=1, worth=2 * SIZE**3 / 1e9)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    serve({"gemm": make_task()})
