"""The continuous adjoint: an augmented system integrated backward in time."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients.closure import Closed, Inputs, add, as_cotangents, zero_cotangent, zeros
from ode_nets.gradients.outputs import run_marked
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.integrate import (
    Adaptive,
    FixedStep,
    Problem,
    Solution,
    integrate_adaptive,
    integrate_fixed,
    theta_at,
)
from ode_nets.integrate.fixed import grid_indices
from ode_nets.integrate.trial import evaluator
from ode_nets.stepping import rk_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Backsolve:
    """The adjoint method of Chen et al. (lecture, "augmented adjoint based ODE"): optimize-then-discretize.

        d/dt [x, a, g] = [f, -a df/dx, -a df/dtheta],  solved from t1 back to t0 from [x(t1), dL/dx(t1), 0]

    Memory does not depend on the number of steps, since x(t) is solved again backward. What comes back is not
    the trajectory that went out (ACA sec. 3.2), so the gradient is only as accurate as both solves; it
    approaches that of the other methods as the tolerance goes to zero. With `ts`, the backward solve starts
    again from the stored state at each asked time.

    Args:
      rtol, atol: tolerances of the backward solve; `None` for the solver's own.

    What the field reports as aux is a sum over the stages of the solve that went out, which the backward one
    knows nothing of: a loss that depends on it has gradient NaN. Reverse mode only.
    """

    rtol: float | None = None
    atol: float | None = None

    def run(self, problem: Problem, solver: Adaptive | FixedStep) -> Solution:
        """Solve `problem` with `solver`."""
        return run_marked(problem, partial(self._run, solver=solver))

    def _run(self, problem: Problem, closed: Closed, solver: Adaptive | FixedStep) -> Solution:
        asked = None
        if isinstance(solver, FixedStep) and problem.ts is not None:
            asked = grid_indices(problem, solver.n_steps)

        def forward(inputs: Inputs) -> Solution:
            again = inputs.problem(closed, problem.on_domain)
            if not isinstance(solver, FixedStep):
                return integrate_adaptive(again, inputs.solver(solver))
            if asked is not None:
                # Asked times of a fixed grid, and with them its ends, stay those known at trace time.
                again = dataclasses.replace(again, t0=problem.t0, t1=problem.t1, ts=problem.ts)
            return integrate_fixed(again, solver)

        def keep(inputs: Inputs) -> tuple[Solution, tuple[Inputs, PyTree]]:
            solution = forward(inputs)
            return solution, (inputs, solution.x)

        def backward(residuals: tuple[Inputs, PyTree], cotangent: Solution) -> tuple[Inputs]:
            inputs, x = residuals
            ct = _without_aux(cotangent)
            if isinstance(solver, FixedStep):
                return (_backward_fixed(closed, solver, asked, inputs, x, ct),)
            return (_backward_adaptive(closed, solver, self, inputs, x, ct),)

        solve = jax.custom_vjp(forward)
        solve.defvjp(keep, backward)
        inputs = jax.tree.map(jnp.asarray, Inputs.of(problem, closed, solver))
        return solve(refuse_forward_mode(inputs, "Backsolve(...)"))


class _Augmented(NamedTuple):
    x: PyTree
    adjoint: PyTree
    gradient: Any
    """Of the weights and of what the field closed over."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sided:
    """Weights of the augmented system: the weights themselves, and the side to read them from."""

    weights: PyTree
    consts: Any

    @property
    def continuous(self) -> bool:
        return bool(getattr(self.weights, "continuous", True))

    def at(self, t: Any, side: Any = 1) -> PyTree:
        return self.weights, self.consts, side


def _augmented_field(closed: Closed) -> Any:
    def field(t: Any, state: _Augmented, theta: PyTree) -> tuple[_Augmented, PyTree]:
        weights, consts, side = theta

        def slope(x: PyTree, weights: PyTree, consts: Any) -> PyTree:
            return closed.field(consts)(t, x, theta_at(weights, t, side))[0]

        dx, pullback = jax.vjp(slope, state.x, weights, consts)
        d_x, *d_theta = pullback(state.adjoint)
        minus = lambda tree: jax.tree.map(jnp.negative, tree)
        d_theta = add(zeros((weights, consts)), tuple(d_theta))
        return _Augmented(dx, minus(d_x), minus(d_theta)), ()

    return field


def _without_aux(cotangent: Solution) -> PyTree:
    """Cotangents of the states, NaN where there are any of the reports."""
    inexact = [leaf for leaf in jax.tree.leaves(cotangent.aux) if leaf.dtype != jax.dtypes.float0]
    used = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in inexact])) if inexact else False
    return jax.tree.map(lambda leaf: jnp.where(used, jnp.nan, leaf).astype(leaf.dtype), cotangent.x)


def _time_cotangent(closed: Closed, inputs: Inputs, t: jax.Array, x: PyTree, ct: PyTree) -> jax.Array:
    """d/dt of a state asked for at time t, against its cotangent: <ct, f(t, x)>.

    Weights that jump at t are read from inside the solve.
    """
    sign = jnp.where(inputs.t1 < inputs.t0, -1, 1)
    inward = jnp.where(sign * (t - inputs.t0) <= 0, sign, -sign)
    slope = closed.field(inputs.consts)(t, x, theta_at(inputs.weights, t, inward))[0]
    products = [jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(ct), jax.tree.leaves(slope), strict=True)]
    return jnp.sum(jnp.stack(products)).astype(t.dtype)


