"""The adaptive checkpoint adjoint: gradients replayed on the accepted steps of the forward pass."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ode_nets.gradients import treeverse
from ode_nets.gradients.outputs import follow_times
from ode_nets.gradients.perturbed import Moving, instantiate, perturbed
from ode_nets.gradients.replay import replay
from ode_nets.gradients.reverse_only import refuse_forward_mode, refuse_reverse_mode
from ode_nets.gradients.rules import standard
from ode_nets.gradients.treeverse import Store
from ode_nets.integrate import Problem, Solution, Solver
from ode_nets.integrate.loop import Keeper, Run, finish, loop, within
from ode_nets.integrate.problem import Place, evaluator
from ode_nets.integrate.solution import Result
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, apart, read, room, select, this_lane, vary, write
from ode_nets.stepping import Step
from ode_nets.trees import Packing, Part, split, zero_cotangent

PyTree = Any
RECORDED = 256
"""Steps whose times are written down, or as many as take no more memory than the states that are kept. Where more are
taken, states of later ones are recomputed by searching for their steps again, so that no memory grows with the bound on
their number."""

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
        slots = self.slots(_size(problem.x0), solver.bound)
        if solver.length is not None and slots >= solver.length:
            return follow_times(problem, solver, replay(problem, solver, None, jax.checkpoint, dense))
        arrays, frame = split(solver)

        @jax.custom_vjp
        def run(problem: Problem, arrays: list[Any]) -> Run:
            return _outputs(loop(problem, frame.fill(arrays), dense=dense)[0])

        def forward(problem: Problem, arrays: list[Any]) -> tuple[Run, Any]:
            problem, moving = perturbed(problem)
            arrays, _ = perturbed(arrays)
            solver = frame.fill(arrays)
            found, kept = loop(problem, solver, _keeper(problem, solver, slots), dense)
            return _outputs(found), (problem, moving, arrays, kept, found.state.clock)

        def backward(residuals: Any, cotangent: Run) -> Any:
            problem, moving, arrays, kept, clock = residuals
            ct = _backward(problem, moving, frame.fill(arrays), kept, clock, cotangent)
            return refuse_reverse_mode(ct, repr(self)), jax.tree.map(zero_cotangent, arrays)

        run.defvjp(standard(forward), standard(backward), symbolic_zeros=True)
        return follow_times(problem, solver, finish(problem, solver, run(problem, arrays)))


def _outputs(run: Run) -> Run:
    return run._replace(state=run.state._replace(carry=None))


class Point(NamedTuple):
    """Where a solve stands before a round: what is kept of it, and enough to go on from there."""

    clock: Clock
    x: PyTree


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one, by round.

    A round ends when a step is accepted. Of a single solve rounds are its accepted steps; among lanes they are the
    stretches in which none takes more than one step, and those that take none stand still. So every index is the same
    for all lanes, and what is kept is read and written in one piece.
    """

    store: Store
    """Of `Point`s."""
    round: jax.Array
    """Number of the one at hand."""
    step: jax.Array
    """Steps accepted before it."""
    ends: Any
    """Where rounds begin, `[RECORDED + 1]`, and a spare row; `None` where the solver knows its steps."""
    edge: Any
    """The clock before the first round whose end is not recorded, packed; likewise."""


def _packing(clock: Clock, x: PyTree) -> Packing:
    return Packing(Point(clock, x))


def _size(x: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(x))


