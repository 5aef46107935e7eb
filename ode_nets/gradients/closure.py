"""What the custom backward passes share: arrays that a field closes over, and cotangents of any dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate import Field, Problem, theta_at

PyTree = Any


class Closed(NamedTuple):
    """A field apart from the differentiated arrays that it closed over."""

    function: Callable[..., Any]
    consts: tuple[Any, ...]

    def field(self, consts: Any) -> Field:
        """The field again, closing over `consts`."""
        return lambda t, x, theta: self.function(t, x, theta, *consts)


def close_over(problem: Problem) -> Closed:
    """Separate a problem's field from the arrays that it closes over, so that they get their gradients too."""
    t0 = jnp.asarray(problem.t0)
    function, consts = jax.closure_convert(problem.field, t0, problem.x0, theta_at(problem.weights, t0))
    return Closed(function, tuple(consts))


def zero_cotangent(leaf: Any) -> Any:
    """The zero cotangent of an array: of its own dtype, or float0 for integers and booleans."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


def zeros(tree: PyTree) -> PyTree:
    """Accumulators for the cotangents of a tree; a scalar that stays zero for integers and booleans."""

    def leaf(a: Any) -> Any:
        return jnp.zeros_like(a) if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else jnp.zeros(())

    return jax.tree.map(leaf, tree)


def add(total: PyTree, cotangents: PyTree) -> PyTree:
    """Add cotangents to their accumulators."""
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, total, cotangents)


def as_cotangents(primals: PyTree, total: PyTree) -> PyTree:
    """Accumulated cotangents in the dtypes that JAX expects."""

    def leaf(a: Any, b: Any) -> Any:
        return b if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else zero_cotangent(a)

    return jax.tree.map(leaf, primals, total)
