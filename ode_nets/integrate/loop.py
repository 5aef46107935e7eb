"""The one loop: a scheme takes the steps of a grid, until it has arrived."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ode_nets.integrate.problem import Place, Problem, evaluator
from ode_nets.integrate.program import zeros_of
from ode_nets.integrate.solution import Interpolation, Result, Solution, Steps, mark_failed
from ode_nets.integrate.uniform import Clock
from ode_nets.lanes import any_lane, decided, room, select, this_lane, vary, write
from ode_nets.stepping import Step
from ode_nets.trees import Packing

PyTree = Any


class State(NamedTuple):
    """Where a solve stands between two steps: the clock of its grid, and what its scheme hands from one to the next."""

    clock: Clock
    x: PyTree
    """What the scheme carries: `lift` of the initial state, and `lower` gives the state."""
    carry: PyTree
    """What the scheme hands on beside it, to save evaluations."""
    aux: PyTree
    nfe: jax.Array


class Taken(NamedTuple):
    """A step that has just been taken, or tried."""

    place: Place
    step: Step
    accepted: Any
    clock: Clock
    """After it."""


class Asked(NamedTuple):
    """States that were asked for, as far as they are there; one row each, and a spare one."""

    states: PyTree
    """At `ts`; `None` where none are."""
    inside: PyTree
    """`(tau, h, x, inside)` of every accepted step; `None` unless all are to be kept."""


class Keeper(NamedTuple):
    """What a gradient method writes down while a solve goes on.

    Attributes:
      begin: `begin(clock, x) -> kept`.
      write: `write(kept, clock, x, mine) -> kept` for every trial before it is judged: what one writes that is
        rejected, the next trial of the same step overwrites. `mine` is false in lanes that have arrived.
    """

    begin: Any
    write: Any


class Run(NamedTuple):
    """A solve after its loop, before its outputs are sorted out."""

    state: State
    asked: Asked


@runtime_checkable
class Solver(Protocol):
    """A scheme and a grid. A new grid is a class with these members, and nothing else knows them apart.

    Where steps are known before they are taken (`recorded`), it also has `count()`, how many are taken, and where asked
    times are ends of its steps `indices(problem)`, which of them, int32 `[n]`, as those of a `FixedStep` are.
    """

    @property
    def scheme(self) -> Any:
        """How a step is computed, a `Scheme`."""

    @property
    def estimates(self) -> bool:
        """Whether steps are judged by an error."""

    @property
    def recorded(self) -> bool:
        """Whether steps are known before they are taken."""

    @property
    def length(self) -> int | None:
        """Number of steps, where it is known at trace time."""

    @property
    def bound(self) -> int:
        """Most steps."""

    def lands(self, problem: Problem) -> bool:
        """Whether asked times are ends of steps."""

    def begin(self, problem: Problem) -> tuple[Clock, PyTree, Any]:
        """The clock before the first step, what the scheme starts with, and the evaluations that took."""

    def running(self, clock: Clock) -> jax.Array:
        """Whether another step is due."""

    def arrived(self, clock: Clock) -> jax.Array:
        """Whether t1 has been reached."""

    def place(self, problem: Problem, step: Any, tau: Any, end: Any, cursor: Any) -> Place:
        """A step that has been taken, again."""

    def propose(self, problem: Problem, clock: Clock) -> Place:
        """The step to take next."""

    def judge(self, problem: Problem, clock: Clock, place: Place, x: PyTree, step: Step) -> tuple[Clock, Any]:
        """The clock after a step, and whether it counts."""

    def passed(self, problem: Problem, j: Any, clock: Clock) -> jax.Array:
        """Whether asked time j lies behind the clock."""

    def among(self, problem: Problem, begin: Any, end: Any) -> Any:
        """The solver of the part of the problem from tau = end back to begin."""

    def outcome(self, clock: Clock, x: PyTree, aux: PyTree) -> jax.Array:
        """The `Result` of a solve after its loop."""


def held(clock: Clock) -> Clock:
    """The same clock; what the next size of a step follows from is a constant of differentiation."""
    h, error = jax.lax.stop_gradient((clock.h, clock.error))
    return clock._replace(h=h, error=error)


def take(
    problem: Problem, solver: Solver, state: State, inside: bool = False, hold: bool = True
) -> tuple[State, Taken]:
    """One step, or one trial of a step: the place of the library where a state moves on.

    Args:
      inside: whether the interpolant is needed.
      hold: whether sizes of steps are constants of differentiation.
    """
    mine = this_lane(solver.running(state.clock))
    place = solver.propose(problem, state.clock)
    step = solver.scheme.step(
        evaluator(problem, place),
        state.x,
        place.shift(problem),
        state.carry,
        error=solver.estimates,
        inside=inside,
        smooth=problem.smooth,
    )
    clock, accepted = solver.judge(problem, state.clock, place, state.x, step)
    clock = held(clock) if hold else clock
    counts = decided(accepted & mine, state.clock.step)
    after = State(
        clock=select(mine, clock, state.clock),
        x=select(counts, step.x, state.x),
        carry=select(counts, step.carry, step.again),
        aux=select(counts, jax.tree.map(jnp.add, state.aux, step.aux), state.aux),
        nfe=jnp.where(mine, state.nfe + step.nfe, state.nfe),
    )
    return after, Taken(place, step, counts, after.clock)


def loop(problem: Problem, solver: Solver, keeper: Keeper | None = None, dense: bool = False) -> tuple[Run, Any]:
    """A solve: its end and outputs, and what the keeper has kept.

    A `while_loop` whose predicate is the same for all lanes. Not differentiable in reverse mode: that is the business
    of gradient methods.
    """
    clock, carry, nfe = solver.begin(problem)
    clock, aux = held(clock), zeros_of(problem.aux_shapes())
    inside = dense or not solver.lands(problem)
    asked = _room_for(problem, solver, dense)
    state = State(clock, solver.scheme.lift(problem.x0), carry, aux, nfe)
    kept = None if keeper is None else keeper.begin(clock, state.x)
    state, asked, kept = vary((_skip_passed(problem, solver, state), asked, kept), problem.x0)
    # One fusion computes them together, where it would compute most of the step again for each.
    packing = Packing((state.clock, state.nfe))

    def packed(state: State, *rest: Any) -> Any:
        return packing.pack((state.clock, state.nfe)), state.x, state.carry, state.aux, *rest

    def unpacked(carry: Any) -> tuple[State, Any, Any]:
        scalars, x, handed, aux, asked, kept = carry
        clock, nfe = packing.unpack(scalars)
        return State(clock, x, handed, aux, nfe), asked, kept

    def body(carry: Any) -> Any:
        state, asked, kept = unpacked(carry)
        if keeper is not None:
            mine = this_lane(solver.running(state.clock))
            kept = keeper.write(kept, state.clock, state.x, mine)
        after, taken = take(problem, solver, state, inside)
        after, asked = _write(problem, solver, state.x, after, taken, asked)
        return packed(after, asked, kept)

    due = lambda carry: any_lane(solver.running(unpacked(carry)[0].clock))
    state, asked, kept = unpacked(jax.lax.while_loop(due, body, packed(state, asked, kept)))
    return Run(state, asked), kept


def _room_for(problem: Problem, solver: Solver, dense: bool) -> Asked:
    states = None if problem.ts is None else room(problem.n_asked, problem.x0)
    inside = None
    if dense:
        shapes = jax.eval_shape(lambda: _step_inside(problem, solver))
        zero = jnp.zeros_like(problem.span)
        inside = room(solver.bound, (zero + jnp.inf, zero, solver.scheme.lift(problem.x0), zeros_of(shapes)))
    return Asked(states, inside)


def _step_inside(problem: Problem, solver: Solver) -> PyTree:
    place = Place(problem.span, problem.span, problem.span)
    x = solver.scheme.lift(problem.x0)
    return solver.scheme.step(evaluator(problem, place), x, place.shift(problem), inside=True).inside


def _skip_passed(problem: Problem, solver: Solver, state: State) -> State:
    """Asked times at t0 are there already."""
    if problem.ts is None:
        return state
    n = problem.n_asked
    passed = jax.vmap(lambda j: solver.passed(problem, j, state.clock))(jnp.arange(n))
    # Before the first step only times at t0 are behind the clock, also where there are no steps to take.
    passed &= problem.ts <= 0
    return state._replace(clock=state.clock._replace(cursor=jnp.sum(passed, dtype=jnp.int32)))


def _write(
    problem: Problem, solver: Solver, x: PyTree, after: State, taken: Taken, asked: Asked
) -> tuple[State, Asked]:
    """Write down what an accepted step adds to the outputs."""
    states, inside = asked
    place, step = taken.place, taken.step
    if inside is not None:
        row = jnp.where(taken.accepted, after.clock.step - 1, solver.bound)
        inside = write(inside, row, (place.tau, place.h, x, step.inside))
    if states is None:
        return after, Asked(states, inside)
    n, lands = problem.n_asked, solver.lands(problem)

    def due(j: jax.Array) -> jax.Array:
        here = (j < n) & solver.passed(problem, jnp.minimum(j, n - 1), after.clock)
        return here & taken.accepted

    def body(carry: Any) -> Any:
        j, states = carry
        mine, ts = this_lane(due(j)), problem.ts[jnp.minimum(j, n - 1)]
        state = solver.scheme.lower(step.x) if lands else within(problem, solver, place, x, step.inside, ts)
        return jnp.where(mine, j + 1, j), write(states, jnp.where(mine, j, n), state)

    cursor, states = jax.lax.while_loop(lambda carry: any_lane(due(carry[0])), body, (after.clock.cursor, states))
    return after._replace(clock=after.clock._replace(cursor=cursor)), Asked(states, inside)


def within(problem: Problem, solver: Solver, place: Place, x: PyTree, inside: PyTree, tau: Any) -> PyTree:
    """The state inside a step at `tau`, a scalar between its ends, by the interpolant of the scheme."""
    s = (tau - place.tau) / jnp.where(place.h == 0, 1, place.h)
    return solver.scheme.interpolate(inside, x, place.shift(problem), s)


def finish(problem: Problem, solver: Solver, run: Run) -> Solution:
    """The solution of a finished loop: NaN, in value and in gradient, at times that were not reached."""
    state, asked = run
    clock = state.clock
    arrived = solver.arrived(clock)
    ordered = clock.result != Result.UNSORTED_TIMES
    if problem.ts is None:
        x, reached = solver.scheme.lower(state.x), arrived & ordered
    else:
        n = problem.n_asked
        x = jax.tree.map(lambda leaf: leaf[:n], asked.states)
        reached = (jnp.arange(n) < clock.cursor) & ordered
    return Solution(
        x=mark_failed(x, reached),
        aux=state.aux,
        nfe=state.nfe if solver.scheme.n_evaluations is not None else jnp.full_like(state.nfe, -1),
        n_accepted=clock.step,
        n_rejected=clock.rejected,
        result=solver.outcome(clock, (state.x, x), state.aux),
        dense=interpolation(problem, solver, asked.inside, clock.step),
    )


def interpolation(problem: Problem, solver: Solver, rows: Any, n: jax.Array) -> Interpolation | None:
    """What `solution.dense` is, from the rows of all steps."""
    if rows is None:
        return None
    # Without the spare row of the loop.
    tau, h, x, inside = jax.tree.map(lambda leaf: leaf[: solver.bound], rows)
    used = jnp.arange(tau.shape[0]) < n
    steps = Steps(
        t=jnp.where(used, problem.time(jnp.where(used, tau, 0)), problem.sign * jnp.inf),
        h=jnp.where(used, problem.sign * h, 0),
        n=n,
    )
    return Interpolation(solver.scheme, steps, jnp.where(used, tau, jnp.inf), x, inside, problem.t0, problem.sign)


def integrate(problem: Problem, solver: Solver, dense: bool = False) -> Solution:
    """Solve, without a thought of derivatives.

    Returns:
      `Solution`; states at times that were not reached are NaN, with a result code that says why.
    """
    return finish(problem, solver, loop(problem, solver, dense=dense)[0])
