"""Trial steps of an adaptive solve: accepted or rejected by their error, landing exactly on asked times."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.control import initial_step, scaled_norm
from ode_nets.integrate.problem import Problem, PyTree, Result, is_finite, theta_at
from ode_nets.integrate.solvers import Adaptive
from ode_nets.stepping import Stage, Step, rk_step
from ode_nets.tableaus import Tableau


class Trial(NamedTuple):
    """Where a solve stands between two trials. Everything but `x`, `first` and `aux` is a scalar."""

    t: jax.Array
    x: PyTree
    h: jax.Array
    """Signed size of the next trial."""
    first: Stage
    """`(dx, aux)` at `(t, x)`, valid where `has_first`."""
    has_first: jax.Array
    error: jax.Array
    """Scaled error of the last accepted step."""
    stop: jax.Array
    """Index of the next time that must be landed on."""
    aux: PyTree
    nfe: jax.Array
    n_accepted: jax.Array
    n_rejected: jax.Array
    result: jax.Array


class Taken(NamedTuple):
    """One trial: what it started from and what it gave."""

    accepted: jax.Array
    landed: jax.Array
    """Whether it ended exactly on `stops[stop]`."""
    t: jax.Array
    t_next: jax.Array
    h: jax.Array
    stop: jax.Array
    step: Step


def stops_of(problem: Problem, solver: Adaptive) -> jax.Array:
    """Times that steps must land on, in order, `[n]`: the asked times where steps are clipped, then t1."""
    t1 = jnp.asarray(problem.t1)[None]
    if problem.ts is None or solver.outputs == "dense":
        return t1
    return jnp.concatenate([jnp.asarray(problem.ts), t1])


def evaluator(problem: Problem, tableau: Tableau, sign: jax.Array) -> Any:
    """`evaluate(i, t, x)` for a step: weights read at stage times, at jumps from inside the step; `i` may be traced."""
    sides = np.array([1 if c < 1 else -1 for c in tableau.c])

    def evaluate(i: Any, t: jax.Array, x: PyTree) -> Stage:
        side = sign * (sides[i] if isinstance(i, int) else jnp.asarray(sides)[i])
        return problem.field(t, x, theta_at(problem.weights, t, side))

    return evaluate


def reuses_last(problem: Problem, tableau: Tableau) -> bool:
    """Whether the last stage of a step is the first of the next.

    Not across weights with jumps: the two stages read them from different sides.
    """
    return tableau.fsal and getattr(problem.weights, "continuous", True)


def begin(problem: Problem, solver: Adaptive) -> Trial:
    """The state before the first trial, its step chosen by `solver.first_step` or by Hairer's rule.

    Its result is `NON_FINITE` for a step or a span that is not finite, `UNSORTED_TIMES` for asked times out of order.
    Cost: two evaluations with Hairer's rule; with a first step given, one where its slope is handed on, or none.
    """
    t0, span = jnp.asarray(problem.t0), jnp.asarray(problem.t1 - problem.t0)
    sign = jnp.sign(span)
    evaluate = evaluator(problem, solver.tableau, sign)
    needs_slope = solver.first_step is None or reuses_last(problem, solver.tableau)
    shapes = jax.eval_shape(lambda: evaluate(0, t0, problem.x0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    first = evaluate(0, t0, problem.x0) if needs_slope else zeros
    if solver.first_step is None:
        q = solver.embedded_order
        h = initial_step(
            lambda t, x: evaluate(0, t, x)[0], t0, problem.x0, first[0], span, q, solver.rtol, solver.atol, solver.norm
        )
    else:
        given = jnp.asarray(solver.first_step, t0.dtype)
        h = jnp.minimum(jnp.where(given > 0, given, jnp.nan), jnp.abs(span)) * sign
    h = jax.lax.stop_gradient(h)
    stops = stops_of(problem, solver)
    started = jnp.where(jnp.isfinite(h) & jnp.isfinite(span), Result.SUCCESS, Result.NON_FINITE)
    error = jnp.ones((), scaled_norm(problem.x0, problem.x0, problem.x0, solver.rtol, solver.atol).dtype)
    return Trial(
        t=t0,
        x=problem.x0,
        h=h,
        first=first,
        has_first=jnp.asarray(needs_slope),
        error=error,
        stop=_next_stop(stops, t0, sign),
        aux=zeros[1],
        nfe=jnp.int32(needs_slope + (solver.first_step is None)),
        n_accepted=jnp.int32(0),
        n_rejected=jnp.int32(0),
        result=jnp.where(_in_order(problem), started, Result.UNSORTED_TIMES).astype(jnp.int32),
    )


def is_running(trial: Trial, solver: Adaptive, n_stops: int) -> jax.Array:
    """Whether another trial is due, a bool scalar: stops are left, nothing has failed, and trials are left.

    Args:
      trial: the state between two trials.
      solver: for its `max_steps`.
      n_stops: times to land on, t1 included.
    """
    tried = trial.n_accepted + trial.n_rejected
    return (trial.stop < n_stops) & (trial.result == Result.SUCCESS) & (tried < solver.max_steps)


def outcome(trial: Trial, n_stops: int) -> jax.Array:
    """The `Result` of a solve after its loop: success once it has landed on all of its stops."""
    unfinished = jnp.where(trial.stop < n_stops, Result.MAX_STEPS, Result.SUCCESS)
    if jax.tree.leaves(trial.aux):
        unfinished = jnp.where(is_finite(trial.aux), unfinished, Result.NON_FINITE)
    return jnp.where(trial.result == Result.SUCCESS, unfinished, trial.result).astype(jnp.int32)


def attempt(problem: Problem, solver: Adaptive, stops: jax.Array, trial: Trial) -> tuple[Trial, Taken]:
    """One trial step: its error decides whether it counts and how long the next one is.

    Step sizes are constants of differentiation, but for a step clipped to land on a stop: its size is
    `stop - t`, so derivatives with respect to t0, t1 and ts are those of the replayed grid.
    """
    tableau = solver.tableau
    sign = jnp.sign(jnp.asarray(problem.t1 - problem.t0))
    evaluate = evaluator(problem, tableau, sign)
    goal = stops[jnp.minimum(trial.stop, stops.shape[0] - 1)]
    remaining = goal - trial.t
    landed = jnp.abs(remaining) <= jnp.abs(trial.h) * (1 + 1e-6)
    h = jnp.where(landed, remaining, trial.h)
    if reuses_last(problem, tableau):
        first, has_first = trial.first, jnp.asarray(True)
    else:
        has_first = trial.has_first
        first = jax.lax.cond(has_first, lambda t, x: trial.first, lambda t, x: evaluate(0, t, x), trial.t, trial.x)
    step = rk_step(tableau, evaluate, trial.t, trial.x, h, first=first, with_error=True)
    error = jax.lax.stop_gradient(
        scaled_norm(step.error, trial.x, step.x, solver.rtol, solver.atol, solver.norm)
    )
    accepted = error <= 1
    h_used = jax.lax.stop_gradient(h)
    h_next = h_used * solver.controller.factor(error, trial.error, solver.embedded_order).astype(h.dtype)
    grown = jnp.where(jnp.abs(h_next) > jnp.abs(trial.h), h_next, trial.h)
    h_next = jnp.where(accepted & landed, grown, h_next)
    smallest = _smallest_step(solver, trial.t, goal)
    gave_up = ~accepted & (jnp.abs(h_next) < smallest)
    why = jnp.where(jnp.isfinite(error), Result.STEP_UNDERFLOW, Result.NON_FINITE)
    t_next = jnp.where(landed, goal, trial.t + h)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)

    last = reuses_last(problem, tableau)
    t = jnp.where(accepted, t_next, trial.t)
    after = Trial(
        t=t,
        x=keep(step.x, trial.x),
        h=jax.lax.stop_gradient(h_next),
        first=keep(step.stages[-1], first) if last else first,
        has_first=jnp.asarray(True) if last else ~accepted,
        error=jnp.where(accepted, error, trial.error),
        stop=jnp.where(accepted, _next_stop(stops, t, sign), trial.stop),
        aux=keep(jax.tree.map(jnp.add, trial.aux, step.aux), trial.aux),
        nfe=trial.nfe + tableau.n_stages - has_first.astype(jnp.int32),
        n_accepted=trial.n_accepted + accepted.astype(jnp.int32),
        n_rejected=trial.n_rejected + (~accepted).astype(jnp.int32),
        result=jnp.where(gave_up, why, trial.result).astype(jnp.int32),
    )
    return after, Taken(accepted, landed, trial.t, t_next, h, trial.stop, step)


def _in_order(problem: Problem) -> jax.Array:
    """Whether the asked times lie in order between t0 and t1."""
    if problem.ts is None:
        return jnp.asarray(True)
    times = jnp.concatenate([jnp.asarray(t).reshape(-1) for t in (problem.t0, problem.ts, problem.t1)])
    return jnp.all(jnp.where(problem.t1 < problem.t0, -1, 1) * jnp.diff(times) >= 0)


def _next_stop(stops: jax.Array, t: jax.Array, sign: jax.Array) -> jax.Array:
    """Index of the first stop that lies ahead of `t`."""
    return jnp.sum(sign * (stops - t) <= 0).astype(jnp.int32)


def _smallest_step(solver: Adaptive, t: jax.Array, goal: jax.Array) -> jax.Array:
    if solver.min_step is not None:
        return jnp.asarray(solver.min_step, t.dtype)
    return 8 * jnp.finfo(t.dtype).eps * jnp.maximum(jnp.abs(t), jnp.abs(goal))