def _recorded(solver: Solver, x: PyTree, tau: jax.Array, slots: int) -> int:
    return min(max(RECORDED, slots * _size(x) // tau.dtype.itemsize), solver.bound)


def _keeper(problem: Problem, solver: Solver, slots: int) -> Keeper:
    n = _recorded(solver, problem.x0, problem.span, slots)

    def begin(clock: Clock, x: PyTree) -> Kept:
        store = treeverse.new_store(_packing(clock, x).pack(Point(clock, x)), slots)
        if solver.recorded:
            return Kept(store, jnp.int32(0), clock.step, None, None)
        return Kept(store, jnp.int32(0), clock.step, room(n + 1, clock.tau), Packing(clock).pack(clock))

    def keep(kept: Kept, clock: Clock, x: PyTree, place: Place, mine: Any) -> Kept:
        i = _round(kept, clock)
        kept = kept._replace(round=i, step=clock.step)
        kept = kept._replace(store=treeverse.keep(kept.store, i, _packing(clock, x).pack(Point(clock, x)), solver.bound))
        if kept.ends is None:
            return kept
        ends = write(kept.ends, jnp.minimum(i, n + 1), clock.tau)
        return kept._replace(ends=ends, edge=select(i == n, Packing(clock).pack(clock), kept.edge))

    return Keeper(begin, keep)


def _round(kept: Kept, clock: Clock) -> jax.Array:
    """The round that a clock stands in, which may be the one after that of the last trial."""
    return kept.round + any_lane(clock.step > kept.step).astype(jnp.int32)


class _Cotangents(NamedTuple):
    """What accumulates on the way back."""

    x: PyTree
    tau: Any
    """`None` unless times are differentiated; likewise `ts`."""
    ts: Any
    parameters: list[jax.Array]
    """Of all else that is differentiated."""
    after: Any
    """The clock after the round at hand, packed."""


def _backward(
    problem: Problem, moving: Moving, solver: Solver, kept: Kept, clock: Clock, cotangent: Run
) -> Problem:
    parameters = Part(dataclasses.replace(problem, x0=None, ts=None), dataclasses.replace(moving.tree, x0=None, ts=None))
    flags = moving.tree
    timed = any(flag is True for flag in (flags.t0, flags.span, flags.sign, flags.ts))
    ct_states, ct_rows = cotangent.asked
    if all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(ct_rows)):
        ct_rows = None
    ct_end, ct_states, ct_rows = instantiate((cotangent.state, ct_states, ct_rows))
    inside = ct_rows is not None or not solver.lands(problem)
    packing, clocks = _packing(clock, problem.x0), Packing(clock)

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

    def pull(i: jax.Array, packed: Any, ct: _Cotangents) -> _Cotangents:
        point, after = packing.unpack(packed), clocks.unpack(ct.after)
        before = _passed_at(problem, solver, point.clock._replace(cursor=after.cursor), after.cursor)
        started = point.clock._replace(cursor=before)
        ts = None if ct.ts is None else problem.ts
        inputs = (parameters.chosen, ts, started.tau if timed else None)
        out, pullback = jax.vjp(lambda inputs, x: local(inputs, x, i, started.tau, after.tau, before), inputs, point.x)
        ct_x, ct_row, d_ts = ct.x, jax.tree.map(jnp.zeros_like, out[3]), ct.ts
        if ct_rows is not None:
            ct_row = read(ct_rows, started.step)
        if problem.ts is not None:
            carry = (before, ct_x, ct_row, d_ts)
            ct_x, ct_row, d_ts = _pull_asked(problem, solver, out[3], ct_states, after.cursor, carry)
        (d_parameters, more, d_tau), d_x = pullback((ct_x, ct.tau if timed else (), ct_end.aux, ct_row))
        new = _Cotangents(
            x=d_x,
            tau=d_tau,
            ts=None if d_ts is None else d_ts + more,
            parameters=jax.tree.map(jnp.add, ct.parameters, d_parameters),
            after=clocks.pack(started),
        )
        # A lane that took no step in this round goes on from where it stands.
        return select(this_lane(after.step > started.step), new, ct)

    start = _Cotangents(
        x=ct_end.x,
        tau=ct_end.clock.tau if timed else None,
        ts=jnp.zeros_like(problem.ts) if problem.ts is not None and flags.ts else None,
        parameters=jax.tree.map(jnp.zeros_like, parameters.chosen),
        after=clocks.pack(clock),
    )
    start = vary(start, problem.x0)

    def advance(i: jax.Array, packed: Any) -> Any:
        return packing.pack(_advance(problem, solver, kept, i, packing.unpack(packed)))

    ct = treeverse.reverse(_round(kept, clock), kept.store, solver.bound, advance, pull, start)
    ct_x = ct.x
    if ct_states is not None:
        at_start = jnp.arange(problem.n_asked + 1) < clocks.unpack(ct.after).cursor
        total = lambda a, b: a + jnp.sum(jnp.where(at_start.reshape(-1, *[1] * a.ndim), b, 0), axis=0)
        ct_x = jax.tree.map(total, ct_x, ct_states)
    rest = parameters.cotangents(ct.parameters)
    ts = None if problem.ts is None else jnp.zeros_like(problem.ts) if ct.ts is None else ct.ts
    return dataclasses.replace(rest, x0=ct_x, ts=ts)


def _advance(problem: Problem, solver: Solver, kept: Kept, i: jax.Array, point: Point) -> Point:
    """The point after a round: by steps that are known, or by searching for them again."""
    step = lambda place, x, error: solver.scheme.advance(
        evaluator(problem, place), x, place.shift(problem), error=error
    )
    n_known = solver.bound if kept.ends is None else kept.ends.shape[0] - 2
    if n_known >= solver.bound:
        clock, x = point
        if solver.recorded:
            place, moved = solver.place(problem, i, None, None, None), i < solver.count()
        else:
            end = read(kept.ends, i + 1)
            place, moved = Place(clock.tau, end - clock.tau, end), end > clock.tau
        after = Point(clock._replace(tau=place.end, step=clock.step + 1), step(place, x, False)[0])
        return select(this_lane(moved), after, point)
    late = i >= n_known
    packing = _packing(point.clock, point.x)

    def trial(carry: Any) -> Any:
        clock, x = packing.unpack(carry[0])
        end, place = read(kept.ends, jnp.minimum(i + 1, n_known)), solver.propose(problem, clock)
        place = select(late, place, Place(clock.tau, end - clock.tau, end))
        new, error = step(place, x, late)
        judged, accepted = solver.judge(problem, clock, place, x, Step(new, error, (), (), None, None, None, 0))
        mine = this_lane(jnp.where(late, solver.running(clock), end > clock.tau))
        known = clock._replace(tau=end, step=clock.step + 1)
        clock = select(mine, select(late, judged, known), clock)
        moved = mine & (accepted | ~late)
        over = any_lane(moved) | ~any_lane(solver.running(clock)) | ~late
        return packing.pack(Point(clock, select(moved, new, x))), over

    over = any_lane(point.clock.step < 0)
    packed, _ = jax.lax.while_loop(lambda carry: ~carry[1], trial, (packing.pack(point), over))
    point = packing.unpack(packed)
    return point._replace(clock=select(i + 1 == n_known, Packing(point.clock).unpack(kept.edge), point.clock))


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
            moved = None if d_ts is None else d_ts.at[at].add(d_t)
            new = (ct_x, jax.tree.map(jnp.add, ct_row, d_row), moved)
        return jnp.where(mine, j + 1, j), *select(mine, new, (ct_x, ct_row, d_ts))

    return jax.lax.while_loop(lambda carry: any_lane(carry[0] < end), body, carry)[1:]
