"""What is integrated: an initial value problem, checked, with everything that it depends on in one pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import checked
from ode_nets.integrate.inputs import check_field, checked_state, checked_weights
from ode_nets.integrate.program import Program, close_over
from ode_nets.integrate.times import check_times, covers_domain, direction_of, time_dtype
from ode_nets.lanes import vary
from ode_nets.stepping import END, Evaluate, Node, Stage
from ode_nets.trees import pytree

PyTree = Any
Field = Callable[[Any, PyTree, PyTree], PyTree]
"""`field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`."""


@runtime_checkable
class TimeDependent(Protocol):
    """theta(t): a pytree of arrays that can be read at any time, on no grid in particular."""

    @property
    def continuous(self) -> bool:
        """Whether theta(t) has no jumps."""

    def at(self, t: Any, side: Any = 1) -> PyTree:
        """theta(t); at a jump the limit from the right (`side=1`) or from the left (`side=-1`)."""


@runtime_checkable
class WeightFunction(TimeDependent, Protocol):
    """theta(t): a pytree that can be read at any time and, exactly, on a uniform grid.

    Example:
        >>> isinstance(Constant(1.0), WeightFunction), isinstance({"w": 1.0}, WeightFunction)
        (True, False)
    """

    def n_sections(self, n_steps: int) -> int:
        """Largest number of equal sections of the grid that share no coefficient; divides `n_steps`."""

    def sections(self, n_sections: int) -> WeightFunction:
        """The weight functions of as many equal sections of the domain, stacked: a scan over its leaves gives each."""

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """theta at node `numerator / denominator` of a step of a uniform grid; every argument may be traced."""


@runtime_checkable
class Expandable(Protocol):
    """A weight function that is computed from other arrays, once before a solve, and then only read."""

    def expanded(self) -> WeightFunction:
        """The weight function to read."""


@pytree("x0", "weights", "t0", "span", "sign", "ts", "consts")
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem, ready for a solver: dx/dt = field(t, x, theta(t)), x(t0) = x0.

    Made by `make_problem`, which checks it. Time is kept as tau = |t - t0|, from 0 to `span`: a clock that starts at
    zero resolves small steps wherever t0 is.

    Attributes:
      x0, weights: as `solve` takes them.
      t0: start, scalar. `span`: |t1 - t0|. `sign`: 1.0, or -1.0 where time runs backward.
      ts: asked times as tau, `[n]`, ascending; or `None`.
      consts: arrays that the field closes over.
      program: the field itself, `program(consts, t, x, theta) -> (dx, aux)`.
      exact: whether [t0, t1] is known to be the whole domain of the weights, which are then read by exact arithmetic
        on (step, stage node) wherever the grid is uniform.
      known_ts: asked times as known fractions of the span, or `None`: what a uniform grid can land on.
      field: what was traced, for problems that are looked at outside of a solve; else `None`.

    Example:
        >>> problem = make_problem(lambda t, x, k: -k * x, jnp.ones(3), 2.0, t0=1.0, t1=-1.0)
        >>> float(problem.span), float(problem.sign)
        (2.0, -1.0)
    """

    x0: PyTree
    weights: PyTree
    t0: Any
    span: Any
    sign: Any
    ts: Any
    consts: Any
    program: Program
    exact: bool
    known_ts: tuple[tuple[float, float], ...] | None
    field: Any = None

    def of_state(self, x0: PyTree) -> Problem:
        """The same problem from another initial state, of any shape that the field takes."""
        if self.field is None:
            raise ValueError("a problem inside a solve keeps no field to trace again: take the one of make_problem")
        program, consts = close_over(self.field, self.t0, x0, _theta_shapes(self.weights, self.t0))
        return dataclasses.replace(self, x0=x0, program=program, consts=consts)

    @property
    def smooth(self) -> bool:
        """Whether the weights have no jumps."""
        return bool(getattr(self.weights, "continuous", True))

    @property
    def clocked(self) -> bool:
        """Whether the right-hand side depends on time at all."""
        varies = isinstance(self.weights, TimeDependent) and not getattr(self.weights, "constant", False)
        return self.program.reads_time or varies

    @property
    def n_asked(self) -> int:
        """Number of asked times."""
        return 0 if self.ts is None else int(self.ts.shape[0])

    def time(self, tau: Any) -> Any:
        """t at a tau."""
        return self.t0 + self.sign * tau

    def slope(self, t: Any, x: PyTree, theta: PyTree) -> Stage:
        """`(dx, aux)`."""
        return self.program(self.consts, t, x, theta)

    def aux_shapes(self) -> PyTree:
        """Of what the field reports."""
        return self.program.shapes[1]


