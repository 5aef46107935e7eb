"""Fixed-step integration: a scan over sections of the weights and over the steps inside a section."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.integrate.problem import (
    Problem,
    PyTree,
    Read,
    Result,
    Solution,
    WeightFunction,
    is_finite,
    theta_at,
)
from ode_nets.integrate.solvers import FixedStep
from ode_nets.stepping import n_propagating, rk_step


def integrate_fixed(
    problem: Problem, solver: FixedStep, *, transform: Callable[[Callable], Callable] = lambda step: step
) -> Solution:
    """The state after `solver.n_steps` equal steps.

        x_{n+1} = x_n + h * sum_i b_i k_i,  h = (t1 - t0) / n_steps          (ContinuousNet eq. 11)

    Weights defined on [t0, t1] are read by exact arithmetic on (step, stage node), with the limit from
    inside the step where they jump; on any other interval they are read at the floating-point stage time,
    and a stage within rounding of a jump may see either side.

    Args:
      problem: from `make_problem`; `ts`, if asked for, must be grid points known at trace time.
      solver: scheme and number of steps.
      transform: wraps the function of one step, e.g. `jax.checkpoint`.

    Returns:
      `Solution` with nfe = n_steps * `n_propagating(tableau)`; result `NON_FINITE` if the state, at any asked
      time or at t1, or what the field reported left the finite numbers.

    Raises:
      ValueError: at trace time, if `ts` is not on the grid or not known.

    Cost: one compiled step whatever `n_steps`. With `ts` the states of all steps are kept. Differentiable
    in both modes; reverse mode keeps what the steps keep, under `transform`.
    """
    n_steps = solver.n_steps
    sections, read, n_sections = read_sections(problem, solver)
    asked = None if problem.ts is None else grid_indices(problem, n_steps)

    @transform
    def step(x: PyTree, section: PyTree, k: jax.Array, local: jax.Array) -> tuple[PyTree, PyTree]:
        return grid_step(problem, solver, read, x, section, k, local)

    per_section = n_steps // n_sections

    def section_steps(carry: Any, inputs: Any) -> tuple[Any, PyTree]:
        section, index = inputs

        def one(carry: Any, local: jax.Array) -> tuple[Any, PyTree]:
            x, total = carry
            x, aux = step(x, section, index * per_section + local, local)
            return (x, jax.tree.map(jnp.add, total, aux)), (None if asked is None else x)

        if per_section == 1:
            carry, states = one(carry, jnp.int32(0))
            return carry, jax.tree.map(lambda leaf: leaf[None], states)
        return jax.lax.scan(one, carry, jnp.arange(per_section, dtype=jnp.int32))

    first = jax.tree.map(lambda leaf: leaf[0], sections)
    aux_shape = jax.eval_shape(lambda: step(problem.x0, first, jnp.int32(0), jnp.int32(0))[1])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), aux_shape)
    carry = (problem.x0, zeros)
    if n_sections == 1:
        carry, states = section_steps(carry, (first, jnp.int32(0)))
    else:
        carry, states = jax.lax.scan(
            section_steps, carry, (sections, jnp.arange(n_sections, dtype=jnp.int32))
        )
        states = jax.tree.map(lambda leaf: leaf.reshape(n_steps, *leaf.shape[2:]), states)
    x, aux = carry
    good = is_finite(x, aux)
    if asked is not None:
        x = jax.tree.map(lambda start, rest: jnp.concatenate([start[None], rest])[asked], problem.x0, states)
        good &= is_finite(x)
    return Solution(
        x=x,
        aux=aux,
        nfe=jnp.int32(n_steps * n_propagating(solver.tableau)),
        n_accepted=jnp.int32(n_steps),
        n_rejected=jnp.int32(0),
        result=jnp.where(good, Result.SUCCESS, Result.NON_FINITE).astype(jnp.int32),
    )


def grid_step(
    problem: Problem, solver: FixedStep, read: Read | None, x: PyTree, section: PyTree, k: Any, local: Any
) -> tuple[PyTree, PyTree]:
    """Step `k` of a uniform grid, the `local`-th of its section of weights: the next state and reports."""
    tableau, h = solver.tableau, (problem.t1 - problem.t0) / solver.n_steps

    def evaluate(i: int, t: jax.Array, x_i: PyTree) -> tuple[PyTree, PyTree]:
        side = jnp.sign(h) if tableau.c[i] < 1 else -jnp.sign(h)
        theta = theta_at(problem.weights, t, side) if read is None else read(section, local, i)
        return problem.field(t, x_i, theta)

    out = rk_step(tableau, evaluate, problem.t0 + k * h, x, h)
    return out.x, out.aux


def read_sections(
    problem: Problem, solver: FixedStep, n_sections: int | None = None
) -> tuple[PyTree, Read | None, int]:
    """Coefficients by section, how a stage reads its theta, and the number of sections.

    No reader means: theta at the floating-point time of the stage.
    """
    weights = problem.weights
    if not isinstance(weights, WeightFunction):
        return (), (lambda section, step, i: weights), 1
    if not problem.on_domain:
        return (), None, 1
    n_sections = n_sections or weights.n_sections(solver.n_steps)
    sections, read = weights.on_grid(solver.n_steps, solver.tableau.c, n_sections)
    return sections, read, n_sections


def grid_indices(problem: Problem, n_steps: int) -> np.ndarray:
    """Which grid points the asked times are, `[len(ts)]`."""
    if any(isinstance(t, jax.core.Tracer) for t in (problem.t0, problem.t1, problem.ts)):
        raise ValueError(
            "ts, t0 and t1 must be known at trace time for a FixedStep solver, whose outputs are grid "
            "points; use an Adaptive solver for traced times"
        )
    t0, t1 = float(problem.t0), float(problem.t1)
    positions = (np.asarray(problem.ts, np.float64) - t0) / (t1 - t0 or 1.0) * n_steps
    indices = np.rint(positions).astype(np.int32)
    off = np.abs(positions - indices) > 1e-4
    if off.any():
        bad = float(np.asarray(problem.ts)[off][0])
        raise ValueError(
            f"ts contains {bad}, which is not one of the {n_steps + 1} grid points "
            f"t0 + k * {(t1 - t0) / n_steps}; choose n_steps so that it is, or use an Adaptive solver"
        )
    return indices
