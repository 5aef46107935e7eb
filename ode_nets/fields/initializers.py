"""Initial values of convolutions and dense layers."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ode_nets.arguments import Key, Widths, checked

Layer = dict[str, jax.Array]
LayerInit = Callable[[jax.Array, tuple[int, ...]], Layer]
"""From a key and the shape of a kernel, `[..., inputs, outputs]`, to the kernel and its bias."""


def fan_out_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """He initialization over the fan-out: N(0, 2 / (k * k * out_channels)), float32.

    Args:
      key: PRNG key.
      shape: `[k, k, in_channels, out_channels]`, or `[inputs, outputs]` for a dense layer.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return math.sqrt(2.0 / fan_out) * jax.random.normal(key, shape)


@checked
def uniform_layer(key: Key, shape: Widths) -> Layer:
    """A layer whose kernel and bias are uniform within 1 / sqrt(fan-in), as PyTorch's layers start.

    Args:
      key: PRNG key.
      shape: of the kernel, `[..., inputs, outputs]`; the fan-in is the product of all but the last.

    Returns:
      `{"kernel": shape, "bias": [outputs]}`, float32.

    Example:
        >>> layer = uniform_layer(jax.random.key(0), (4, 3))
        >>> float(jnp.abs(layer["kernel"]).max()) <= 0.5
        True
    """
    bound = math.prod(shape[:-1]) ** -0.5
    keys = jax.random.split(key)
    kernel, bias = (
        jax.random.uniform(k, size, minval=-bound, maxval=bound)
        for k, size in zip(keys, (shape, shape[-1:]), strict=True)
    )
    return {"kernel": kernel, "bias": bias}


@checked
def kaiming_layer(key: Key, shape: Widths) -> Layer:
    """A layer whose kernel is N(0, 2 / fan-in) and whose bias is zero, which keeps the scale of signals through ReLUs.

    A layer is sqrt(6) times as large as by `uniform_layer`, and a field of three layers 15 times: its networks
    move their states from the start. It is what Ott's published code starts from.

    Args:
      key: PRNG key.
      shape: of the kernel, `[..., inputs, outputs]`; the fan-in is the product of all but the last.

    Returns:
      `{"kernel": shape, "bias": [outputs]}`, float32.

    Example:
        >>> layer = kaiming_layer(jax.random.key(0), (3, 3, 2, 8))
        >>> layer["kernel"].shape, layer["bias"].shape
        ((3, 3, 2, 8), (8,))
    """
    kernel = math.sqrt(2 / math.prod(shape[:-1])) * jax.random.normal(key, shape)
    return {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
