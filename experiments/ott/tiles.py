"""The field of Ott's images in tiles, where a CPU multiplies a quarter as often as in `ConvField`.

    y = A^T [(G k G^T) * (B^T x B)] A                             (Lavin and Gray 2016, arXiv:1509.09308, sec. 4.1)

is one tile of four by four outputs of a 3x3 convolution, from the tile of six by six inputs around it: 36 products
instead of 144, of every input channel with every output channel, so that they are 36 matrix products over all tiles.
What makes it pay is that the wide channels never lie on the image: tiles are cut from the state, which has one or three
channels, and laid together again after the last layer, and what is in between is matrix products and ReLU over tiles.
The kernel is transformed once a solve and not once a field evaluation.

The sums have another order, which costs float32 about one digit: fields agree within some 1e-6 of their largest value.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ott.tasks import ConvField
from ode_nets import MLP

PyTree = Any
SIDE, READ = 4, 6
"""Pixels a side that a tile writes and reads."""

# Transposed B and A, and G, for the interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


def as_computed(given: MLP | ConvField, theta: PyTree) -> tuple[Any, PyTree]:
    """A field and its parameters, in tiles where those are faster: for 3x3 convolutions on a CPU.

    Args:
      given, theta: a task's field, and its parameters by layer.

    Returns:
      `(field, theta)` for a solve, which are differentiable in the parameters given.
    """
    tiled = isinstance(given, ConvField) and given.tiled and not given.flat and jax.default_backend() == "cpu"
    return (field, transformed(theta)) if tiled else (given, theta)


def transformed(theta: PyTree) -> PyTree:
    """Parameters of `ConvField` as `field` takes them.

    Returns:
      first `[inputs + 1, channels]`, its last row the bias; products `[36, channels, channels]`; the other layers' own.
    """
    first, middle, last = theta
    kernel = middle["kernel"]
    g = jnp.asarray(KERNEL, kernel.dtype)
    products = jnp.einsum("ai,ijcd,bj->abcd", g, kernel, g).reshape(READ**2, *kernel.shape[2:])
    return {
        "first": jnp.concatenate([first["kernel"][0, 0], first["bias"][None]]),
        "products": products,
        "bias": middle["bias"],
        "last": {"kernel": last["kernel"][0, 0], "bias": last["bias"]},
    }


def field(t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
    """`ConvField` of parameters `theta` made by `transformed`, on `[batch, height, width, inputs]`."""
    batch, height, width, inputs = x.shape
    grid = (-(-height // SIDE), -(-width // SIDE))
    channels = theta["products"].shape[-1]
    # Beyond the image the middle convolution reads zeros, not ReLU of the bias: there the channel of ones is zero too.
    read = cut(jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1), grid)
    y = jax.nn.relu(read.reshape(-1, inputs + 1) @ theta["first"])
    y = product(np.kron(INPUT, INPUT), y.reshape(READ**2, -1)).reshape(READ**2, -1, channels)
    y = product(np.kron(OUTPUT, OUTPUT), (y @ theta["products"]).reshape(READ**2, -1)).reshape(-1, channels)
    y = jax.nn.relu(y + theta["bias"]) @ theta["last"]["kernel"] + theta["last"]["bias"]
    laid = y.reshape(SIDE, SIDE, batch, *grid, inputs).transpose(2, 3, 0, 4, 1, 5)
    return laid.reshape(batch, grid[0] * SIDE, grid[1] * SIDE, inputs)[:, :height, :width]


def product(matrix: np.ndarray, y: jax.Array) -> jax.Array:
    """A constant matrix times `y`, in the dtype of `y`."""
    return jnp.asarray(matrix, y.dtype) @ y


def cut(x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Tiles with the pixels around them, zeros beyond the image: `[36, batch, *grid, channels]`."""
    _, height, width, _ = x.shape
    rows, columns = grid
    after = [SIDE * (n + 1) - 1 - size for n, size in zip(grid, (height, width), strict=True)]
    x = jnp.pad(x, ((0, 0), (1, after[0]), (1, after[1]), (0, 0)))
    x = x.reshape(len(x), rows + 1, SIDE, columns + 1, SIDE, -1)
    # The last two of six pixels are the first two of the next tile.
    places = [(start // SIDE, start % SIDE) for start in range(READ)]
    return jnp.stack([x[:, i : i + rows, a, j : j + columns, b] for i, a in places for j, b in places])
