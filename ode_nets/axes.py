"""Named axes: what is one over all devices of a `jax.shard_map`, reduced by the name of a mesh axis.

Without a name every function here is the plain one. A reduction inside a loop is sound only where all devices take the
loop equally often, so whatever decides how often has to be one over the axis too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ode_nets.lanes import vary

PyTree = Any
AxisName = str | tuple[str, ...] | None
"""A mesh axis, or several, or none."""

LOCAL = {"axis_index", "pvary", "pcast"}
"""Operations that name an axis and exchange nothing."""


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The names, none for `None`.

    Raises:
      ValueError: for what is no name.
    """
    names = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"axis_name={axis_name!r}: expected the name of a mesh axis, a tuple of names, or None")
    return names


def mean_over(axis_name: AxisName, tree: PyTree) -> PyTree:
    """The mean over an axis; one reduction of every array, and one of its cotangent."""
    if not axis_names(axis_name):
        return tree
    # What differs between devices from here on is the use that each makes of it: their cotangents are summed at once.
    return vary(jax.lax.pmean(tree, axis_name), tree)


def largest_over(axis_name: AxisName, x: jax.Array) -> jax.Array:
    """The maximum over an axis, which NaN counts as: reductions of some devices lose it."""
    if not axis_names(axis_name):
        return x
    return vary(jax.lax.pmax(jnp.where(jnp.isnan(x), jnp.inf, x), axis_name), x)


def all_over(axis_name: AxisName, good: jax.Array) -> jax.Array:
    """Whether a boolean holds all along an axis."""
    if not axis_names(axis_name):
        return good
    return vary(jax.lax.pmin(good.astype(jnp.int32), axis_name), good) == 1


def exchanged_axes(jaxpr: Any) -> set[str]:
    """Names of the axes that a program reduces over or otherwise exchanges along."""
    found: set[str] = set()
    for eqn in jaxpr.eqns:
        if eqn.primitive.name not in LOCAL:
            for key in ("axes", "axis_name"):
                value = eqn.params.get(key, ())
                found |= {a for a in (value if isinstance(value, tuple) else (value,)) if isinstance(a, str)}
        for inner in core.jaxprs_in_params(eqn.params):
            found |= exchanged_axes(inner)
    return found
