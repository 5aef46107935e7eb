"""The adaptive checkpoint adjoint: gradients replayed on the accepted steps of the forward pass."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.gradients import treeverse
from ode_nets.gradients.aca_fixed import run_fixed
from ode_nets.gradients.closure import Closed, Inputs, add, as_cotangents, close_over, zero_cotangent, zeros
from ode_nets.gradients.outputs import follow_times, run_marked
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import Adaptive, FixedStep, Problem, Result, Solution
from ode_nets.integrate.adaptive import Run, finish, first_run, interpolate_step, next_run, run_adaptive
from ode_nets.integrate.trial import attempt, evaluator, is_running, outcome, stops_of
from ode_nets.stepping import rk_advance, rk_step

PyTree = Any


@dataclasses.dataclass(frozen=True)
class ACA:
    """The adaptive checkpoint adjoint (ACA algorithm 2, app. A).

    The forward pass keeps the times, sizes and starting states of accepted steps and nothing else. The
    backward pass replays each of them with its recorded size and takes one local vector-Jacobian product:
    no rejected trial, no search for step sizes, no error estimate and no stage that only serves one.
    Parameter cotangents add up in one tree. On the same accepted steps the gradient is that of `Direct`.

    Args:
      checkpoints: S, how many states are kept at once. While at most S steps are accepted nothing is computed
        twice. Beyond, states are thinned out as they come and recomputed from recorded step sizes, in as few
        passes as S states allow: at most one more forward pass while n_accepted <= S^2 / 4. `None` keeps
        every state in a buffer of `solver.max_steps` of them, which is allocated in full:
        max_steps * bytes(x0), e.g. 4096 * 16 MiB = 64 GiB for a state of [32, 64, 64, 32] in float32.

    With `FixedStep` and at least as many checkpoints as steps this is `Checkpointed("step")`.
    Reverse mode only.

    Raises:
      ValueError: for less than one checkpoint.
    """

    checkpoints: int | None = 32

    def __post_init__(self) -> None:
        if self.checkpoints is not None and self.checkpoints < 1:
            raise ValueError(f"checkpoints={self.checkpoints}: expected None or at least 1")

    def run(self, problem: Problem, solver: Adaptive | FixedStep) -> Solution:
        """Solve `problem` with `solver`."""
        if isinstance(solver, FixedStep):
            return run_marked(problem, partial(run_fixed, solver=solver, checkpoints=self.checkpoints))
        closed = close_over(problem)
        slots = solver.max_steps if self.checkpoints is None else min(self.checkpoints, solver.max_steps)
        stops = stops_of(problem, solver)
        run = _solve(closed, solver, slots, problem.on_domain, Inputs.of(problem, closed, solver))
        solution = finish(problem, solver, stops, run)
        return dataclasses.replace(solution, x=follow_times(problem, closed, solver, solution.x))


class _Record(NamedTuple):
    """What the backward pass knows of each accepted step, `[max_steps]` each."""

    t: jax.Array
    h: jax.Array
    stop: jax.Array
    """The stop that the step ended on, -1 for none."""


def _solve(closed: Closed, solver: Adaptive, slots: int, on_domain: bool, inputs: Inputs) -> Run:
    # Tolerances travel as arrays, so that the static part of the solver stays hashable under tracing.
    static = dataclasses.replace(solver, rtol=1.0, atol=0.0, first_step=None if solver.first_step is None else 1.0)

    @jax.custom_vjp
    def solve(inputs: Inputs) -> Run:
        return run_adaptive(inputs.problem(closed, on_domain), inputs.solver(static))

    def forward(inputs: Inputs) -> tuple[Run, Any]:
        problem = inputs.problem(closed, on_domain)
        run, store, record = _forward(problem, inputs.solver(static), slots)
        good = outcome(run.trial, len(stops_of(problem, solver))) == Result.SUCCESS
        return run, (inputs, store, record, run.trial.n_accepted, good)

    def backward(residuals: Any, cotangent: Run) -> tuple[Inputs]:
        return (_backward(closed, static, on_domain, residuals, cotangent),)

    solve.defvjp(forward, backward)
    return solve(refuse_forward_mode(inputs, "ACA(...)"))


def _forward(problem: Problem, solver: Adaptive, slots: int) -> tuple[Run, Store, _Record]:
    """Integrate, keeping the states of accepted steps in `slots` slots."""
    stops, n = stops_of(problem, solver), solver.max_steps
    start = first_run(problem, solver)
    time = start.trial.t.dtype
    record = _Record(jnp.zeros(n, time), jnp.zeros(n, time), jnp.zeros(n, jnp.int32))

    def body(carry: tuple[Run, Store, _Record]) -> tuple[Run, Store, _Record]:
        run, store, record = carry
        i = run.trial.n_accepted
        # What a rejected trial writes, the next trial of the same step overwrites.
        store = treeverse.keep(store, i, run.trial.x, n)
        after, taken = attempt(problem, solver, stops, run.trial)
        values = _Record(taken.t, taken.h, jnp.where(taken.landed, taken.stop, -1))
        record = treeverse.write(record, i, values)
        return next_run(problem, solver, run, after, taken), store, record

    carry = (start, treeverse.new_store(problem.x0, slots), record)
    return jax.lax.while_loop(lambda carry: is_running(carry[0].trial, solver, len(stops)), body, carry)


class _Cotangents(NamedTuple):
    x: PyTree
    t: jax.Array
    weights: PyTree
    stops: jax.Array
    ts: Any
    consts: Any


def _backward(
    closed: Closed, solver: Adaptive, on_domain: bool, residuals: Any, cotangent: Run
) -> Inputs:
    inputs, store, record, n_accepted, good = residuals
    problem, tableau = inputs.problem(closed, on_domain), solver.tableau
    stops = stops_of(problem, solver)
    sign = jnp.sign(problem.t1 - problem.t0)
    clipped, dense = cotangent.landed is not None, cotangent.dense is not None

    def local(i: jax.Array, x: PyTree, t: jax.Array, weights: PyTree, stops: jax.Array, consts: Any) -> Any:
        """Step i again: the state and time it ends with, its reports and, for the interpolant, its stages."""
        here = dataclasses.replace(problem, field=closed.field(consts), weights=weights)
        landed, goal = record.stop[i] >= 0, stops[record.stop[i]]
        h = jnp.where(landed, goal - t, record.h[i])
        # An interpolant may use the stage that otherwise only serves the error.
        step = rk_step(tableau, evaluator(here, tableau, sign), t, x, h, with_error=dense)
        t_next = jnp.where(landed, goal, t + h)
        return step.x, t_next, step.aux, ((h, x, [k for k, _ in step.stages]) if dense else ())

    def advance(i: jax.Array, x: PyTree) -> PyTree:
        t, stop = record.t[i], record.stop[i]
        h = jnp.where(stop >= 0, stops[stop] - t, record.h[i])
        return rk_advance(tableau, lambda j, t, x: evaluator(problem, tableau, sign)(j, t, x)[0], t, x, h)

    def pull(i: jax.Array, x: PyTree, ct: _Cotangents) -> _Cotangents:
        arguments = (x, record.t[i], inputs.weights, stops, inputs.consts)
        out, pullback = jax.vjp(lambda *a: local(i, *a), *arguments)
        ct_inside, ct_t = jax.tree.map(jnp.zeros_like, out[3]), jnp.zeros_like(ct.t)
        ct_ts = ct.ts
        if dense:
            ct_inside, ct_t, ct_ts = _pull_dense(
                solver, inputs.ts, cotangent.dense, record.t[i], out[1], out[3], ct_inside, ct_t, ct_ts
            )
        ct_x, j = ct.x, record.stop[i]
        if clipped:
            asked = (j >= 0) & (j < len(inputs.ts))
            ct_x = jax.tree.map(lambda a, b: a + jnp.where(asked, b[j], 0), ct_x, cotangent.landed)
        d_x, d_t, d_weights, d_stops, d_consts = pullback((ct_x, ct.t, cotangent.trial.aux, ct_inside))
        return _Cotangents(
            x=d_x,
            t=d_t + ct_t,
            weights=add(ct.weights, d_weights),
            stops=ct.stops + d_stops,
            ts=ct_ts,
            consts=add(ct.consts, d_consts),
        )

    # What a failed solve never reached does not depend on its inputs: derivatives of zero would be plausible.
    spoil = jnp.where(good, 0.0, jnp.nan)
    ct = _Cotangents(
        x=cotangent.trial.x,
        t=cotangent.trial.t,
        weights=zeros(inputs.weights),
        stops=jnp.zeros_like(stops),
        ts=None if inputs.ts is None else jnp.zeros_like(inputs.ts),
        consts=zeros(inputs.consts),
    )
    ct = jax.tree.map(lambda leaf: leaf + spoil.astype(leaf.dtype), ct)
    ct = treeverse.reverse(n_accepted, store, solver.max_steps, advance, pull, ct)
    return _gather(inputs, problem, solver, ct, cotangent)


def _gather(inputs: Inputs, problem: Problem, solver: Adaptive, ct: _Cotangents, cotangent: Run) -> Inputs:
    """Cotangents of the inputs, those of states asked for at t0 included."""
    ct_x0, clipped = ct.x, cotangent.landed is not None
    if (asked := cotangent.landed if clipped else cotangent.dense) is not None:
        at_start = jnp.sign(problem.t1 - problem.t0) * (jnp.asarray(problem.ts) - problem.t0) <= 0

        def from_start(a: jax.Array, b: jax.Array) -> jax.Array:
            return a + jnp.sum(jnp.where(at_start.reshape(-1, *[1] * (b.ndim - 1)), b, 0), axis=0)

        ct_x0 = jax.tree.map(from_start, ct_x0, asked)
    return Inputs(
        x0=ct_x0,
        weights=as_cotangents(inputs.weights, ct.weights),
        t0=ct.t,
        t1=ct.stops[-1],
        ts=ct.stops[:-1] if clipped else ct.ts,
        consts=as_cotangents(inputs.consts, ct.consts),
        tolerances=jax.tree.map(zero_cotangent, inputs.tolerances),
    )


def _pull_dense(
    solver: Adaptive,
    ts: jax.Array,
    ct_states: PyTree,
    t: jax.Array,
    t_next: jax.Array,
    inside: Any,
    ct_inside: Any,
    ct_t: jax.Array,
    ct_ts: jax.Array,
) -> tuple[Any, jax.Array, jax.Array]:
    """Add the cotangents of the asked times that one step's interpolant serves."""
    sign = jnp.sign(t_next - t)
    covered = (sign * (ts - t) > 0) & (sign * (ts - t_next) <= 0)
    first = jnp.argmax(covered).astype(jnp.int32)

    def body(carry: Any) -> Any:
        j, ct_inside, ct_t, ct_ts = carry
        h, x, slopes = inside
        state = lambda t, h, x, slopes, t_j: interpolate_step(solver.tableau, t, h, x, slopes, t_j)
        _, pullback = jax.vjp(state, t, h, x, slopes, ts[j])
        d_t, *d_inside, d_tj = pullback(jax.tree.map(lambda leaf: leaf[j], ct_states))
        return j + 1, jax.tree.map(jnp.add, ct_inside, tuple(d_inside)), ct_t + d_t, ct_ts.at[j].add(d_tj)

    end = first + jnp.sum(covered).astype(jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < end, body, (first, ct_inside, ct_t, ct_ts))[1:]
