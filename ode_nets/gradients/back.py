"""Back through the steps that a solve took, last to first, wherever the states before them come from.

Gradient methods of their own backward pass differ in that alone: what is kept of each step, and how the state before
it is found again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from ode_nets.gradients.outputs import follow_times, instantiate
from ode_nets.gradients.reverse_only import refuse_forward_mode, refuse_reverse_mode
from ode_nets.gradients.rules import standard
from ode_nets.integrate import Problem, Result, Solution, Solver
from ode_nets.integrate.loop import Keeper, Run, finish, loop, within
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, apart, read, select, this_lane, vary
from ode_nets.trees import Packing, Part, split, zero_cotangent

PyTree = Any


class Point(NamedTuple):
    """Where a solve stands before a round, and enough to go on from there.

    A round ends when a step is accepted. Of a single solve rounds are its accepted steps; among lanes they are the
    stretches in which none takes more than one step, and those that take none stand still. So every index is the same
    for all lanes, and what is kept is read and written in one piece.
    """

    clock: Clock
    x: PyTree
    """What the scheme carries."""


def round_of(kept: Any, clock: Clock) -> jax.Array:
    """The round that a clock stands in, by the `round` and `step` of the last trial that a keeper wrote down."""
    return kept.round + any_lane(clock.step > kept.step).astype(jnp.int32)


class Cotangents(NamedTuple):
    """What accumulates on the way back over the steps of a solve, last to first: cotangents of all that moves."""

    x: PyTree
    tau: Any
    """`None` unless times are differentiated; likewise `ts`."""
    ts: Any
    parameters: list[jax.Array]
    """Of all else that is differentiated."""
    after: Any
    """The clock after the round at hand, packed."""


Pull = Callable[[jax.Array, Point, Cotangents, Any], Cotangents]
"""`pull(i, point, cotangents, mine)`: the cotangents before round i, which began at the point; those after it in lanes
that have no such round, where `mine` is false."""


Walk = Callable[[Problem, Solver, Any, Point, Pull, Cotangents], Cotangents]
"""`walk(problem, solver, kept, end, pull, cotangents)`: pulls the cotangents after the last round through all of them,
last to first, with what the keeper has kept and where the solve has ended."""


def solve_and_return(
    problem: Problem, solver: Solver, dense: bool, name: str, keeper: Callable[[Problem, Solver], Keeper], walk: Walk
) -> Solution:
    """The solve, and in reverse mode, which it has alone, the way back; NaN all the way for a solve that failed.

    Args:
      name: of the gradient method, for what is refused.
    """
    problem, (arrays, frame) = refuse_forward_mode(problem, name), split(solver)

    @jax.custom_vjp
    def run(problem: Problem, arrays: list[Any]) -> Run:
        return _outputs(loop(problem, frame.fill(arrays), dense=dense)[0])

    def forward(problem: Problem, arrays: list[Any]) -> tuple[Run, Any]:
        problem, moving = _perturbed(problem)
        arrays, _ = _perturbed(arrays)
        solver = frame.fill(arrays)
        found, kept = loop(problem, solver, keeper(problem, solver), dense)
        good = finish(problem, solver, found).result == Result.SUCCESS
        return _outputs(found), (problem, moving, arrays, kept, Point(found.state.clock, found.state.x), good)

    def backward(residuals: Any, cotangent: Run) -> Any:
        problem, moving, arrays, kept, end, good = residuals
        ct = _backward(problem, moving, frame.fill(arrays), kept, end, good, cotangent, walk)
        return refuse_reverse_mode(ct, name), _mark_failed(jax.tree.map(zero_cotangent, arrays), good)

    run.defvjp(standard(forward), standard(backward), symbolic_zeros=True)
    return follow_times(problem, solver, finish(problem, solver, run(problem, arrays)))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Moving:
    """Which leaves of a tree are differentiated: a tree of booleans, known while a backward pass is traced."""

    tree: Any


def _perturbed(tree: PyTree) -> tuple[PyTree, Moving]:
    """The arrays that a forward rule with `symbolic_zeros` is given, and which of them are differentiated."""
    is_primal = lambda leaf: isinstance(leaf, CustomVJPPrimal)
    inexact = lambda value: jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    values = jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=is_primal)
    flags = jax.tree.map(lambda leaf: bool(leaf.perturbed and inexact(leaf.value)), tree, is_leaf=is_primal)
    return values, Moving(flags)


def _mark_failed(cotangents: Any, good: jax.Array) -> Any:
    """Cotangents of a solve that is `good`, else NaN: all others add up from them, and need no pass to be marked."""
    nothing = jnp.where(good, 0, jnp.nan)
    leaf = lambda a: a + nothing.astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a
    return jax.tree.map(leaf, cotangents)


def _outputs(run: Run) -> Run:
    return run._replace(state=run.state._replace(carry=None))


def _backward(
    problem: Problem, moving: Moving, solver: Solver, kept: Any, end: Point, good: Any, cotangent: Run, walk: Walk
) -> Problem:
    flags = moving.tree
    parameters = Part(*(dataclasses.replace(tree, x0=None, ts=None) for tree in (problem, flags)))
    timed = any(flag is True for flag in (flags.t0, flags.span, flags.sign, flags.ts))
    ct_states, ct_rows = cotangent.asked
    if all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(ct_rows)):
        ct_rows = None
    ct_end, ct_states, ct_rows = instantiate((cotangent.state, ct_states, ct_rows))
    inside = ct_rows is not None or not solver.lands(problem)
    clocks = Packing(end.clock)
    ct_aux = vary(ct_end.aux, problem.x0)

    def local(inputs: Any, x: PyTree, i: Any, tau: Any, end: Any, cursor: Any) -> Any:
        """What a step gives, as a function of what is differentiated."""
        arrays, ts, start = inputs
        tau, ts = tau if start is None else start, problem.ts if ts is None else ts
        here = dataclasses.replace(parameters.fill(arrays), x0=problem.x0, ts=ts)
        place = solver.place(here, i, tau, end, cursor)
        evaluate = evaluator(here, place).through(lambda slope: lambda x: apart(slope(apart(x, i)), i))
        step = solver.scheme.step(evaluate, x, place.shift(here), inside=inside, smooth=problem.smooth)
        row = (place.tau, place.h, x, step.inside) if inside else ()
        return step.x, place.end if timed else (), step.aux, row

    def pull(i: jax.Array, point: Point, ct: Cotangents, mine: Any) -> Cotangents:
        after = clocks.unpack(ct.after)
        # A lane that took no step in this round goes on from where it stands.
        mine = this_lane(mine & (after.step > point.clock.step))
        before = _passed_at(problem, solver, point.clock._replace(cursor=after.cursor), after.cursor)
        started = point.clock._replace(cursor=before)
        ts = None if ct.ts is None else problem.ts
        inputs = (parameters.chosen, ts, started.tau if timed else None)
        out, pullback = jax.vjp(lambda inputs, x: local(inputs, x, i, started.tau, after.tau, before), inputs, point.x)
        ct_x, ct_row, d_ts = ct.x, vary(jax.tree.map(jnp.zeros_like, out[3]), problem.x0), ct.ts
        if ct_rows is not None:
            ct_row = read(ct_rows, started.step)
        if problem.ts is not None:
            carry = (before, ct_x, ct_row, d_ts)
            served = jnp.where(mine, after.cursor, before)
            ct_x, ct_row, d_ts = _pull_asked(problem, solver, out[0], out[3], ct_states, served, carry)
        (d_parameters, more, d_tau), d_x = pullback((ct_x, ct.tau if timed else (), ct_aux, ct_row))
        new = Cotangents(
            x=d_x,
            tau=d_tau,
            ts=None,
            parameters=jax.tree.map(jnp.add, ct.parameters, d_parameters),
            after=clocks.pack(started),
        )
        new = select(mine, new, ct._replace(ts=None))
        if d_ts is not None and solver.lands(problem):
            d_ts = d_ts + jnp.where(mine, more, 0)
        return new._replace(ts=d_ts)

    start = Cotangents(
        x=ct_end.x,
        tau=ct_end.clock.tau if timed else None,
        ts=jnp.zeros_like(problem.ts) if problem.ts is not None and flags.ts else None,
        parameters=jax.tree.map(jnp.zeros_like, parameters.chosen),
        after=None,
    )
    start = vary(_mark_failed(start, good)._replace(after=clocks.pack(end.clock)), problem.x0)
    ct = walk(problem, solver, kept, end, pull, start)
    (ct_x,) = jax.vjp(solver.scheme.lift, problem.x0)[1](ct.x)
    if ct_states is not None:
        at_start = jnp.arange(problem.n_asked + 1) < clocks.unpack(ct.after).cursor
        total = lambda a, b: a + jnp.sum(jnp.where(at_start.reshape(-1, *[1] * a.ndim), b, 0), axis=0)
        ct_x = jax.tree.map(total, ct_x, ct_states)
    rest = parameters.cotangents(ct.parameters)
    ts = None if problem.ts is None else jnp.zeros_like(problem.ts) if ct.ts is None else ct.ts
    return dataclasses.replace(rest, x0=ct_x, ts=ts)


def _passed_at(problem: Problem, solver: Solver, clock: Clock, cursor: jax.Array) -> jax.Array:
    """How many of the first `cursor` asked times lie behind the clock."""
    if problem.ts is None:
        return cursor
    ahead = lambda j: (j > 0) & ~solver.passed(problem, jnp.maximum(j - 1, 0), clock)

    def body(j: jax.Array) -> jax.Array:
        return jnp.where(this_lane(ahead(j)), j - 1, j)

    return jax.lax.while_loop(lambda j: any_lane(ahead(j)), body, cursor)


def _pull_asked(
    problem: Problem, solver: Solver, x: PyTree, row: PyTree, ct_states: PyTree, end: jax.Array, carry: Any
) -> Any:
    """Add the cotangents of the asked times that one step serves, which ends in x, from the first of them on."""
    lands, raised = solver.lands(problem), jax.vjp(solver.scheme.lower, x)[1]

    def value(row: PyTree, ts: jax.Array) -> PyTree:
        tau, h, x, inside = row
        return within(problem, solver, Place(tau, h, tau + h), x, inside, ts)

    def body(carry: Any) -> Any:
        j, ct_x, ct_row, d_ts = carry
        mine = this_lane(j < end)
        at = jnp.minimum(j, problem.n_asked - 1)
        one = read(ct_states, at)
        if lands:
            new = (jax.tree.map(jnp.add, ct_x, *raised(one)), ct_row)
        else:
            _, pullback = jax.vjp(value, row, problem.ts[at])
            d_row, d_t = pullback(one)
            # Written and not selected, as it has an entry for every asked time.
            d_ts = None if d_ts is None else d_ts.at[at].add(jnp.where(mine, d_t, 0))
            new = (ct_x, jax.tree.map(jnp.add, ct_row, d_row))
        return jnp.where(mine, j + 1, j), *select(mine, new, (ct_x, ct_row)), d_ts

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] < end), body, carry)[1:]
