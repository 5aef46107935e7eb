"""States at asked times: which trial lands on which, and the interpolant between two steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate.adaptive import Adaptive, Taken, Trial
from ode_nets.integrate.problem import Problem, PyTree
from ode_nets.tableaus import Tableau


def empty(problem: Problem, n: int) -> PyTree:
    """Room for the state at `n` times, filled with x0."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), problem.x0)


def write_landed(outputs: PyTree, taken: Taken) -> PyTree:
    """Store the state of an accepted step at the stop that it landed on."""
    hit = taken.accepted & taken.landed

    def leaf(all_: jax.Array, new: jax.Array) -> jax.Array:
        return all_.at[taken.stop].set(jnp.where(hit, new, all_[taken.stop]))

    return jax.tree.map(leaf, outputs, taken.step.x)


def landed_at(problem: Problem, stops: jax.Array, reached_until: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which slot holds the state of each asked time, and whether it was reached.

    Equal times share the slot of the first of them.

    Args:
      stops: times landed on, `[n]`.
      reached_until: index of the first stop that was not reached.

    Returns:
      `(slot, reached)`, `[len(ts)]` each, or scalars for the state at t1 alone.
    """
    asked = stops[:-1] if problem.ts is not None else stops[-1]
    slot = jnp.argmax(stops == asked[..., None], axis=-1).astype(jnp.int32)
    return slot, slot < reached_until


def interpolation_weights(tableau: Tableau, s: jax.Array) -> list[jax.Array | None]:
    """b_i(s) of the tableau's interpolant, `None` for a stage that it does not use."""
    weights: list[jax.Array | None] = []
    for polynomial in tableau.b_dense or ():
        value: Any = 0.0
        for coefficient in reversed(polynomial):
            value = (value + float(coefficient)) * s
        weights.append(None if all(c == 0 for c in polynomial) else value)
    return weights


def interpolate_step(tableau: Tableau, taken: Taken, x: PyTree, t: jax.Array) -> PyTree:
    """The state inside a step.

        x(t_n + s h) = x_n + h sum_i b_i(s) k_i

    Args:
      taken: the step; x: the state it started from.
      t: time between its ends.
    """
    s = (t - taken.t) / jnp.where(taken.h == 0, 1.0, taken.h)
    weights = interpolation_weights(tableau, s)
    used = [(w, k) for w, (k, _) in zip(weights, taken.step.stages, strict=True) if w is not None]

    def leaf(a: jax.Array, *slopes: jax.Array) -> jax.Array:
        moved = sum(w.astype(a.dtype) * k for (w, _), k in zip(used, slopes, strict=True))
        return a + taken.h.astype(a.dtype) * moved

    return jax.tree.map(leaf, x, *(k for _, k in used))


def covering(ts: jax.Array, taken: Taken, t_next: jax.Array) -> jax.Array:
    """Which asked times lie in an accepted step, its end included, `[len(ts)]` booleans."""
    sign = jnp.sign(taken.h)
    return taken.accepted & (sign * (ts - taken.t) > 0) & (sign * (ts - t_next) <= 0)


def dense_reached(problem: Problem, trial: Trial) -> jax.Array:
    """Which asked times a dense solve has passed, `[len(ts)]` booleans."""
    sign = jnp.sign(jnp.asarray(problem.t1 - problem.t0))
    return sign * (jnp.asarray(problem.ts) - trial.t) <= 0
