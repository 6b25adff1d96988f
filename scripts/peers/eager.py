"""The PyTorch loop that most people would write once the images are in memory: eager.py IMAGES THREADS."""

import sys

import torch
import torch.nn.functional as F
from network import NORMS, make_network, test_accuracy
from serve import BATCH, RATE, Task, load_images, serve
from torch import Tensor


class Batches:
    """Indices of the next batch, from a new shuffle every epoch."""

    def __init__(self, examples: int) -> None:
        self.examples, self.order = examples, torch.empty(0, dtype=torch.int64)

    def next(self) -> Tensor:
        if len(self.order) < BATCH:
            self.order = torch.randperm(self.examples)
        index, self.order = self.order[:BATCH], self.order[BATCH:]
        return index


def make_task(norm: str, images: list[Tensor]) -> Task:
    pixels, labels, test_pixels, test_labels = images
    model = make_network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    batches = Batches(len(labels))

    def train(updates: int) -> None:
        for _ in range(updates):
            index = batches.next()
            optimizer.zero_grad()
            F.cross_entropy(model(pixels[index].float() / 255), labels[index]).backward()
            optimizer.step()

    return Task(train, lambda: test_accuracy(model, test_pixels, test_labels))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    images = [torch.from_numpy(array) for array in load_images(sys.argv[1])]
    serve({norm: make_task(norm, images) for norm in ("none", *NORMS)})
