"""Derivatives of implicit steps that failed: NaN at the end of it, and no exception from inside a compiled program.

The derivative of a root is the solution of a linear system, and a system that holds a NaN raises an error when the
program runs. So numbers that are not finite are led around the steps that solve one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ode_nets.stepping import all_finite

PyTree = Any


def guard(tree: PyTree, witness: PyTree) -> PyTree:
    """The same arrays; of their derivatives the finite ones pass, and all others pass through `witness` instead.

    Args:
      tree: what a solve of a system has given.
      witness: arrays that depend on all that `tree` does, by elementary operations.
    """
    leaves, structure = jax.tree.flatten(tree)
    others = [leaf for leaf in jax.tree.leaves(witness) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    @jax.custom_jvp
    def same(leaves: list[jax.Array], others: list[jax.Array]) -> list[jax.Array]:
        return leaves

    @same.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        float_ = jnp.result_type(float)
        total = sum((jnp.sum(_rest.bind(d)).astype(float_) for d in tangents[1]), jnp.zeros((), float_))
        mark = lambda d: _rest.bind(jnp.broadcast_to(total, d.shape).astype(d.dtype))
        inexact = lambda d: jnp.issubdtype(d.dtype, jnp.inexact)
        return primals[0], [_finite.bind(d) + mark(d) if inexact(d) else d for d in tangents[0]]

    return jax.tree.unflatten(structure, same(leaves, others))


def calm(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same `function(s, y)`, with derivative zero wherever that is not finite, or y is not.

    The system of a root that was not found then is one that can be solved.
    """

    def calmed(s: Any, y: PyTree) -> PyTree:
        good = all_finite(y)
        leaves, structure = jax.tree.flatten(function(s, y))
        return jax.tree.unflatten(structure, _calm(leaves, good))

    return calmed


@jax.custom_jvp
def _calm(leaves: list[jax.Array], good: jax.Array) -> list[jax.Array]:
    return leaves


@partial(_calm.defjvp)
def _calm_derivative(primals: Any, tangents: Any) -> Any:
    return primals[0], [jnp.where(primals[1], _finite.bind(d), 0) for d in tangents[0]]


def _linear(name: str, function: Callable[[jax.Array], jax.Array]) -> Primitive:
    """A function that is linear as long as numbers are finite, and its own transpose."""
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda x: x)
    primitive.def_impl(jax.jit(function))
    ad.deflinear2(primitive, lambda cotangent, x: [primitive.bind(cotangent)])
    batching.primitive_batchers[primitive] = lambda args, axes: (primitive.bind(*args), axes[0])
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return primitive


_finite = _linear("finite", lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)))
_rest = _linear("rest", lambda x: jnp.where(jnp.isfinite(x), jnp.zeros_like(x), jnp.full_like(x, jnp.nan)))
