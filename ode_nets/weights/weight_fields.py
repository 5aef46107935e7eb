"""Right-hand sides of weights that evolve by an ODE of their own, for any tree of weights (ANODEV2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

PyTree = Any
WeightField = Callable[[PyTree, PyTree], PyTree]
"""`q(w, p) -> dw/dt`, like `w`. It may have `flow(w, p, h)`, its own step, and `init(key, w) -> p`."""


@dataclasses.dataclass(frozen=True)
class Still:
    """q = 0: weights that stay as they are, which makes an evolved network the Neural ODE (ANODEV2 sec. 1).

    Example:
        >>> Still().flow({"w": 3.0}, {}, 0.1)
        {'w': 3.0}
    """

    def init(self, key: jax.Array, w: PyTree) -> PyTree:
        """No parameters."""
        return {}

    def __call__(self, w: PyTree, p: PyTree) -> PyTree:
        """Zero."""
        return jax.tree.map(jnp.zeros_like, w)

    def flow(self, w: PyTree, p: PyTree, h: Any) -> PyTree:
        """`w`, bit by bit."""
        return w


@dataclasses.dataclass(frozen=True)
class Flattened:
    """A network of vectors as q: it sees all weights as one vector.

        q(w; p) = unravel(unit(ravel(w); p))

    One Euler step of it generates the weights of the parent network, as a HyperNetwork does (ANODEV2 sec. 1).

    Args:
      unit: `init(key) -> p` and `apply(p, x) -> (dx, ...)` on vectors `[n]` of all n weights, e.g.
        `MLP(size=n)`.

    Example:
        >>> q = Flattened(MLP(size=3))
        >>> w = {"a": jnp.ones(2), "b": jnp.ones(1)}
        >>> jax.tree.map(jnp.shape, q(w, q.init(jax.random.key(0), w)))
        {'a': (2,), 'b': (1,)}
    """

    unit: Any

    def init(self, key: jax.Array, w: PyTree) -> PyTree:
        """Parameters of the network."""
        return self.unit.init(key)

    def __call__(self, w: PyTree, p: PyTree) -> PyTree:
        """q(w; p)."""
        flat, unravel = ravel_pytree(w)
        return unravel(self.unit.apply(p, flat)[0])
