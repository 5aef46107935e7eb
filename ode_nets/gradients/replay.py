"""Steps taken again: what every way back through a solve is made of.

Once a solve is over its steps are known, whichever way they were found. Taking them again, with their sizes as
constants, is a differentiable function; gradient methods differ in what of it they keep and what they compute anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.integrate.loop import Asked, Keeper, Run, State, finish, loop, within
from ode_nets.integrate.problem import Place, Problem, WeightFunction, evaluator
from ode_nets.integrate.program import zeros_of
from ode_nets.integrate.solution import Result, Solution
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, read, room, select, this_lane, vary, write
from ode_nets.stepping import Step

PyTree = Any
Transform = Callable[[Callable], Callable]


class Record(NamedTuple):
    """The steps of a solve that found its own."""

    tau: jax.Array
    """Where each begins, `[bound + 1]`, and after the last of them where that ends."""
    clock: Clock
    """After the last."""
    nfe: jax.Array


def search(problem: Problem, solver: Any) -> Record:
    """Solve without derivatives, and write down where its steps begin and end: `[max_steps + 1]` times."""

    def keep(tau: jax.Array, clock: Clock, x: PyTree, mine: Any) -> jax.Array:
        return write(tau, jnp.where(mine, clock.step, solver.bound), clock.tau)

    run, tau = loop(problem, solver, Keeper(lambda clock, x: room(solver.bound, clock.tau), keep))
    clock = run.state.clock
    return Record(write(tau, clock.step, clock.tau), clock, run.state.nfe)


class Row(NamedTuple):
    """What the outputs of a solve need of one step; of all steps, the same with leaves `[max_steps, ...]`.

    Attributes:
      end: the state after it, like `x0`, where asked times are ends of steps; else `()`.
      inside: `(tau, h, x, inside)`, where what lies between is needed: where the step begins and its size, scalars,
        what the scheme carried there, and what its interpolant reads; else `()`.
    """

    end: PyTree
    inside: PyTree


class _Along(NamedTuple):
    x: PyTree
    tau: jax.Array
    aux: PyTree
    nfe: jax.Array
    good: jax.Array


def replay(problem: Problem, solver: Any, record: Record | None, transform: Transform, dense: bool = False) -> Solution:
    """The solve as a bounded scan over its steps, which is differentiable in both modes.

    Args:
      record: of the search; `None` where the solver knows its steps.
      transform: wraps the function of one step, e.g. `jax.checkpoint`.

    Cost: one compiled step whatever their number. Steps that were not needed are skipped: by a condition that is one
    for all lanes, so that under `jax.vmap` as many are taken as the lane with most of them takes.
    """
    inside = dense or not solver.lands(problem)
    zero = jnp.zeros_like(problem.span)
    x0, aux = solver.scheme.lift(problem.x0), zeros_of(problem.aux_shapes())
    start = vary(_Along(x0, zero, aux, jnp.int32(0), jnp.asarray(True)), problem.x0)

    def advance(along: _Along, place: Place, weights: PyTree = None) -> tuple[_Along, PyTree]:
        """The step at a place, and what the outputs need of it."""
        step = solver.scheme.step(
            evaluator(problem, place, weights), along.x, place.shift(problem), inside=inside, smooth=problem.smooth
        )
        row = row_of(problem, solver, place, along.x, step, inside)
        good = along.good if step.good is None else along.good & step.good
        total = jax.tree.map(jnp.add, along.aux, step.aux)
        return _Along(step.x, place.end, total, along.nfe + step.nfe, good), row

    if solver.length is not None:
        along, rows = _by_section(problem, solver, advance, transform, start)
        n, clock = jnp.int32(solver.length), solver.begin(problem)[0]
        ends = None
    else:
        clock = solver.begin(problem)[0] if record is None else record.clock
        n = solver.count() if record is None else clock.step
        ends = None if record is None else jax.lax.stop_gradient(record.tau[1 : solver.bound + 1])
        along, rows = _while_due(problem, solver, advance, transform, start, n, ends)
    if record is None:
        result = jnp.where(along.good | (clock.result != Result.SUCCESS), clock.result, Result.NON_FINITE)
        clock = clock._replace(tau=problem.span, step=n, result=result.astype(jnp.int32))
        cursor = jnp.where(solver.arrived(clock), problem.n_asked, 0)
        clock = clock._replace(cursor=cursor.astype(jnp.int32))
    states = None if problem.ts is None else asked_states(problem, solver, rows, n, ends)
    state = State(clock, along.x, None, along.aux, along.nfe if record is None else record.nfe)
    return finish(problem, solver, vary(Run(state, Asked(states, rows.inside if dense else None)), problem.x0))


def _by_section(
    problem: Problem, solver: Any, advance: Any, transform: Transform, start: _Along
) -> tuple[_Along, PyTree]:
    """A scan over sections of the weights and over the steps inside each: a step's gradient touches its section."""
    n, weights = solver.length, problem.weights
    exact = problem.exact and isinstance(weights, WeightFunction)
    n_sections = weights.n_sections(n) if exact else 1
    per_section = n // n_sections

    @transform
    def step(along: _Along, section: PyTree, i: jax.Array, local: jax.Array) -> tuple[_Along, PyTree]:
        place = solver.place(problem, i, None, None, None)
        if exact:
            # The one step of a section finds its coefficient without a search.
            place = place._replace(exact=(0, 1) if per_section == 1 else (local, per_section))
        return advance(along, place, section)

    def steps(along: _Along, inputs: Any) -> tuple[_Along, PyTree]:
        section, index = inputs
        one = lambda along, local: step(along, section, index * per_section + local, local)
        if per_section == 1:
            along, row = one(along, jnp.int32(0))
            return along, jax.tree.map(lambda leaf: leaf[None], row)
        return jax.lax.scan(one, along, jnp.arange(per_section, dtype=jnp.int32))

    if n_sections == 1:
        return steps(start, (weights, jnp.int32(0)))
    index = jnp.arange(n_sections, dtype=jnp.int32)
    along, rows = jax.lax.scan(steps, start, (weights.sections(n_sections), index))
    return along, jax.tree.map(lambda leaf: leaf.reshape(n, *leaf.shape[2:]), rows)