class Place(NamedTuple):
    """A step about to be taken: scalars of the dtype of times, measured from t0 in the direction of integration."""

    tau: Any
    """Where it starts."""
    h: Any
    """Its size, not negative."""
    end: Any
    """Where it ends."""
    exact: Any = None
    """`(step, n_steps)` on a uniform grid over the domain of the weights: integers by which they are read."""

    def shift(self, problem: Problem) -> Any:
        """Its signed size."""
        return problem.sign * self.h


def evaluator(problem: Problem, place: Place, weights: PyTree = None) -> Evaluate:
    """The field inside one step: each evaluation at its own time, with its own weights.

    Where weights jump they are read from inside the step: from the right at its start, from the left at its end.

    Args:
      weights: those to read in place of the problem's, for instance of one section.
    """
    weights = problem.weights if weights is None else weights
    clocked = problem.clocked

    def is_exact(node: Node) -> bool:
        return all(isinstance(part, int) for part in node)

    def time(node: Node) -> Any:
        numerator, denominator = node
        if is_exact(node) and node == END:
            return problem.time(place.end)
        c = numerator / denominator if is_exact(node) else jnp.asarray(numerator, place.h.dtype) / denominator
        return problem.time(place.tau + c * place.h)

    def slope(node: Node, x: PyTree) -> Stage:
        numerator, denominator = node
        t = time(node) if clocked else problem.t0
        last = True if is_exact(node) and node == END else numerator >= denominator
        if place.exact is not None and isinstance(weights, WeightFunction):
            step, n_steps = place.exact
            theta = weights.at_node(step, n_steps, numerator, denominator)
            if not isinstance(step, int):
                # The compiler would fuse the search for the interval into the field, and repeat it for every entry.
                theta = jax.lax.optimization_barrier(theta)
        else:
            side = -problem.sign if last is True else problem.sign if last is False else None
            side = jnp.where(last, -problem.sign, problem.sign) if side is None else side
            theta = theta_at(weights, t, side)
        return problem.slope(t, x, theta)

    return Evaluate(slope, time)


def theta_at(weights: PyTree, t: Any, side: Any = 1) -> PyTree:
    """theta(t) of a weight function, which may `read` what it need not check; anything else is theta at all times."""
    if not isinstance(weights, TimeDependent):
        return weights
    return getattr(weights, "read", weights.at)(t, side)


