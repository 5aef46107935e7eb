"""The tasks and networks of `experiments.ott` (Ott sec. 3, app. A)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.images import data
from ode_nets import (
    MLP,
    convolution,
    kaiming_layer,
    uniform_layer,
)
from ode_nets.fields.initializers import LayerInit
from ode_nets.problems import landscape, spheres

PyTree = Any
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Training steps of a whole grid."""
LAYERS: dict[str, LayerInit] = {"kaiming": kaiming_layer, "uniform": uniform_layer}
"""Initial values: those of the paper's code, and PyTorch's own, which the text would suggest."""


@dataclasses.dataclass(frozen=True)
class ConvField:
    """Three convolutions, 1 - 3 - 1 wide, with ReLU between them (Ott A.1 to A.3), on `[batch, height, width, inputs]`.

    Signals are images of width 1, whose middle convolution is 3x1. `tiled`: whether a solve of images may compute the
    same in tiles, see `experiments.ott.tiles`.
    """

    inputs: int
    channels: int
    flat: bool = False
    layer: LayerInit = kaiming_layer
    tiled: bool = True

    def init(self, key: jax.Array) -> PyTree:
        """Parameters, a layer each."""
        middle = (3, 1 if self.flat else 3)
        wide = self.channels
        shapes = ((1, 1, self.inputs, wide), (*middle, wide, wide), (1, 1, wide, self.inputs))
        return [self.layer(k, shape) for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)]

    def __call__(self, t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
        first, middle, last = theta
        y = jax.nn.relu(x @ first["kernel"][0, 0] + first["bias"])
        y = jax.nn.relu(convolution(y, middle["kernel"]) + middle["bias"])
        return y @ last["kernel"][0, 0] + last["bias"]


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set, the network that Ott trains on it, and how.

    Attributes:
      shape: of one state; field: the right-hand side; n_classes: outputs of the linear classifier.
      optimizer, learning_rate, batch_size, iterations: app. A's.
      test_chunk: test samples that are solved side by side.
      euler, rk4: training steps of the grid.
      critical: the paper's field evaluations that bracket the critical step (table 1); accuracy: the best of its
        models that are ODEs, in percent; adapted: field evaluations and accuracy of its algorithm.
    """

    name: str
    shape: tuple[int, ...]
    field: MLP | ConvField
    n_classes: int
    optimizer: Literal["adam", "sgd"]
    learning_rate: float
    batch_size: int
    iterations: int
    test_chunk: int = 1000
    euler: tuple[int, ...] = POWERS
    rk4: tuple[int, ...] = POWERS
    critical: tuple[int, int] | None = None
    accuracy: float | None = None
    adapted: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "iterations", "test_chunk"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")

    def init(self, key: jax.Array) -> PyTree:
        """Weights of field and classifier."""
        keys = jax.random.split(key)
        size = int(np.prod(self.shape))
        return {"field": self.field.init(keys[0]), "head": self.field.layer(keys[1], (size, self.n_classes))}

    def load(self, seed: int, n_train: int | None, n_test: int | None, data_dir: str | None) -> tuple[Any, Any]:
        """`(x, y)` to train on and to test on; synthetic sets have 2000 and 1000 points."""
        if self.name in ("mnist", "cifar10"):
            found = data.load(self.name, data_dir=data_dir, validation_fraction=0.0, seed=seed, limit=n_train)
            test = slice(None, n_test)
            scaled = lambda images: pooled(jnp.asarray(images, jnp.float32) / 255, self.shape[0])
            return (scaled(found.x_train), found.y_train), (scaled(found.x_test[test]), found.y_test[test])
        key, n = jax.random.key(seed), (n_train or 2000) + (n_test or 1000)
        if self.name == "landscape":
            x, y = landscape.generate(key, n)
        else:
            x, y = spheres.generate(key, n, self.shape[0])
        x, cut = x.reshape(n, *self.shape), n_train or 2000
        return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def pooled(images: jax.Array, size: int) -> jax.Array:
    """Square images `[n, height, height, channels]` averaged to a height that divides theirs."""
    n, height, _, channels = images.shape
    block = height // size
    return images.reshape(n, size, block, size, block, channels).mean((2, 4))


def sphere_task(dimension: int, **known: Any) -> Task:
    """Concentric spheres of a dimension; beyond two, A.3's network and hyper-parameters on longer signals."""
    field = ConvField(1, 32, flat=True)
    return Task(f"spheres{dimension}", (dimension, 1, 1), field, 2, "adam", 1e-4, 128, 10_000, **known)


TASKS = {
    task.name: task
    for task in (
        sphere_task(2, critical=(65, 129), accuracy=99.2, adapted=(100.5, 98.9)),
        sphere_task(3),
        sphere_task(10),
        sphere_task(900, test_chunk=200),
        Task(
            "landscape",
            (2,),
            MLP(2, (48, 48), jax.nn.relu, layer=kaiming_layer),
            n_classes=3,
            optimizer="adam",
            learning_rate=5e-4,
            batch_size=128,
            iterations=30_000,
            critical=(33, 65),
            accuracy=79.0,
            adapted=(43.3, 76.5),
        ),
        Task(
            "mnist",
            (28, 28, 1),
            ConvField(1, 96),
            n_classes=10,
            optimizer="sgd",
            learning_rate=1e-2,
            batch_size=256,
            iterations=7_020,
            test_chunk=200,
            euler=POWERS[:7],
            rk4=POWERS[:6],
            critical=(9, 16),
            accuracy=96.5,
            adapted=(9.8, 95.6),
        ),
        Task(
            "cifar10",
            (32, 32, 3),
            ConvField(3, 128),
            n_classes=10,
            optimizer="adam",
            learning_rate=1e-3,
            batch_size=256,
            iterations=7_800,
            test_chunk=200,
            euler=POWERS[:7],
            rk4=POWERS[:5],
            critical=(17, 33),
            accuracy=54.7,
            adapted=(21.9, 55.0),
        ),
    )
}
