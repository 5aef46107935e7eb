"""Multilayer perceptrons as right-hand sides, as pure init/apply pairs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.arguments import Count, checked
from ode_nets.fields.initializers import LayerInit, uniform_layer

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
      layer: initial values of each layer, `uniform_layer` or `kaiming_layer`. The former, with which a field is small
        at the start and a solve near the identity, is the default as no step is too long for it; networks with ReLU
        that must move their states far train sooner from the latter.

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
    layer: LayerInit = uniform_layer

    def init(self, key: jax.Array) -> PyTree:
        """Parameters: a tuple, `{"kernel": [inputs, outputs], "bias": [outputs]}` a layer, of the default dtype."""
        sizes = (self.size + self.time_aware, *self.hidden, self.size)
        keys = jax.random.split(key, len(sizes) - 1)
        return tuple(self.layer(k, shape) for k, shape in zip(keys, itertools.pairwise(sizes), strict=True))

    def init_stats(self) -> PyTree:
        """No statistics: a perceptron has no batch norm."""
        return {}

    def apply(self, params: PyTree, x: jax.Array, t: Any = 0.0, stats: PyTree = None) -> tuple[jax.Array, PyTree]:
        """f(x) or f([x, t]): `[..., size]` to `[..., size]` in the dtype of `x`, and no statistics.

        What that cannot hold, as of integers, is in the dtype of the arithmetic.
        """
        y = jnp.concatenate([x, jnp.full_like(x[..., :1], t)], axis=-1) if self.time_aware else x
        for i, layer in enumerate(params):
            y = y @ layer["kernel"] + layer["bias"]
            if i < len(params) - 1:
                y = self.activation(y)
        holds = all(jnp.issubdtype(a.dtype, jnp.floating) for a in (x, y))
        return y.astype(x.dtype) if holds else y, {}

    def __call__(self, t: Any, x: jax.Array, theta: PyTree) -> jax.Array:
        """The field itself, `field(t, x, theta) -> dx`."""
        return self.apply(theta, x, t)[0]