@checked
def make_problem(
    field: Any,
    x0: PyTree,
    weights: PyTree = None,
    *,
    t0: Any = 0.0,
    t1: Any = 1.0,
    ts: Any = None,
    has_aux: bool = False,
) -> Problem:
    """Check an initial value problem and bring it into the form that solvers take.

    Args:
      field: `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`; `dx` like `x`.
      x0: initial state, a pytree of floating-point arrays.
      weights: a `WeightFunction`, or a pytree theta that holds at all times.
      t0, t1: start and end, scalars; `t1 < t0` integrates backward in time.
      ts: times at which the state is asked for, `[n]`, in the order of integration, or `None`.
      has_aux: whether the field reports something beside `dx`.

    Raises:
      ValueError: at trace time, for states that are not floating point, leaves that are no arrays, times that are not
        scalars, a t1 that rounds onto t0, `ts` that is empty, of the wrong rank, unsorted or outside [t0, t1] (where
        the values are known), and a field whose `dx` differs from `x` in structure, shape or dtype.

    Example:
        >>> problem = make_problem(lambda t, x, k: -k * x, jnp.ones(3), 2.0, t1=5.0)
        >>> Checkpointed().run(problem, FixedStep("rk4", 50)).x.shape
        (3,)
    """
    if not callable(field) or isinstance(field, type):
        raise ValueError(f"field={field!r}: expected a function field(t, x, theta) -> dx")
    x0 = checked_state(x0)
    is_expandable = lambda part: isinstance(part, Expandable)
    weights = jax.tree.map(
        lambda part: part.expanded() if is_expandable(part) else part, weights, is_leaf=is_expandable
    )
    weights = checked_weights(weights)
    ts, known_ts = check_times(t0, t1, ts)
    start, end = (jnp.asarray(t, time_dtype()) for t in (t0, t1))
    sign = direction_of(t0, t1)
    span = sign * _difference(t1, t0, end - start)
    asked = None if ts is None else sign * _difference(ts, t0, jnp.asarray(ts, time_dtype()) - start)
    if asked is not None and known_ts is None:
        asked = _within(asked, span, start, end)
    exact = covers_domain(t0, t1, getattr(weights, "domain", None))
    pair = field if has_aux else lambda t, x, theta: (field(t, x, theta), ())

    def posed(arrays: Any) -> Problem:
        x0, weights, t0, span, sign, ts = arrays
        return pose(pair, x0, weights, t0=t0, span=span, sign=sign, ts=ts, exact=exact, known_ts=known_ts)

    arrays = (x0, weights, start, span, sign, asked)
    problem = posed(arrays)
    # Once, before the loops: what is shared by devices has its cotangents summed over them once, after the loops.
    varied = vary(arrays, (arrays, problem.consts))
    if any(a is not b for a, b in zip(jax.tree.leaves(varied), jax.tree.leaves(arrays), strict=True)):
        problem = posed(varied)
    check_field(problem.x0, problem.program.shapes)
    return dataclasses.replace(problem, field=pair)


def pose(
    field: Any,
    x0: PyTree,
    weights: PyTree,
    *,
    t0: Any,
    span: Any,
    sign: Any,
    ts: Any = None,
    exact: bool = False,
    known_ts: Any = None,
) -> Problem:
    """A problem from parts that are known to fit; `field` returns `(dx, aux)`."""
    program, consts = close_over(field, t0, x0, _theta_shapes(weights, t0))
    return Problem(x0, weights, t0, span, sign, ts, consts, program, exact, known_ts)


def _within(asked: jax.Array, span: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Asked times that rounding has put beyond an end of the interval, or before one another, as those."""
    slack = 4 * jnp.finfo(asked.dtype).eps * jnp.maximum(jnp.abs(start), jnp.abs(end))
    asked = jnp.where((asked < 0) & (asked >= -slack), 0, asked)
    asked = jnp.where((asked > span) & (asked <= span + slack), span, asked)
    sorted_ = jax.lax.cummax(asked)
    # A time that equals the one before it keeps a derivative of its own.
    return jnp.where((sorted_ > asked) & (sorted_ - asked <= slack), sorted_, asked)


def in_order(problem: Problem) -> jax.Array:
    """Whether the asked times lie in order between t0 and t1."""
    if problem.ts is None:
        return jnp.asarray(True)
    times = jnp.concatenate([jnp.zeros_like(problem.ts[:1]), problem.ts, problem.span[None]])
    return jnp.all(jnp.diff(times) >= 0)


def _theta_shapes(weights: PyTree, t0: Any) -> PyTree:
    return jax.eval_shape(lambda weights, t: theta_at(weights, t), weights, t0)


def _difference(a: Any, b: Any, traced: Any) -> Any:
    """a - b: of known numbers before they are rounded to the precision of times."""
    if any(isinstance(v, jax.core.Tracer) for v in (a, b)):
        return traced
    return jnp.asarray(np.asarray(a, np.float64) - np.asarray(b, np.float64), time_dtype())


def unresolved(problem: Problem, tau: Any, end: Any) -> jax.Array:
    """Whether a step from `tau` to `end` fails to move the clock that its field is told."""
    stuck = end <= tau
    return (stuck | (problem.time(end) == problem.time(tau))) if problem.clocked else stuck
