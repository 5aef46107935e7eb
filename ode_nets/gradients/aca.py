"""The adaptive checkpoint adjoint: gradients replayed on the accepted steps of the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.gradients import treeverse
from ode_nets.gradients.outputs import follow_times
from ode_nets.gradients.replay import replay
from ode_nets.gradients.reverse_only import refuse_forward_mode, refuse_reverse_mode
from ode_nets.gradients.rules import standard
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import Problem, Solution, Solver
from ode_nets.integrate.loop import Keeper, Run, finish, loop, within
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.integrate.solution import Result
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, read, room, select, this_lane, vary, write
from ode_nets.stepping import Step
from ode_nets.trees import add, as_cotangents, split, zero_cotangent, zeros

PyTree = Any
RECORDED = 256
"""Steps whose times are written down. Where more are taken, states of later ones are recomputed by searching for their
steps again, so that no memory grows with the bound on their number."""

FEW, MANY, MEBIBYTE = 32, 128, 2**20
"""States that `ACA()` keeps: of large ones few, of small ones many, as long as they fit into a mebibyte."""


@dataclasses.dataclass(frozen=True)
class ACA:
    """The adaptive checkpoint adjoint (ACA algorithm 2, app. A).

    The forward pass keeps the times and starting states of accepted steps and nothing else. The backward pass takes
    each of them once more with its own size, and one local vector-Jacobian product: no rejected trial, no search for
    step sizes, no error estimate and no stage that only serves one. Parameter cotangents add up in one tree. On the
    same accepted steps the gradient is that of `Direct`.

    Args:
      checkpoints: S, how many states are kept at once. While at most S steps are accepted nothing is computed
        twice. Beyond, states are thinned out as they come and recomputed, in as few passes as S states allow: at most
        one more forward pass while n_accepted <= S^2 / 4. Recomputed are steps of recorded size up to the 256th, and
        beyond that their sizes are searched for again. `None` keeps every state, in a buffer of `max_steps` of
        them, which is allocated in full: max_steps * bytes(x0), e.g. 4096 * 16 MiB = 64 GiB for a state of
        [32, 64, 64, 32] in float32. The default, `"auto"`, is 32, and of small states as many as fit into 1 MiB, up to
        128.

    Memory does not depend on `max_steps`, but for `None`. On a known number of steps with at least as many checkpoints
    this is `Checkpointed("step")`. Reverse mode only.

    Raises:
      ValueError: for less than one checkpoint.

    Example:
        >>> ACA(8)
        ACA(checkpoints=8)
    """

    checkpoints: int | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        n = self.checkpoints
        if n not in (None, "auto") and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"checkpoints={n!r}: expected None or at least 1, or 'auto'")

    def slots(self, size: int, bound: int) -> int:
        """How many states of `size` bytes are kept of at most `bound` steps."""
        if self.checkpoints == "auto":
            return min(max(FEW, min(MANY, MEBIBYTE // max(size, 1))), bound)
        return bound if self.checkpoints is None else min(self.checkpoints, bound)

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        problem = refuse_forward_mode(problem, repr(self))
        slots = self.slots(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(problem.x0)), solver.bound)
        if solver.length is not None and slots >= solver.length:
            return follow_times(problem, solver, replay(problem, solver, None, jax.checkpoint, dense))
        arrays, frame = split(solver)

        @jax.custom_vjp
        def run(problem: Problem, arrays: list[Any]) -> Run:
            return _outputs(loop(problem, frame.fill(arrays), dense=dense)[0])

        def forward(problem: Problem, arrays: list[Any]) -> tuple[Run, Any]:
            solver = frame.fill(arrays)
            found, kept = loop(problem, solver, _keeper(problem, solver, slots), dense)
            return _outputs(found), (problem, arrays, kept, found.state.clock)

        def backward(residuals: Any, cotangent: Run) -> Any:
            problem, arrays, kept, clock = residuals
            ct = _backward(problem, frame.fill(arrays), kept, clock, cotangent)
            return refuse_reverse_mode(ct, repr(self)), jax.tree.map(zero_cotangent, arrays)

        run.defvjp(standard(forward), standard(backward))
        return follow_times(problem, solver, finish(problem, solver, run(problem, arrays)))


def _outputs(run: Run) -> Run:
    return run._replace(state=run.state._replace(carry=None))


class Point(NamedTuple):
    """Where a step begins: what is kept of it, and enough to go on from there."""

    tau: jax.Array
    h: jax.Array
    """Size that the step was given."""
    error: jax.Array
    """Of the step before, for the controller."""
    x: PyTree


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one."""

    store: Store
    """Of `Point`s."""
    ends: Any
    """Where steps begin, `[RECORDED + 1]`; `None` where the solver knows."""
    edge: Any
    """`(h, error)` of the first step whose end is not recorded; likewise."""


