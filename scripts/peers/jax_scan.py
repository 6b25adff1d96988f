"""JAX: one compiled lax.scan over the steps of one model, or of several with vmap: jax_scan.py IMAGES MEMBERS SEED."""

import sys
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from serve import BATCH, EPSILON, MOMENTUM, RATE, STD, WIDTHS, Task, load_images, serve

Tree = dict[str, Any]
UPDATES = 500  # of one model; several share them, so that a call takes as long


class Images(NamedTuple):
    pixels: Array
    labels: Array


def start(key: Array, norm: str) -> tuple[list[Tree], list[Tree]]:
    """Parameters, and running averages of the norms, a layer each."""
    layers, averages = [], []
    for inputs, outputs in pairwise(WIDTHS):
        key, own = jax.random.split(key)
        layer = {"weight": STD * jax.random.normal(own, (inputs, outputs)), "bias": jnp.zeros(outputs)}
        if norm == "batch" and outputs != WIDTHS[-1]:
            layer["scale"] = jnp.ones(outputs)
            averages.append({"mean": jnp.zeros(outputs), "var": jnp.ones(outputs)})
        layers.append(layer)
    return layers, averages


def normalize(x: Array, layer: Tree, mean: Array, var: Array) -> Array:
    """Batch normalization; its β takes the place of the bias."""
    return (x - mean) * lax.rsqrt(var + EPSILON) * layer["scale"] + layer["bias"]


def forward(layers: list[Tree], averages: list[Tree], x: Array, training: bool) -> tuple[Array, list[Tree]]:
    kept = []
    for number, layer in enumerate(layers[:-1]):
        x = x @ layer["weight"]
        if not averages:
            x = x + layer["bias"]
        else:
            average = averages[number]
            mean, var = (x.mean(0), x.var(0)) if training else (average["mean"], average["var"])
            x = normalize(x, layer, mean, var)
            new = {"mean": mean, "var": var * (BATCH / (BATCH - 1))}
            kept.append({name: average[name] + MOMENTUM * (new[name] - average[name]) for name in new})
        x = jax.nn.relu(x)
    return x @ layers[-1]["weight"] + layers[-1]["bias"], kept


def loss_of(layers: list[Tree], averages: list[Tree], images: Images) -> tuple[Array, list[Tree]]:
    logits, kept = forward(layers, averages, images.pixels.astype(jnp.float32) / 255, True)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), images.labels[:, None], 1)
    return -chosen.mean(), kept


def make_task(norm: str, images: Images, test: Images, members: int, seed: int) -> Task:
    updates = max(UPDATES // members, 20)
    random = np.random.default_rng(seed)
    orders = [np.empty(0, np.int32) for _ in range(members)]

    def draw() -> np.ndarray:
        """Each member's next batches, (members, updates, B), from a new shuffle every epoch."""
        for row in range(members):
            while len(orders[row]) < updates * BATCH:
                orders[row] = np.append(orders[row], random.permutation(len(images.labels)).astype(np.int32))
        taken = np.stack([order[: updates * BATCH] for order in orders])
        orders[:] = [order[updates * BATCH :] for order in orders]
        return taken.reshape(members, updates, BATCH)

    def step(state: Any, index: Array, images: Images) -> tuple[Any, None]:
        batch = Images(images.pixels[index], images.labels[index])
        gradients, averages = jax.grad(loss_of, has_aux=True)(*state, batch)
        return (jax.tree.map(lambda p, g: p - RATE * g, state[0], gradients), averages), None

    def scan(state: Any, indices: Array, images: Images) -> Any:
        return lax.scan(lambda s, index: step(s, index, images), state, indices)[0]

    def accuracy_of(state: Any) -> Array:
        logits, _ = forward(*state, test.pixels.astype(jnp.float32) / 255, False)
        return (logits.argmax(1) == test.labels).mean()

    keys = jax.random.split(jax.random.key(seed), members)
    if members == 1:
        state, run, accuracy = start(keys[0], norm), scan, accuracy_of
    else:
        state = jax.vmap(lambda key: start(key, norm))(keys)
        run, accuracy = jax.vmap(scan, in_axes=(0, 0, None)), jax.vmap(accuracy_of)
    compiled = jax.jit(run, donate_argnums=0)

    def train(_: int) -> None:
        nonlocal state
        indices = draw()
        state = jax.block_until_ready(compiled(state, indices[0] if members == 1 else indices, images))

    return Task(train, lambda: float(accuracy(state).mean()), chunk=updates, worth=members)


if __name__ == "__main__":
    arrays = [jnp.asarray(array) for array in load_images(sys.argv[1])]
    arrays = [a.astype(jnp.int32) if a.ndim == 1 else a for a in arrays]
    images, test = Images(*arrays[:2]), Images(*arrays[2:])
    serve({norm: make_task(norm, images, test, int(sys.argv[2]), int(sys.argv[3])) for norm in ("none", "batch")})
