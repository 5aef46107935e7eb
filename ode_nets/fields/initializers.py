"""Initial values of convolutions and dense layers."""

from __future__ import annotations

import math

import jax


def fan_out_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """He initialization over the fan-out: N(0, 2 / (k * k * out_channels)), float32.

    Args:
      key: PRNG key.
      shape: `[k, k, in_channels, out_channels]`, or `[inputs, outputs]` for a dense layer.
    """
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return math.sqrt(2.0 / fan_out) * jax.random.normal(key, shape)