def _result(closed: Closed, inputs: Inputs, end: _Augmented, ct_t1: Any, ct_ts: Any) -> Inputs:
    d_weights, d_consts = end.gradient
    return Inputs(
        x0=end.adjoint,
        weights=as_cotangents(inputs.weights, d_weights),
        t0=-_time_cotangent(closed, inputs, inputs.t0, inputs.x0, end.adjoint),
        t1=ct_t1,
        ts=ct_ts,
        consts=as_cotangents(inputs.consts, d_consts),
        tolerances=jax.tree.map(zero_cotangent, inputs.tolerances),
    )


def _backward_adaptive(
    closed: Closed, solver: Adaptive, method: Backsolve, inputs: Inputs, x: PyTree, ct: PyTree
) -> Inputs:
    own = {name: value for name in ("rtol", "atol") if (value := getattr(method, name)) is not None}
    # The error of the augmented system has no batch axis to look at sample by sample.
    again = dataclasses.replace(inputs.solver(solver), norm="batch", **own)
    single = inputs.ts is None
    times = jnp.concatenate([inputs.t0[None], inputs.t1[None] if single else inputs.ts])
    states, cts = (jax.tree.map(lambda leaf: leaf[None], tree) if single else tree for tree in (x, ct))

    def segment(carry: tuple[PyTree, Any], inputs_: Any) -> tuple[tuple[PyTree, Any], jax.Array]:
        adjoint, gradient = carry
        t_from, t_to, x, ct = inputs_
        start = _Augmented(x, jax.tree.map(jnp.add, adjoint, ct), gradient)
        weights = _Sided(inputs.weights, inputs.consts)
        problem = Problem(_augmented_field(closed), start, weights, t_from, t_to, None, False)
        end = integrate_adaptive(problem, again).x
        return (end.adjoint, end.gradient), _time_cotangent(closed, inputs, t_from, x, ct)

    start = (jax.tree.map(jnp.zeros_like, inputs.x0), zeros((inputs.weights, inputs.consts)))
    xs = (times[1:], times[:-1], states, cts)
    (adjoint, gradient), ct_times = jax.lax.scan(segment, start, xs, reverse=True)
    ct_t1 = ct_times[0] if single else jnp.zeros_like(inputs.t1)
    end = _Augmented(inputs.x0, adjoint, gradient)
    return _result(closed, inputs, end, ct_t1, None if single else ct_times)


def _backward_fixed(
    closed: Closed, solver: FixedStep, asked: np.ndarray | None, inputs: Inputs, x: PyTree, ct: PyTree
) -> Inputs:
    n_steps, tableau = solver.n_steps, solver.tableau
    h = (inputs.t1 - inputs.t0) / n_steps
    indices = np.array([n_steps]) if asked is None else asked
    states, cts = (jax.tree.map(lambda leaf: leaf[None], tree) if asked is None else tree for tree in (x, ct))
    # Of each grid point that was asked for: what arrives there, and the state to start again from.
    points, first, which = np.unique(indices, return_index=True, return_inverse=True)
    states = jax.tree.map(lambda leaf: leaf[first], states)
    cts = jax.tree.map(lambda leaf: jnp.zeros((len(points), *leaf.shape[1:]), leaf.dtype).at[which].add(leaf), cts)
    slot = np.full(n_steps + 1, -1, np.int32)
    slot[points] = np.arange(len(points))
    problem = Problem(
        _augmented_field(closed), None, _Sided(inputs.weights, inputs.consts), inputs.t1, inputs.t0, None, False
    )
    evaluate = evaluator(problem, tableau, -jnp.sign(h))

    def arrive(state: _Augmented, j: Any) -> _Augmented:
        """The state at grid point `points[j]`, or the same if j < 0."""
        x = jax.tree.map(lambda a, b: jnp.where(j >= 0, b[j], a), state.x, states)
        adjoint = jax.tree.map(lambda a, b: a + jnp.where(j >= 0, b[j], 0), state.adjoint, cts)
        return _Augmented(x, adjoint, state.gradient)

    def step(state: _Augmented, inputs_: Any) -> tuple[_Augmented, None]:
        k, j = inputs_
        return rk_step(tableau, evaluate, inputs.t0 + (k + 1) * h, arrive(state, j), -h).x, None

    nothing = jax.tree.map(jnp.zeros_like, inputs.x0)
    start = _Augmented(nothing, nothing, zeros((inputs.weights, inputs.consts)))
    end, _ = jax.lax.scan(step, start, (jnp.arange(n_steps), slot[1:]), reverse=True)
    end = arrive(end, slot[0])
    ct_t1 = _time_cotangent(closed, inputs, inputs.t1, x, ct) if asked is None else jnp.zeros_like(inputs.t1)
    return _result(closed, inputs, end, ct_t1, None)
