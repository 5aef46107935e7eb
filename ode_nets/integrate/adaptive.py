"""Adaptive integration: the loop over trial steps, and the states at asked times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.integrate.problem import Problem, PyTree, Result, Solution
from ode_nets.integrate.solvers import Adaptive
from ode_nets.integrate.trial import Taken, Trial, attempt, begin, is_running, outcome, stops_of
from ode_nets.stepping import Stage
from ode_nets.tableaus import Tableau


class Run(NamedTuple):
    """An adaptive solve after its loop, before its outputs are sorted out."""

    trial: Trial
    landed: PyTree
    """States at the asked times that steps are clipped to, leaves `[len(ts), ...]`, x0 where no step has landed;
    `None` where steps are not."""
    dense: PyTree
    """States at the asked times by interpolation, leaves `[len(ts), ...]`; `None` where steps are clipped."""


def integrate_adaptive(problem: Problem, solver: Adaptive) -> Solution:
    """Steps until t1, as many as it takes, in a `while_loop`.

    Returns:
      `Solution`; states at times that were not reached are NaN, with a result code that says why.

    Not differentiable in reverse mode; `integrate_adaptive_bounded` is.
    """
    return finish(problem, solver, stops_of(problem, solver), run_adaptive(problem, solver))


def run_adaptive(problem: Problem, solver: Adaptive) -> Run:
    """Trials in a `while_loop` until t1 or a failure: what `integrate_adaptive` makes a solution of with `finish`."""
    stops = stops_of(problem, solver)

    def body(run: Run) -> Run:
        after, taken = attempt(problem, solver, stops, run.trial)
        return next_run(problem, solver, run, after, taken)

    return jax.lax.while_loop(
        lambda run: is_running(run.trial, solver, len(stops)), body, first_run(problem, solver)
    )


def integrate_adaptive_bounded(
    problem: Problem, solver: Adaptive, *, transform: Callable[[Callable], Callable] = lambda step: step
) -> Solution:
    """The same steps in a `scan` over `solver.max_steps` trials, those not needed left out.

    Args:
      transform: wraps the function of one trial, e.g. `jax.checkpoint`.

    Differentiable in both modes. Reverse mode reserves memory for `max_steps` trials, rejected ones and ones
    never taken included.
    """
    stops = stops_of(problem, solver)
    dense = problem.ts is not None and solver.outputs == "dense"

    def taken_of(trial: Trial) -> tuple[Trial, Taken]:
        return attempt(problem, solver, stops, trial)

    shapes = jax.eval_shape(taken_of, begin(problem, solver))[1]
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(carry: tuple[Trial, PyTree], _: None) -> tuple[tuple[Trial, PyTree], Any]:
        trial, landed = carry
        running = is_running(trial, solver, len(stops))
        after, taken = jax.lax.cond(running, transform(taken_of), lambda trial: (trial, nothing), trial)
        if landed is not None:
            landed = write_landed(landed, taken)
        return (after, landed), ((taken, trial.x) if dense else None)

    run = first_run(problem, solver)
    (trial, landed), steps = jax.lax.scan(body, (run.trial, run.landed), None, length=solver.max_steps)
    states = run.dense
    if dense:

        def at(t: jax.Array, start: PyTree) -> PyTree:
            index = jnp.argmax(_covers(steps[0], t))
            taken, x = jax.tree.map(lambda leaf: leaf[index], steps)
            state = interpolate_step(
                solver.tableau, taken.t, taken.h, x, [k for k, _ in taken.step.stages], t
            )
            return jax.tree.map(lambda a, b: jnp.where(t == problem.t0, a, b), start, state)

        states = jax.vmap(at, in_axes=(0, None))(jnp.asarray(problem.ts), problem.x0)
    return finish(problem, solver, stops, Run(trial, landed, states))


def first_run(problem: Problem, solver: Adaptive) -> Run:
    """Before the first trial, with room for the states at all asked times."""
    room = None
    if problem.ts is not None:
        n = len(problem.ts)
        room = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), problem.x0)
    dense = solver.outputs == "dense"
    return Run(begin(problem, solver), landed=None if dense else room, dense=room if dense else None)


def next_run(problem: Problem, solver: Adaptive, run: Run, after: Trial, taken: Taken) -> Run:
    """A run after one more trial: `after` where it stands then, with what the trial `taken` adds to the outputs."""
    landed = None if run.landed is None else write_landed(run.landed, taken)
    dense = None if run.dense is None else _write_dense(problem, solver.tableau, run, taken)
    return Run(after, landed, dense)


def write_landed(landed: PyTree, taken: Taken) -> PyTree:
    """Store the state of an accepted step at the asked time that it landed on."""
    n_asked = len(jax.tree.leaves(landed)[0])
    # The stop behind the asked times is t1.
    hit = taken.accepted & taken.landed & (taken.stop < n_asked)

    def leaf(all_: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(all_, jnp.where(hit, new, all_[taken.stop]), taken.stop, 0)

    return jax.tree.map(leaf, landed, taken.step.x)


def finish(problem: Problem, solver: Adaptive, stops: jax.Array, run: Run) -> Solution:
    """The solution of a finished loop: NaN, in value and in gradient, at times that were not reached."""
    trial = run.trial
    if problem.ts is None:
        x, reached = trial.x, trial.stop > 0
    elif run.dense is not None:
        sign = jnp.sign(jnp.asarray(problem.t1 - problem.t0))
        x, reached = run.dense, sign * (jnp.asarray(problem.ts) - trial.t) <= 0
    else:
        # Equal times share the slot of the first of them, the only one that is landed on.
        slot = jnp.argmax(stops == stops[:-1, None], axis=1)
        x, reached = jax.tree.map(lambda leaf: leaf[slot], run.landed), slot < trial.stop
    reached = reached & (trial.result != Result.UNSORTED_TIMES)
    return Solution(
        x=poison(x, reached),
        aux=trial.aux,
        nfe=trial.nfe,
        n_accepted=trial.n_accepted,
        n_rejected=trial.n_rejected,
        result=outcome(trial, len(stops)),
    )


def poison(x: PyTree, good: jax.Array) -> PyTree:
    """`x` where `good`, else NaN, by a product, so that gradients turn NaN too."""

    def leaf(a: jax.Array) -> jax.Array:
        factor = jnp.where(good, 1.0, jnp.nan).astype(a.dtype)
        return a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim))

    return jax.tree.map(leaf, x)


def interpolate_step(
    tableau: Tableau, t_n: jax.Array, h: jax.Array, x_n: PyTree, slopes: list[PyTree], t: jax.Array
) -> PyTree:
    """The state inside a step, by the tableau's own interpolant.

        x(t_n + s h) = x_n + h * sum_i b_i(s) k_i

    Args:
      t_n, h, x_n, slopes: the step: its start, size, first state and stages.
      t: time between its ends, scalar.
    """
    s = (t - t_n) / jnp.where(h == 0, 1.0, h)
    used = []
    for polynomial, k in zip(tableau.b_dense or (), slopes, strict=True):
        if any(polynomial):
            weight: Any = 0.0
            for coefficient in reversed(polynomial):
                weight = (weight + float(coefficient)) * s
            used.append((weight, k))

    def leaf(a: jax.Array, *ks: jax.Array) -> jax.Array:
        moved = sum(w.astype(a.dtype) * k for (w, _), k in zip(used, ks, strict=True))
        return a + h.astype(a.dtype) * moved

    return jax.tree.map(leaf, x_n, *(k for _, k in used))


def _covers(taken: Taken, t: jax.Array) -> jax.Array:
    """Whether `t` lies in an accepted step, its end included and its start not."""
    sign = jnp.sign(taken.h)
    return taken.accepted & (sign * (t - taken.t) > 0) & (sign * (t - taken.t_next) <= 0)


def _write_dense(problem: Problem, tableau: Tableau, run: Run, taken: Taken) -> PyTree:
    """Fill in the asked times that an accepted step has passed."""
    ts = jnp.asarray(problem.ts)
    stages: list[Stage] = list(taken.step.stages)
    inside = _covers(taken, ts)
    first = jnp.argmax(inside).astype(jnp.int32)

    def body(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        j, states = carry
        state = interpolate_step(tableau, taken.t, taken.h, run.trial.x, [k for k, _ in stages], ts[j])
        return j + 1, jax.tree.map(lambda all_, one: all_.at[j].set(one), states, state)

    end = first + jnp.sum(inside).astype(jnp.int32)
    return jax.lax.while_loop(lambda carry: carry[0] < end, body, (first, run.dense))[1]
