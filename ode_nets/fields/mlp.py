"""Multilayer perceptrons as right-hand sides, as pure init/apply pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, checked

PyTree = Any


@dataclasses.dataclass(frozen=True)
@checked
class MLP:
    """A perceptron from a vector to a vector of the same length.

        f(x) = W_L a(... a(W_1 x + b_1) ...) + b_L           (ContinuousNet sec. 3; Ott app. A)
        f([x, t]) with `time_aware`                          (lecture, parameterization 2)

    The lecture's three parameterizations are choices of the weight function and of one flag: stationary is a
    theta that does not depend on time, time-aware adds `time_aware=True`, time-varying is a
    `BasisExpansion` over this field's parameters.

    Args:
      size: length of the state.
      hidden: widths of the hidden layers.
      activation: `jax.nn` or `jax.numpy` function, applied after each hidden layer.
      time_aware: append t to the input.

    Raises:
      ValueError: for sizes below 1.

    Example:
        >>> field = MLP(size=2, hidden=(16,), time_aware=True)
        >>> theta = field.init(jax.random.key(0))
        >>> field(0.5, jnp.ones((8, 2)), theta).shape
        (8, 2)
    """

    size: Count
    hidden: tuple[Count, ...] = (50,)
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh
    time_aware: bool = False

    def init(self, key: jax.Array) -> PyTree:
        """Parameters: weights and biases uniform within 1 / sqrt(inputs), float32; a tuple, a layer each."""
        sizes = (self.size + self.time_aware, *self.hidden, self.size)
        layers = []
        for key_i, n_in, n_out in zip(jax.random.split(key, len(sizes) - 1), sizes, sizes[1:], strict=False):
            weight_key, bias_key = jax.random.split(key_i)
            bound = n_in**-0.5
            layers.append(
                {
                    "kernel": jax.random.uniform(weight_key, (n_in, n_out), minval=-bound, maxval=bound),
                    "bias": jax.random.uniform(bias_key, (n_out,), minval=-bound, maxval=bound),
                }
            )
        return tuple(layers)

    def init_stats(self) -> PyTree:
        """No statistics: a perceptron has no batch norm."""
        return {}

    def apply(self, params: PyTree, x: jax.Array, t: Any = 0.0, stats: PyTree = None) -> tuple[jax.Array, PyTree]:
        """f(x) or f([x, t]): `[..., size]` to `[..., size]` in the dtype of `x`, and no statistics."""
        y = jnp.concatenate([x, jnp.full_like(x[..., :1], t)], axis=-1) if self.time_aware else x
        for i, layer in enumerate(params):
            y = y @ layer["kernel"] + layer["bias"]
            if i < len(params) - 1:
                y = self.activation(y)
        return y, {}

    def __call__(self, t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
        """The field itself, `field(t, x, theta) -> dx`."""
        return self.apply(theta, x, t)[0]
