"""Derivatives that no step carries: of a solve that failed, and of asked times at which no step ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ode_nets.gradients.closure import Closed, close_over
from ode_nets.integrate import Adaptive, Problem, Result, Solution, theta_at

PyTree = Any


def run_marked(problem: Problem, run: Callable[[Problem, Closed], Solution]) -> Solution:
    """The solution that `run` gives, its derivatives NaN where it failed; see `mark_failed`.

    Args:
      problem: its field may close over differentiated arrays.
      run: solves the problem, given it again and its field apart from what that closes over.
    """
    closed = close_over(problem)
    problem = dataclasses.replace(problem, field=closed.field(closed.consts))
    inputs = (problem.x0, problem.weights, problem.t0, problem.t1, problem.ts, closed.consts)
    return mark_failed(run(problem, closed), inputs)


def mark_failed(solution: Solution, inputs: PyTree) -> Solution:
    """The same solution; if it failed, its derivatives with respect to `inputs` are NaN.

    What a solve never reached does not depend on the weights in its program, so their derivatives would be
    zero: a plausible number, and a wrong one.

    Args:
      solution: of any gradient method.
      inputs: pytree of all arrays that the solve depends on.
    """
    is_inexact = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    leaves, tree = jax.tree.flatten((solution.x, solution.aux))
    marked = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    sources = [leaf for leaf in jax.tree.leaves(inputs) if is_inexact(leaf)]

    @jax.custom_jvp
    def same(outputs: list[jax.Array], good: jax.Array, sources: list[jax.Array]) -> list[jax.Array]:
        return outputs

    @partial(same.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        outputs, good, _ = primals
        total = sum((jnp.sum(d).astype(float) for d in tangents[2] if not isinstance(d, SymbolicZero)), jnp.zeros(()))
        # The inner choice keeps 0 * NaN from the cotangents, the outer one from the tangents.
        failed = jnp.where(good, 0, jnp.nan * jnp.where(good, 0, total))
        return outputs, [
            jnp.broadcast_to(failed, x.shape).astype(x.dtype) + (0 if isinstance(d, SymbolicZero) else d)
            for x, d in zip(outputs, tangents[0], strict=True)
        ]

    outputs = same([leaves[i] for i in marked], solution.result == Result.SUCCESS, sources)
    for i, leaf in zip(marked, outputs, strict=True):
        leaves[i] = leaf
    x, aux = jax.tree.unflatten(tree, leaves)
    return Solution(x, aux, solution.nfe, solution.n_accepted, solution.n_rejected, solution.result)


def follow_times(problem: Problem, closed: Closed, solver: Adaptive, x: PyTree) -> PyTree:
    """The same states; where no step ended on an asked time itself, with the derivative in that time.

        dx(t_j) += f(t_j, x(t_j)) (dt_j - ds_j)

    with s_j the time that the state does follow: t0 where t_j = t0 (t1 = t0 included), and the first of
    several equal times that steps land on.

    Args:
      problem, closed: the problem, and its field apart from what it closes over.
      solver: how asked times are met.
      x: states at `problem.ts`, leaves `[len(ts), ...]`, or at t1.

    Cost: nothing, unless times are differentiated and some t_j is such a time; then one evaluation an asked
    time, in the derivative alone.
    """
    single = problem.ts is None
    if not any(isinstance(t, jax.Array) for t in (problem.t0, problem.t1, problem.ts)):
        return x
    asked = jnp.asarray(problem.t1)[None] if single else jnp.asarray(problem.ts)

    @jax.custom_jvp
    def same(x: PyTree, t0: Any, asked: Any, t1: Any, weights: PyTree, consts: Any) -> PyTree:
        return x

    @partial(same.defjvp, symbolic_zeros=True)
    def derivative(primals: Any, tangents: Any) -> Any:
        x, t0, asked, t1, weights, consts = primals
        dx, d_t0, d_asked = (jax.tree.map(_materialized, *pair) for pair in zip(primals[:3], tangents[:3], strict=True))
        if isinstance(tangents[1], SymbolicZero) and isinstance(tangents[2], SymbolicZero):
            return x, dx
        sign = jnp.sign(t1 - t0)
        here = sign * (asked - t0) <= 0
        shared = jnp.arange(len(asked)) if solver.outputs == "dense" else jnp.argmax(asked == asked[:, None], 1)
        apart = d_asked - jnp.where(here, d_t0, d_asked[shared])
        inward = jnp.where(here, 1, -1) * jnp.where(sign < 0, -1, 1)

        def slope(inputs: Any) -> PyTree:
            t, x, side = inputs
            return closed.field(consts)(t, x, theta_at(weights, t, side))[0]

        needed = jnp.any(here | (shared != jnp.arange(len(asked))))
        slopes = jax.lax.cond(
            needed, partial(jax.lax.map, slope), lambda inputs: jax.tree.map(jnp.zeros_like, x), (asked, x, inward)
        )
        moved = lambda d, k: d + apart.reshape(-1, *[1] * (k.ndim - 1)).astype(k.dtype) * k
        return x, jax.tree.map(moved, dx, slopes)

    states = jax.tree.map(lambda leaf: leaf[None], x) if single else x
    states = same(states, jnp.asarray(problem.t0), asked, jnp.asarray(problem.t1), problem.weights, closed.consts)
    return jax.tree.map(lambda leaf: leaf[0], states) if single else states


def _materialized(x: jax.Array, tangent: Any) -> jax.Array:
    return jnp.zeros_like(x) if isinstance(tangent, SymbolicZero) else tangent