def _while_due(
    problem: Problem, solver: Any, advance: Any, transform: Transform, start: _Along, n: Any, ends: Any
) -> tuple[_Along, PyTree]:
    """A scan over as many steps as there may be."""
    clips = not solver.recorded and solver.lands(problem) and problem.ts is not None

    @transform
    def step(along: _Along, i: jax.Array) -> tuple[_Along, PyTree]:
        tau = jax.lax.stop_gradient(along.tau)
        cursor = jnp.searchsorted(jax.lax.stop_gradient(problem.ts), tau, side="right") if clips else None
        return advance(along, solver.place(problem, i, along.tau, None if ends is None else ends[i], cursor))

    shapes = jax.eval_shape(lambda: step(start, jnp.int32(0))[1])

    def body(along: _Along, i: jax.Array) -> tuple[_Along, PyTree]:
        def due(along: _Along) -> tuple[_Along, PyTree]:
            after, row = step(along, i)
            return select(this_lane(i < n), after, along), row

        nothing = vary(zeros_of(shapes), start.x)
        return jax.lax.cond(any_lane(i < n), due, lambda along: (along, nothing), along)

    return jax.lax.scan(body, start, jnp.arange(solver.bound, dtype=jnp.int32))


def row_of(problem: Problem, solver: Any, place: Place, x: PyTree, step: Step, inside: bool) -> Row:
    """What a step from x leaves for the outputs."""
    ends = problem.ts is not None and solver.lands(problem)
    return Row(
        end=solver.scheme.lower(step.x) if ends else (),
        inside=(place.tau, place.h, x, step.inside) if inside else (),
    )


def asked_states(problem: Problem, solver: Any, rows: Row, n: jax.Array, ends: Any) -> PyTree:
    """The states at asked times, from what every step has left."""
    x0, lands = problem.x0, solver.lands(problem)
    if solver.recorded and lands:
        index = solver.indices(problem)
        return jax.tree.map(lambda start, rest: jnp.concatenate([start[None], rest])[index], x0, rows.end)
    steps = jnp.arange(solver.bound, dtype=jnp.int32)
    if ends is None:
        ends = jax.lax.stop_gradient(jax.vmap(lambda i: solver.place(problem, i, None, None, None).end)(steps))
    ends = jnp.where(steps < n, ends, jnp.inf)
    index = jnp.searchsorted(ends, jax.lax.stop_gradient(problem.ts), side="left").astype(jnp.int32)
    index = jnp.minimum(index, jnp.maximum(n - 1, 0))

    def at(i: jax.Array, ts: jax.Array) -> PyTree:
        if lands:
            state = read(rows.end, i)
        else:
            tau, h, x, stages = read(rows.inside, i)
            state = within(problem, solver, Place(tau, h, tau + h), x, stages, ts)
        return select(ts <= 0, x0, state)

    return jax.vmap(at)(index, problem.ts)