def _capacity(solver: Solver) -> int:
    return min(RECORDED, solver.bound)


def _keeper(problem: Problem, solver: Solver, slots: int) -> Keeper:
    n = _capacity(solver)

    def begin(clock: Clock, x: PyTree) -> Kept:
        store = treeverse.new_store(Point(clock.tau, clock.h, clock.error, x), slots)
        if solver.recorded:
            return Kept(store, None, None)
        return Kept(store, room(n + 1, clock.tau), (clock.h, clock.error))

    def keep(kept: Kept, clock: Clock, x: PyTree, place: Place, mine: Any) -> Kept:
        i = clock.step
        point = Point(clock.tau, place.h, clock.error, x)
        store = treeverse.keep(kept.store, i, point, solver.bound, mine)
        if kept.ends is None:
            return kept._replace(store=store)
        ends = write(kept.ends, jnp.where(mine & (i <= n), i, n + 1), clock.tau)
        return Kept(store, ends, select(mine & (i == n), (place.h, clock.error), kept.edge))

    return Keeper(begin, keep)


class _Cotangents(NamedTuple):
    """What accumulates on the way back."""

    x: PyTree
    tau: jax.Array
    problem: Problem
    """Of all but the initial state, whose place is empty."""
    end: jax.Array
    """Where the step at hand ends: where the one after it begins."""
    cursor: jax.Array
    """Asked times up to there."""


def _backward(problem: Problem, solver: Solver, kept: Kept, clock: Clock, cotangent: Run) -> Problem:
    parameters = dataclasses.replace(problem, x0=None)
    ct_states, ct_rows = cotangent.asked
    inside = ct_rows is not None or not solver.lands(problem)
    n_known = _capacity(solver)

    def local(parameters: Problem, tau: jax.Array, x: PyTree, i: Any, end: Any, cursor: Any) -> Any:
        here = dataclasses.replace(parameters, x0=problem.x0)
        place = solver.place(here, i, tau, end, cursor)
        step = solver.scheme.step(
            evaluator(here, place), x, place.shift(here), inside=inside, smooth=problem.smooth
        )
        row = (place.tau, place.h, x, step.inside) if inside else ()
        return step.x, place.end, step.aux, row

    def pull(i: jax.Array, point: Point, ct: _Cotangents) -> _Cotangents:
        started = Clock(point.tau, point.h, i, jnp.int32(0), point.error, ct.cursor, jnp.int32(0))
        before = _passed_at(problem, solver, started, ct.cursor)
        again = lambda parameters, tau, x: local(parameters, tau, x, i, ct.end, before)
        out, pullback = jax.vjp(again, parameters, point.tau, point.x)
        ct_x, ct_row, d_ts = ct.x, jax.tree.map(jnp.zeros_like, out[3]), ct.problem.ts
        if ct_rows is not None:
            ct_row = read(ct_rows, i)
        if problem.ts is not None:
            carry = (before, ct_x, ct_row, d_ts)
            ct_x, ct_row, d_ts = _pull_asked(problem, solver, out[3], ct_states, ct.cursor, carry)
        d_parameters, d_tau, d_x = pullback((ct_x, ct.tau, cotangent.state.aux, ct_row))
        total = dataclasses.replace(add(ct.problem, d_parameters), ts=None)
        if d_ts is not None:
            total = dataclasses.replace(total, ts=d_ts + d_parameters.ts)
        return _Cotangents(d_x, d_tau, total, point.tau, before)

    def advance(i: jax.Array, point: Point) -> Point:
        if solver.recorded:
            return _take(problem, solver, solver.place(problem, i, None, None, None), point)
        take = lambda: _take(problem, solver, Place(point.tau, (end := read(kept.ends, i + 1)) - point.tau, end), point)
        if n_known >= solver.bound:
            return take()
        late = i >= n_known
        found = jax.lax.cond(any_lane(late), lambda: _search(problem, solver, i, point, late), lambda: point)
        taken = jax.lax.cond(any_lane(~late), take, lambda: point)
        size, error = kept.edge
        edge = Point(taken.tau, size, error, taken.x)
        return select(late, found, select(i + 1 == n_known, edge, taken))

    start = _Cotangents(
        x=cotangent.state.x,
        tau=cotangent.state.clock.tau,
        problem=zeros(parameters),
        end=clock.tau,
        cursor=clock.cursor,
    )
    start = vary(start, problem.x0)
    ct = treeverse.reverse(clock.step, kept.store, solver.bound, advance, pull, start)
    ct_x = ct.x
    if ct_states is not None:
        at_start = jnp.arange(problem.n_asked + 1) < ct.cursor
        total = lambda a, b: a + jnp.sum(jnp.where(at_start.reshape(-1, *[1] * a.ndim), b, 0), axis=0)
        ct_x = jax.tree.map(total, ct_x, ct_states)
    return dataclasses.replace(as_cotangents(parameters, ct.problem), x0=ct_x)


