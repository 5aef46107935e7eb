"""Adaptive integration: trial steps, accepted or rejected by their error, landing exactly on asked times."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from ode_nets.control import Norm, StepController, initial_step, scaled_norm
from ode_nets.integrate.problem import Problem, PyTree, Result, Solution, WeightFunction, theta_at
from ode_nets.stepping import Stage, Step, rk_step
from ode_nets.tableaus import Tableau, get_tableau


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Steps of an embedded Runge-Kutta pair, sized by their error.

    Args:
      tableau: an embedded `Tableau` or the key of one: `"heun_euler"`, `"bosh3"`, `"fehlberg21"`, `"dopri5"`,
        `"tsit5"`.
      rtol, atol: relative and absolute tolerance, scalars above 0 (atol may be 0); may be traced.
      first_step: size of the first trial, above 0, may be traced; `None` for Hairer's estimate, which costs
        one evaluation more.
      max_steps: bound on trials, accepted and rejected together.
      min_step: smallest step before the solve gives up; `None` for the spacing of floating-point times.
      controller: next step from error.
      norm: `"batch"` controls the error of the whole state, `"sample"` that of the worst sample (leading axis).
      outputs: how asked times `ts` are met: `"clip"` shortens steps to land on them, `"dense"` leaves the
        steps alone and uses the tableau's interpolant.

    Raises:
      ValueError: for tableaus without error weights or, with `"dense"`, without an interpolant, and for
        values out of range.
    """

    tableau: Tableau
    rtol: Any = 1e-3
    atol: Any = 1e-6
    first_step: Any = None
    max_steps: int = 4096
    min_step: float | None = None
    controller: StepController = StepController()
    norm: Norm = "batch"
    outputs: Literal["clip", "dense"] = "clip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tableau", get_tableau(self.tableau))
        if self.tableau.b_error is None:
            raise ValueError(
                f"tableau {self.tableau.name!r} has no error estimate; use heun_euler, bosh3, fehlberg21, dopri5 or "
                "tsit5, or FixedStep"
            )
        for name, lowest in (("rtol", "above 0"), ("atol", "at least 0"), ("first_step", "above 0"), ("min_step", "above 0")):
            value = getattr(self, name)
            if value is None or isinstance(value, jax.core.Tracer):
                continue
            if not (value > 0 or (value == 0 and name == "atol")):
                raise ValueError(f"{name}={value}: expected a number {lowest}")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r}: expected 'batch' or 'sample'")
        if self.outputs not in ("clip", "dense"):
            raise ValueError(f"outputs={self.outputs!r}: expected 'clip' or 'dense'")
        if self.outputs == "dense" and self.tableau.b_dense is None:
            raise ValueError(f"tableau {self.tableau.name!r} has no interpolant; use outputs='clip'")

    @property
    def scheme(self) -> str:
        """Key of the tableau."""
        return self.tableau.name


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
    """`evaluate(i, t, x)` for `rk_step`: weights read at stage times, at jumps from inside the step."""

    def evaluate(i: int, t: jax.Array, x: PyTree) -> Stage:
        side = sign if tableau.c[i] < 1 else -sign
        return problem.field(t, x, theta_at(problem.weights, t, side))

    return evaluate


def reuses_last(problem: Problem, tableau: Tableau) -> bool:
    """Whether the last stage of a step is the first of the next.

    Not across weights with jumps: the two stages read them from different sides.
    """
    smooth = not isinstance(problem.weights, WeightFunction) or getattr(problem.weights, "continuous", False)
    return tableau.fsal and smooth


def begin(problem: Problem, solver: Adaptive) -> Trial:
    """The state before the first trial."""
    t0, span = jnp.asarray(problem.t0), jnp.asarray(problem.t1 - problem.t0)
    sign = jnp.sign(span)
    evaluate = evaluator(problem, solver.tableau, sign)
    needs_slope = solver.first_step is None or reuses_last(problem, solver.tableau)
    shapes = jax.eval_shape(lambda: evaluate(0, t0, problem.x0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    first = evaluate(0, t0, problem.x0) if needs_slope else zeros
    if solver.first_step is None:
        q = solver.tableau.embedded_order
        h = initial_step(
            lambda t, x: evaluate(0, t, x)[0], t0, problem.x0, first[0], span, q, solver.rtol, solver.atol, solver.norm
        )
    else:
        h = jnp.minimum(jnp.asarray(solver.first_step, t0.dtype), jnp.abs(span)) * sign
    h = jax.lax.stop_gradient(h)
    stops = stops_of(problem, solver)
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
        result=jnp.where(jnp.isfinite(h), Result.SUCCESS, Result.NON_FINITE).astype(jnp.int32),
    )


def is_running(trial: Trial, solver: Adaptive, n_stops: int) -> jax.Array:
    """Whether another trial is due."""
    tried = trial.n_accepted + trial.n_rejected
    return (trial.stop < n_stops) & (trial.result == Result.SUCCESS) & (tried < solver.max_steps)


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
    h_next = h_used * solver.controller.factor(error, trial.error, tableau.embedded_order).astype(h.dtype)
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
    return after, Taken(accepted, landed, trial.t, h, trial.stop, step)


def finish(problem: Problem, trial: Trial, x: PyTree, reached: jax.Array) -> Solution:
    """A solution from the last trial; states that were not reached are NaN, and so are their gradients.

    Args:
      x: states at the asked times, or at t1.
      reached: boolean, a scalar or one for each asked time.
    """
    done = jnp.all(reached)
    result = jnp.where((trial.result == Result.SUCCESS) & ~done, Result.MAX_STEPS, trial.result)
    return Solution(
        x=poison(x, reached),
        aux=trial.aux,
        nfe=trial.nfe,
        n_accepted=trial.n_accepted,
        n_rejected=trial.n_rejected,
        result=result.astype(jnp.int32),
    )


def poison(x: PyTree, reached: jax.Array) -> PyTree:
    """`x` where `reached`, else NaN, by a product, so that gradients turn NaN too."""

    def leaf(a: jax.Array) -> jax.Array:
        factor = jnp.where(reached, 1.0, jnp.nan).astype(a.dtype)
        return a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim))

    return jax.tree.map(leaf, x)


def _next_stop(stops: jax.Array, t: jax.Array, sign: jax.Array) -> jax.Array:
    """Index of the first stop that lies ahead of `t`."""
    return jnp.sum(sign * (stops - t) <= 0).astype(jnp.int32)


def _smallest_step(solver: Adaptive, t: jax.Array, goal: jax.Array) -> jax.Array:
    if solver.min_step is not None:
        return jnp.asarray(solver.min_step, t.dtype)
    return 8 * jnp.finfo(t.dtype).eps * jnp.maximum(jnp.abs(t), jnp.abs(goal))
