"""The PyTorch loop of most tutorials: torchvision's MNIST, ToTensor, DataLoader(shuffle=True) with no worker, as it is
when nothing else is said (num_workers=0; torch's own number of threads): dataloader.py IMAGES DATA_ROOT.
"""

import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from network import make_network, test_accuracy
from serve import BATCH, RATE, Task, load_images, serve
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


def make_task(norm: str, images: list[Tensor], root: str) -> Task:
    pixels, labels, test_pixels, test_labels = images
    dataset = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    dataset.data, dataset.targets = pixels.view(-1, 28, 28), labels  # without the validation images
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    model = make_network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def epochs() -> Iterator[None]:
        while True:
            for inputs, targets in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                yield

    steps = epochs()

    def train(updates: int) -> None:
        for _ in range(updates):
            next(steps)

    return Task(train, lambda: test_accuracy(model, test_pixels, test_labels))


if __name__ == "__main__":
    images = [torch.from_numpy(array) for array in load_images(sys.argv[1])]
    serve({norm: make_task(norm, images, sys.argv[2]) for norm in ("none", "batch")})
