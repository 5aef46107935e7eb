"""Fixed steps whose scheme and number are arrays: many manifestations of a model in one compiled program."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate.problem import (
    Problem,
    PyTree,
    Result,
    Solution,
    WeightFunction,
    is_finite,
    theta_at,
)
from ode_nets.integrate.solvers import FixedStep
from ode_nets.stepping import n_propagating, weighted_sum

_DENOMINATOR = 2**15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PaddedStep:
    """A `FixedStep` as arrays, its tableau padded with zero stages that are never evaluated.

    Made by `pad`. Stack several (`jax.tree.map(lambda *v: jnp.stack(v), *padded)`) and map over them.

    Attributes:
      a, b: coefficients, float `[S, S]` and `[S]`.
      numerators, denominators: nodes as fractions, int32 `[S]`, so that intervals are found exactly.
      n_stages, n_steps: int32 scalars.
    """

    a: Any
    b: Any
    numerators: Any
    denominators: Any
    n_stages: Any
    n_steps: Any

    def run(self, problem: Problem, gradient: Any = None) -> Solution:
        """Solve `problem`, whichever the gradient method: forward mode works under all, reverse mode under none."""
        return integrate_padded(problem, self)


def pad(solver: FixedStep, n_stages: int) -> PaddedStep:
    """A fixed-step solver as arrays with room for `n_stages` stages.

    Nodes with denominators above 32768 (those of Tsitouras) are rounded down to a multiple of 1 / 32768, so
    their stage times are early by at most 3e-5 of a step.

    Raises:
      ValueError: if the scheme has more stages than that.
    """
    tableau, used = solver.tableau, n_propagating(solver.tableau)
    if used > n_stages:
        raise ValueError(f"n_stages={n_stages}: {tableau.name!r} needs {used}")
    nodes = [_below(Fraction(c)) for c in tableau.c[:used]] + [Fraction(0)] * (n_stages - used)
    a, b = np.zeros((n_stages, n_stages)), np.zeros(n_stages)
    b[:used] = [float(v) for v in tableau.b[:used]]
    for i, row in enumerate(tableau.a[:used]):
        a[i, : len(row)] = [float(v) for v in row]
    return PaddedStep(
        a=a,
        b=b,
        numerators=np.array([c.numerator for c in nodes], np.int32),
        denominators=np.array([c.denominator for c in nodes], np.int32),
        n_stages=np.int32(used),
        n_steps=np.int32(solver.n_steps),
    )


def _below(node: Fraction) -> Fraction:
    if node.denominator <= _DENOMINATOR:
        return node
    return Fraction(math.floor(node * _DENOMINATOR), _DENOMINATOR)


def integrate_padded(problem: Problem, solver: PaddedStep) -> Solution:
    """The state at t1 after `solver.n_steps` steps; see `integrate_fixed`.

    The weights must be defined on [t0, t1]. No stage beyond `solver.n_stages` is evaluated, so a program
    compiled once costs each manifestation its own field evaluations and no more. Mapped with `jax.vmap`,
    all manifestations run as many steps and stages as the longest.

    Raises:
      ValueError: at trace time, if `ts` is asked for or the weights have another domain.

    Not differentiable in reverse mode: a loop of traced length.
    """
    if problem.ts is not None:
        raise ValueError("ts is given: a PaddedStep solver gives the state at t1 alone; use FixedStep")
    by_node = isinstance(problem.weights, WeightFunction)
    if by_node and not problem.on_domain:
        raise ValueError(
            f"t0={problem.t0}, t1={problem.t1} is not the domain {problem.weights.domain} of the weights: "
            "a PaddedStep solver needs it; use FixedStep"
        )
    dtype = jnp.asarray(problem.t0).dtype
    h = (problem.t1 - problem.t0) / jnp.asarray(solver.n_steps, dtype)
    n_stages = solver.a.shape[-1]

    def moved(x: PyTree, row: jax.Array, slopes: PyTree) -> PyTree:
        return jax.tree.map(lambda x, k: x + weighted_sum((h * row).astype(x.dtype), k), x, slopes)

    def at(k: jax.Array, i: Any) -> tuple[jax.Array, PyTree]:
        """Time and theta of a stage."""
        node = jnp.asarray(solver.numerators)[i], jnp.asarray(solver.denominators)[i]
        t = problem.t0 + h * (k + node[0].astype(dtype) / node[1])
        return t, problem.weights.at_node(k, solver.n_steps, *node) if by_node else theta_at(problem.weights, t)

    def step(k: jax.Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        x, total = carry

        def stage(i: jax.Array, carry: tuple[PyTree, PyTree, Any]) -> tuple[PyTree, PyTree, Any]:
            slopes, total, (t, theta) = carry
            dx, aux = problem.field(t, moved(x, jnp.asarray(solver.a, dtype)[i], slopes), theta)
            slopes = jax.tree.map(lambda all_, one: all_.at[i].set(one), slopes, dx)
            return slopes, jax.tree.map(jnp.add, total, aux), at(k, jnp.minimum(i + 1, n_stages - 1))

        slopes = jax.tree.map(lambda leaf: jnp.zeros((n_stages, *leaf.shape), leaf.dtype), x)
        # theta is handed from stage to stage: the compiler would otherwise fuse the search for its interval into
        # the field, and repeat it for every entry of the state.
        slopes, total, _ = jax.lax.fori_loop(0, solver.n_stages, stage, (slopes, total, at(k, 0)))
        return moved(x, jnp.asarray(solver.b, dtype), slopes), total

    shapes = jax.eval_shape(
        lambda: problem.field(problem.t0, problem.x0, theta_at(problem.weights, problem.t0))[1]
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    x, aux = jax.lax.fori_loop(0, solver.n_steps, step, (problem.x0, zeros))
    return Solution(
        x=x,
        aux=aux,
        nfe=jnp.asarray(solver.n_steps * solver.n_stages, jnp.int32),
        n_accepted=jnp.asarray(solver.n_steps, jnp.int32),
        n_rejected=jnp.int32(0),
        result=jnp.where(is_finite(x, aux), Result.SUCCESS, Result.NON_FINITE).astype(jnp.int32),
    )
