"""Solving until something happens: where a function of time and state is zero, with the derivative of that time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.arguments import checked
from ode_nets.axes import axis_names, exchanged_axes
from ode_nets.gradients.convolutions import warn_of_convolutions
from ode_nets.gradients.methods import GradientMethod, check_kinds, default_gradient, refuse, run_compiled
from ode_nets.gradients.reverse_only import refuse_second
from ode_nets.gradients.rules import as_chosen, standard
from ode_nets.integrate import Problem, Result, Solution, make_problem, theta_at
from ode_nets.integrate.loop import State, take
from ode_nets.integrate.problem import Place, evaluator, unresolved
from ode_nets.integrate.program import Program, close_over, zeros_of
from ode_nets.integrate.recorded import Recorded
from ode_nets.lanes import any_lane, select, this_lane, vary
from ode_nets.trees import pytree

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stopped:
    """What `solve_until` gives.

    Attributes:
      t: time of the event, scalar; t1 where there was none.
      found: boolean scalar, whether there was one.
      solution: the `Solution` up to that time: `solution.x` is the state there.

    Example:
        >>> field = lambda t, x, k: jnp.full_like(x, k)
        >>> stopped = solve_until(field, 0.0, 2.0, event=lambda t, x: x - 1, solver=FixedStep("rk4", 5))
        >>> round(float(stopped.t), 4), bool(stopped.found), round(float(stopped.x), 4)
        (0.5, True, 1.0)
    """

    t: jax.Array
    found: jax.Array
    solution: Solution

    @property
    def x(self) -> PyTree:
        """The state at the event."""
        return self.solution.x

    @property
    def result(self) -> jax.Array:
        """The `Result` of the solve."""
        return self.solution.result


@checked
def solve_until(
    field: Any,
    x0: PyTree,
    weights: PyTree = None,
    *,
    event: Callable[[Any, PyTree], Any],
    solver: Any,
    gradient: Any = None,
    t0: Any = 0.0,
    t1: Any = 1.0,
    direction: Literal[-1, 0, 1] = 0,
    has_aux: bool = False,
    dense: bool = False,
    throw: bool = False,
) -> Stopped:
    """Solve an initial value problem until a function of time and state is zero.

        g(t*, x(t*)) = 0,   dt* = -(dg + g_x dx) / (g_t + g_x f)        (implicit function theorem)

    The event lies in the first step at whose ends g has different signs; a step that crosses it and comes back is not
    seen. There the step is taken again with smaller sizes until it ends on the event: schemes need no interpolant.
    Starting on an event is none: the sign counts that g takes after it.

    Args:
      field, x0, weights, solver, gradient, t0, has_aux, dense, throw: as `solve` takes them.
      event: pure function `event(t, x) -> g`, a scalar; may close over what is differentiated.
      t1: where the solve ends if nothing happens.
      direction: 1 for events at which g rises along the solve, -1 for those at which it falls, 0 for both.

    Returns:
      `Stopped`, with `t` and the state differentiable, once, by every gradient method that differentiates `solve`.

    Raises:
      ValueError: as `solve`; for an event that is no scalar, a direction that is none of the three, solvers with a
        loop of their own, and fields and solvers that reduce over a mesh axis; for a second derivative.
      RuntimeError: with `throw`, for a solve outside of jit that failed.

    Weights that jump are read at the floating-point times of stages, also on a uniform grid over their whole domain,
    where `solve` reads them exactly: the last step ends where the event is.

    Cost: two solves up to the event, the first without a gradient.

    Example:
        >>> from ode_nets import Adaptive, SecondOrder
        >>> falling = SecondOrder(lambda t, r, v, g: -g)
        >>> stopped = solve_until(
        ...     falling, (2.0, 0.0), 9.81, event=lambda t, x: x[0], solver=Adaptive("dopri5", rtol=1e-6), t1=5.0
        ... )
        >>> round(float(stopped.t), 4), bool(stopped.found)  # sqrt(2 * 2 / 9.81)
        (0.6386, True)
    """
    check_kinds(solver, gradient, dense, throw)
    refuse(solver, gradient, dense=dense, event=True)
    field = as_chosen(field) if callable(field) and not isinstance(field, type) else field
    problem = standard(make_problem)(field, x0, weights, t0=t0, t1=t1, has_aux=has_aux)
    if axes := exchanged_axes(problem.program.jaxpr) | set(axis_names(getattr(solver, "axis_name", None))):
        raise ValueError(
            f"field or solver reduce over the axis {min(axes)!r}: an event stops each device at a time of its own, and "
            "the others would wait for it for ever; solve up to a t1 that all share"
        )
    warn_of_convolutions(problem.program.jaxpr)
    event = as_chosen(event)
    program, consts = close_over(lambda t, x, _: event(t, x), problem.t0, problem.x0, ())
    shape = getattr(program.shapes, "shape", None)
    if shape != () or not jnp.issubdtype(program.shapes.dtype, jnp.floating):
        raise ValueError(f"event returned {program.shapes}: expected a floating-point scalar, whose zero is the event")
    method = _Until(gradient if gradient is not None else default_gradient(solver))
    watched = _Watched(solver, consts, program, int(direction))
    stopped: Stopped = run_compiled(problem, watched, method, dense)
    if throw:
        stopped.solution.raise_for_result()
    return stopped


@pytree("solver", "consts")
@dataclasses.dataclass(frozen=True)
class _Watched:
    """A solver, and what is to be looked out for."""

    solver: Any
    consts: Any
    program: Program
    direction: int

    def value(self, t: Any, x: PyTree) -> Any:
        """g."""
        return self.program(self.consts, t, x, ())


@dataclasses.dataclass(frozen=True)
class _Until:
    """A gradient method, of solves that end at events."""

    gradient: GradientMethod

    def __repr__(self) -> str:
        return repr(self.gradient)

    @property
    def forward_mode(self) -> bool:
        """Whether it works in forward mode too."""
        return bool(getattr(self.gradient, "forward_mode", False))

    def run(self, problem: Problem, watched: _Watched, dense: bool = False) -> Stopped:
        """Search without a derivative, solve up to what was found, and follow the event as it moves."""
        constant, fixed = jax.lax.stop_gradient((problem, watched))
        found = _search(constant, fixed)
        # The time stands still, so that what is left to it shrinks as the start moves towards it.
        still = found.tau - constant.sign * (problem.t0 - constant.t0)
        upto = dataclasses.replace(problem, span=jnp.where(found.yes, still, problem.span), exact=False)
        solver = watched.solver
        if solver.recorded:
            ends = jax.vmap(lambda i: fixed.solver.place(constant, i, None, None, None).end)(jnp.arange(solver.bound))
            solver = Recorded.at(solver.scheme, ends, found.n_steps, 0, found.result)
        arguments = (upto, solver, dense) if dense else (upto, solver)
        solution = self.gradient.run(*arguments)

        t, x = jax.lax.stop_gradient(upto.time(upto.span)), solution.x
        slope = problem.slope(t, x, theta_at(problem.weights, t, -constant.sign))[0]
        _, rate = jax.jvp(watched.value, (t, x), (jnp.ones_like(t), slope))
        time, moved = _followed((t, x), watched.value(t, x), (found.yes, rate, slope))
        unknown = solution.nfe < 0
        solution = dataclasses.replace(
            solution, x=moved, nfe=jnp.where(unknown, solution.nfe, solution.nfe + found.nfe)
        )
        return Stopped(jnp.where(found.yes, time, problem.time(problem.span)), found.yes, solution)


@jax.custom_jvp
def _followed(place: tuple[Any, PyTree], value: Any, known: tuple[Any, Any, PyTree]) -> tuple[Any, PyTree]:
    """Time and state where g is zero, which move with it; whether there is one, dg/dt along the solve, and its slope
    are known."""
    return place


@_followed.defjvp
@standard
def _follow(primals: Any, tangents: Any) -> Any:
    place, _, known = primals
    yes, rate, slope = refuse_second(known)
    shift = jnp.where(yes, -tangents[1] / jnp.where(yes, rate, 1), 0).astype(place[0].dtype)
    moved = jax.tree.map(lambda d, k: d + shift.astype(d.dtype) * k, tangents[0][1], slope)
    return place, (tangents[0][0] + shift, moved)


class _Found(NamedTuple):
    yes: jax.Array
    tau: jax.Array
    n_steps: jax.Array
    """Up to the event, with the one that ends there."""
    result: jax.Array
    nfe: jax.Array


class _Watch(NamedTuple):
    """A search under way."""

    state: State
    """Before the step that crosses the event, once there is one."""
    sign: jax.Array
    """The last that was not 0."""
    values: tuple[jax.Array, jax.Array]
    """g at both ends of the last step."""
    h: jax.Array
    """Its size."""
    crossed: jax.Array


def _search(problem: Problem, watched: _Watched) -> _Found:
    """The first event."""
    solver = watched.solver
    value = lambda tau, x: watched.value(problem.time(tau), x)

    def going(watch: _Watch) -> jax.Array:
        clock = watch.state.clock
        return solver.running(clock) & ~watch.crossed & (clock.result == Result.SUCCESS)

    def body(watch: _Watch) -> _Watch:
        mine, before = this_lane(going(watch)), watch.state
        after, taken = take(problem, solver, before)
        here = value(after.clock.tau, solver.scheme.lower(after.x))
        turned = (watch.sign * here <= 0) & (watch.sign != 0) & (watched.direction * watch.sign <= 0)
        # A lane whose event is found takes no more steps, though its solver would.
        counts = mine & taken.accepted
        crossed = counts & turned
        state = select(mine & ~crossed, after, before)
        clock = blind(state.clock, counts & jnp.isnan(here))
        return _Watch(
            state=state._replace(clock=clock, nfe=jnp.where(mine, after.nfe, before.nfe)),
            sign=jnp.where(counts & ~crossed & (here != 0), jnp.sign(here), watch.sign),
            values=select(counts, (watch.values[1], here), watch.values),
            h=jnp.where(counts, taken.place.h, watch.h),
            crossed=watch.crossed | crossed,
        )

    def blind(clock: Any, lost: Any) -> Any:
        """No event can be seen where g is no number."""
        lost &= clock.result == Result.SUCCESS
        return clock._replace(result=jnp.where(lost, Result.NON_FINITE, clock.result).astype(jnp.int32))

    clock, carry, nfe = solver.begin(problem)
    first = value(clock.tau, problem.x0)
    clock = blind(clock, jnp.isnan(first))
    start = _Watch(
        State(clock, solver.scheme.lift(problem.x0), carry, zeros_of(problem.aux_shapes()), nfe),
        jnp.sign(first), (first, first), jnp.zeros_like(clock.tau), jnp.asarray(False),
    )  # fmt: skip
    watch = jax.lax.while_loop(lambda watch: any_lane(going(watch)), body, vary(start, problem.x0))
    clock, x = watch.state.clock, watch.state.x

    def at(s: jax.Array) -> jax.Array:
        place = Place(clock.tau, s * watch.h, clock.tau + s * watch.h)
        after = solver.scheme.advance(evaluator(problem, place), x, place.shift(problem))[0]
        return value(place.end, solver.scheme.lower(after))

    at_0, at_1 = watch.values
    s, n_trials = _root(at, at_0, at_1, watch.crossed, clock.tau.dtype)
    n_each, end = solver.scheme.n_evaluations, clock.tau + s * watch.h
    # An event that rounding puts on the end of the step before is there, and no step of its own leads to it.
    moves = watch.crossed & ~unresolved(problem, clock.tau, end)
    return _Found(
        yes=watch.crossed,
        tau=jnp.where(watch.crossed, jnp.where(moves, end, clock.tau), problem.span),
        n_steps=clock.step + moves.astype(jnp.int32),
        result=jnp.where(watch.crossed, Result.SUCCESS, solver.outcome(clock, x, watch.state.aux)).astype(jnp.int32),
        nfe=watch.state.nfe + (0 if n_each is None else n_trials * n_each),
    )


class _Bracket(NamedTuple):
    """Two places with a zero between them, and the values there."""

    a: jax.Array
    b: jax.Array
    at_a: jax.Array
    at_b: jax.Array
    n: jax.Array


def _root(function: Any, at_0: jax.Array, at_1: jax.Array, wanted: jax.Array, dtype: Any) -> tuple[jax.Array, Any]:
    """A zero in [0, 1] between two values of different sign, and the evaluations that it took.

    The ITP method (Oliveira and Takahashi 2020): false position, kept near the middle, so that it never takes more than
    one evaluation above those of bisection.
    """
    eps = float(jnp.finfo(dtype).eps)
    most = math.ceil(math.log2(1 / (4 * eps))) + 1

    def going(old: _Bracket) -> jax.Array:
        return wanted & (old.b - old.a > 4 * eps) & (old.at_a != 0) & (old.at_b != 0) & (old.n <= most)

    def body(old: _Bracket) -> _Bracket:
        mine, width, middle = this_lane(going(old)), old.b - old.a, (old.a + old.b) / 2
        false = old.a + width * (old.at_a / (old.at_a - old.at_b)).astype(dtype)
        inwards, push = jnp.sign(middle - false), jnp.maximum(0.2 * width**2, 2 * eps)
        s = jnp.where(push <= jnp.abs(middle - false), false + inwards * push, middle)
        slack = 2 * eps * 2.0 ** (most - old.n).astype(dtype) - width / 2
        s = jnp.where(jnp.abs(s - middle) <= slack, s, middle - inwards * slack)
        at_s = function(s)
        left = jnp.sign(at_s) == jnp.sign(old.at_a)
        new = _Bracket(
            jnp.where(left, s, old.a),
            jnp.where(left, old.b, s),
            jnp.where(left, at_s, old.at_a),
            jnp.where(left, old.at_b, at_s),
            old.n + 1,
        )
        return select(mine, new, old)

    start = vary(_Bracket(jnp.zeros((), dtype), jnp.ones((), dtype), at_0, at_1, jnp.int32(0)), at_1)
    end = jax.lax.while_loop(lambda bracket: any_lane(going(bracket)), body, start)
    return jnp.where(jnp.abs(end.at_a) < jnp.abs(end.at_b), end.a, end.b), end.n
