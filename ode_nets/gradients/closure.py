"""What the custom backward passes share: arrays that a field closes over, and cotangents of any dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate import Adaptive, Field, Problem, theta_at

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


class Inputs(NamedTuple):
    """All arrays that a solve depends on, and all that its backward pass has cotangents of."""

    x0: PyTree
    weights: PyTree
    t0: Any
    t1: Any
    ts: Any
    """Asked times of an adaptive solve; those of a fixed grid are known at trace time, and `None` here."""
    consts: Any
    tolerances: Any
    """rtol, atol and first step of an adaptive solver."""

    @classmethod
    def of(cls, problem: Problem, closed: Closed, solver: Any) -> Inputs:
        """Those of a problem under a solver."""
        time = jnp.result_type(float)
        adaptive = isinstance(solver, Adaptive)
        return cls(
            x0=problem.x0,
            weights=problem.weights,
            t0=jnp.asarray(problem.t0, time),
            t1=jnp.asarray(problem.t1, time),
            ts=jnp.asarray(problem.ts, time) if adaptive and problem.ts is not None else None,
            consts=closed.consts,
            tolerances=(solver.rtol, solver.atol, solver.first_step) if adaptive else (),
        )

    def problem(self, closed: Closed, on_domain: bool) -> Problem:
        """The problem again, from these arrays."""
        return Problem(closed.field(self.consts), self.x0, self.weights, self.t0, self.t1, self.ts, on_domain)

    def solver(self, solver: Adaptive) -> Adaptive:
        """The solver again, with these tolerances."""
        rtol, atol, first_step = self.tolerances
        return dataclasses.replace(solver, rtol=rtol, atol=atol, first_step=first_step)


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
    """Accumulators (see `zeros`) with cotangents of their structure added; integers and booleans stay as they are."""
    return jax.tree.map(lambda a, b: a if b.dtype == jax.dtypes.float0 else a + b, total, cotangents)


def as_cotangents(primals: PyTree, total: PyTree) -> PyTree:
    """Accumulated cotangents in the dtypes that JAX expects."""

    def leaf(a: Any, b: Any) -> Any:
        return b if jnp.issubdtype(jnp.result_type(a), jnp.inexact) else zero_cotangent(a)

    return jax.tree.map(leaf, primals, total)
