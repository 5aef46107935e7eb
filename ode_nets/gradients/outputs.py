"""Derivatives that no step carries: of a solve that failed, and of asked times at which no step ends."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ode_nets.gradients.rules import standard
from ode_nets.integrate import Problem, Result, Solution, Solver, theta_at

PyTree = Any
S = TypeVar("S", bound=Any)


def mark_derivatives(solution: S, inputs: PyTree) -> S:
    """The same solution; if it failed, its derivatives with respect to `inputs` are NaN.

    What a solve never reached does not depend on the weights in its program, so their derivatives would be
    zero: a plausible number, and a wrong one.

    Args:
      solution: of any gradient method; a pytree that has a `result`.
      inputs: pytree of all arrays that the solve depends on.
    """
    is_inexact = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    leaves, tree = jax.tree.flatten(solution)
    marked = [i for i, leaf in enumerate(leaves) if is_inexact(leaf)]
    sources = [leaf for leaf in jax.tree.leaves(inputs) if is_inexact(leaf)]

    @jax.custom_jvp
    def same(outputs: list[jax.Array], good: jax.Array, sources: list[jax.Array]) -> list[jax.Array]:
        return outputs

    @partial(same.defjvp, symbolic_zeros=True)
    @standard
    def derivative(primals: Any, tangents: Any) -> Any:
        outputs, good, _ = primals
        moving = [d for d in tangents[2] if not isinstance(d, SymbolicZero)]
        total = sum((jnp.sum(jnp.real(d)).astype(jnp.result_type(float)) for d in moving), jnp.zeros(()))
        # The choice inside keeps 0 * NaN from the cotangents; no NaN is made where nothing failed.
        failed = jnp.where(good, 0, jnp.nan) * jnp.where(good, 0, total)
        return outputs, [
            jnp.broadcast_to(failed, x.shape).astype(x.dtype) + (0 if isinstance(d, SymbolicZero) else d)
            for x, d in zip(outputs, tangents[0], strict=True)
        ]

    outputs = same([leaves[i] for i in marked], solution.result == Result.SUCCESS, sources)
    for i, leaf in zip(marked, outputs, strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(tree, leaves)


def follow_times(problem: Problem, solver: Solver, solution: Solution) -> Solution:
    """The same states; where no step ended on an asked time itself, with the derivative in that time.

        dx(t_j) += f(t_j, x(t_j)) (dt_j - ds_j)

    with s_j the time that the state does follow: t0 where t_j = t0 (t1 = t0 included), and the first of
    several equal times that steps land on.

    Args:
      problem, solver: as they were given.
      solution: with states at `problem.ts`, leaves `[len(ts), ...]`, or at t1.

    Cost: nothing, unless times are differentiated and some t_j is such a time; then one evaluation an asked
    time, in the derivative alone.
    """
    if solver.length is not None and solver.lands(problem):
        return solution
    single = problem.ts is None
    asked = problem.span[None] if single else problem.ts
    lands = solver.lands(problem)
    # A step of size 0 follows t1 all the same.
    stood = (asked <= 0) & (solution.n_accepted == 0) if single else asked <= 0

    @jax.custom_jvp
    def same(x: PyTree, asked: Any, stood: Any, problem: Problem) -> PyTree:
        return x

    @partial(same.defjvp, symbolic_zeros=True)
    @standard
    def derivative(primals: Any, tangents: Any) -> Any:
        x, asked, here, problem = primals
        dx = instantiate(tangents[0])
        if isinstance(tangents[1], SymbolicZero):
            return x, dx
        d_asked = tangents[1]
        own = jnp.arange(len(asked))
        shared = jnp.searchsorted(asked, asked, side="left") if lands else own
        # A state at t0 follows t0 already, in which tau = 0.
        apart = d_asked - jnp.where(here, 0, d_asked[shared])
        inward = jnp.where(here, 1, -1) * problem.sign

        def slope(inputs: Any) -> PyTree:
            tau, x, side = inputs
            t = problem.time(tau)
            return problem.slope(t, x, theta_at(problem.weights, t, side))[0]

        needed = jnp.any(here | (shared != own))
        slopes = jax.lax.cond(
            needed, partial(jax.lax.map, slope), lambda inputs: jax.tree.map(jnp.zeros_like, x), (asked, x, inward)
        )
        apart = apart * problem.sign
        moved = lambda d, k: d + apart.reshape(-1, *[1] * (k.ndim - 1)).astype(k.dtype) * k
        return x, jax.tree.map(moved, dx, slopes)

    states = jax.tree.map(lambda leaf: leaf[None], solution.x) if single else solution.x
    states = same(states, asked, stood, problem)
    return dataclasses.replace(solution, x=jax.tree.map(lambda leaf: leaf[0], states) if single else states)


def instantiate(derivatives: PyTree) -> PyTree:
    """The same derivatives as arrays: those that are known to be zero come as symbols, of the shapes of primals."""
    is_zero = lambda leaf: isinstance(leaf, SymbolicZero)
    array = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_zero(leaf) else leaf
    return jax.tree.map(array, derivatives, is_leaf=is_zero)
