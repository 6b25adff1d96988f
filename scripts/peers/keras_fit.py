"""Keras 3 on TensorFlow: `fit` on arrays that are scaled beforehand: keras_fit.py IMAGES."""

import os
import sys
from itertools import pairwise

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
from serve import BATCH, EPSILON, MOMENTUM, RATE, STD, WIDTHS, Array, Task, load_images, serve


def make_network(norm: str) -> keras.Model:
    start = keras.initializers.RandomNormal(stddev=STD)
    model = keras.Sequential([keras.Input((WIDTHS[0],))])
    for _, outputs in pairwise(WIDTHS[:-1]):
        model.add(keras.layers.Dense(outputs, use_bias=norm == "none", kernel_initializer=start))
        if norm == "batch":
            model.add(keras.layers.BatchNormalization(momentum=1 - MOMENTUM, epsilon=EPSILON))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(WIDTHS[-1], kernel_initializer=start))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    return model


def make_task(norm: str, images: list[Array]) -> Task:
    inputs, labels, test_inputs, test_labels = images
    model = make_network(norm)

    def train(updates: int) -> None:
        count = updates * BATCH
        model.fit(inputs[:count], labels[:count], batch_size=BATCH, shuffle=True, verbose=0)

    def accuracy() -> float:
        logits = model.predict(test_inputs, batch_size=500, verbose=0)
        return float((logits.argmax(1) == test_labels).mean())

    return Task(train, accuracy, chunk=len(labels) // BATCH)  # an epoch


if __name__ == "__main__":
    pixels, labels, test_pixels, test_labels = load_images(sys.argv[1])
    images = [pixels.astype("float32") / 255, labels, test_pixels.astype("float32") / 255, test_labels]
    serve({norm: make_task(norm, images) for norm in ("none", "batch")})