def _take(problem: Problem, solver: Solver, place: Place, point: Point) -> Point:
    """The point after a step whose size is known."""
    x, _ = solver.scheme.advance(evaluator(problem, place), point.x, place.shift(problem))
    return Point(place.end, point.h, point.error, x)


def _search(problem: Problem, solver: Solver, i: jax.Array, point: Point, mine: jax.Array) -> Point:
    """The point after a step whose size is to be found again, from the size that it was given first."""
    zero = jnp.int32(0)
    cursor = zero
    if problem.ts is not None:
        cursor = jnp.searchsorted(problem.ts, point.tau, side="right").astype(jnp.int32)
    clock = Clock(point.tau, point.h, i, zero, point.error, cursor, zero)
    due = lambda carry: mine & (carry[0].step == i) & (carry[0].result == Result.SUCCESS)

    def body(carry: tuple[Clock, PyTree]) -> tuple[Clock, PyTree]:
        clock, x = carry
        going = this_lane(due(carry))
        place = solver.propose(problem, clock)
        after, error = solver.scheme.advance(evaluator(problem, place), x, place.shift(problem), error=True)
        step = Step(after, error, (), (), None, None, None, zero)
        new, accepted = solver.judge(problem, clock, place, x, step)
        return select(going, new, clock), select(accepted & going, after, x)

    clock, x = jax.lax.while_loop(lambda carry: any_lane(due(carry)), body, (clock, point.x))
    return Point(clock.tau, clock.h, clock.error, x)


def _passed_at(problem: Problem, solver: Solver, clock: Clock, cursor: jax.Array) -> jax.Array:
    """How many of the first `cursor` asked times lie behind the clock."""
    if problem.ts is None:
        return cursor
    ahead = lambda j: (j > 0) & ~solver.passed(problem, jnp.maximum(j - 1, 0), clock)

    def body(j: jax.Array) -> jax.Array:
        return jnp.where(this_lane(ahead(j)), j - 1, j)

    return jax.lax.while_loop(lambda j: any_lane(ahead(j)), body, cursor)


def _pull_asked(problem: Problem, solver: Solver, row: PyTree, ct_states: PyTree, end: jax.Array, carry: Any) -> Any:
    """Add the cotangents of the asked times that one step serves, from the first of them on."""
    lands = solver.lands(problem)

    def value(row: PyTree, ts: jax.Array) -> PyTree:
        tau, h, x, inside = row
        return within(problem, solver, Place(tau, h, tau + h), x, inside, ts)

    def body(carry: Any) -> Any:
        j, ct_x, ct_row, d_ts = carry
        mine = this_lane(j < end)
        at = jnp.minimum(j, problem.n_asked - 1)
        one = read(ct_states, at)
        if lands:
            new = (jax.tree.map(jnp.add, ct_x, one), ct_row, d_ts)
        else:
            _, pullback = jax.vjp(value, row, problem.ts[at])
            d_row, d_t = pullback(one)
            new = (ct_x, jax.tree.map(jnp.add, ct_row, d_row), d_ts.at[at].add(d_t))
        return jnp.where(mine, j + 1, j), *select(mine, new, (ct_x, ct_row, d_ts))

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] < end), body, carry)[1:]
