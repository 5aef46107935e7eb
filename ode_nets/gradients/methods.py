"""Solving, with the gradient method as one argument."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Protocol, runtime_checkable

import jax

from ode_nets.arguments import Rule, checked
from ode_nets.axes import axis_names, exchanged_axes
from ode_nets.gradients.aca import ACA
from ode_nets.gradients.convolutions import warn_of_convolutions
from ode_nets.gradients.direct import Checkpointed
from ode_nets.gradients.outputs import mark_derivatives
from ode_nets.gradients.reverse_only import OF_THE_FIELD, of_the_method, refusals_of_jax
from ode_nets.gradients.rules import as_chosen, standard
from ode_nets.integrate import Field, Problem, Solution, Solver, make_problem
from ode_nets.trees import split, tracing

PyTree = Any
N_PROGRAMS = 256
"""Compiled programs that are kept for solves outside of `jax.jit`."""


@runtime_checkable
class GradientMethod(Protocol):
    """How a solve is differentiated: a frozen, hashable value that owns the solve and its backward pass.

    Derivatives of a solve that failed are made NaN afterwards, unless the method has an attribute `marks_failed` that
    is true: its own are NaN then. One that works in forward mode has an attribute `forward_mode` that is true.

    One that does not go with every solver has a method `refuses(solver, dense) -> str | None`: why it does not go with
    this one, or not with `dense=True`, and what does. It is asked before anything runs.

    Example:
        >>> [isinstance(value, GradientMethod) for value in (ACA(), FixedStep("rk4", 4))]
        [True, False]
    """

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`, differentiable by this method."""


@runtime_checkable
class OwnLoop(Protocol):
    """A solver that brings its own loop, as one of diffrax does, and hands the ways back what it has found.

    One that does not go with every gradient method has a method `refuses(gradient, dense, reports) -> str | None`;
    `reports` says whether the field reports something beside `dx`.
    """

    def solve(self, problem: Problem, gradient: GradientMethod | None, dense: bool) -> Solution:
        """Solve `problem`, differentiable by what `gradient` means there."""


def solve(
    field: Field,
    x0: PyTree,
    weights: PyTree = None,
    *,
    solver: Solver | OwnLoop,
    gradient: GradientMethod | None = None,
    t0: Any = 0.0,
    t1: Any = 1.0,
    ts: Any = None,
    has_aux: bool = False,
    dense: bool = False,
    throw: bool = False,
) -> Solution:
    """Solve an initial value problem; field, weight function, solver and gradient method are exchangeable.

        dx/dt = field(t, x, theta(t)),  x(t0) = x0           (ContinuousNet eq. 20-22)

    Args:
      field: pure function `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`; `dx` like `x`.
      x0: initial state, a pytree of floating-point arrays.
      weights: a weight function, or a pytree theta that holds at all times.
      solver: `FixedStep(scheme, n_steps)`, `Adaptive(scheme, rtol, atol)`, `Recorded(solution)`, or
        `ode_nets.interop.diffrax.DiffraxSolver`, which runs diffrax's own loop.
      gradient: `Direct()`, `Checkpointed()`, `ACA()`, `Reversible()`, `Backsolve()` or `Naive()`: what differentiation
        does. The default is `ACA()` where steps are found by their error, and `Checkpointed()` on a uniform grid.
      t0, t1: start and end; `t1 < t0` integrates backward in time.
      ts: times at which the state is asked for, in the order of integration; `None` asks for x(t1).
      has_aux: whether the field reports something beside `dx`; reports of accepted steps are summed.
      dense: whether to keep what the solution is between the steps: `solution.dense(t)`. Takes memory for
        `max_steps` steps of an adaptive solver.
      throw: whether a failure raises, as `solution.raise_for_result()` does: outside of jit, where the result is known.

    Returns:
      `Solution`. Array values never raise but with `throw`; look at `result`: where it is not `SUCCESS`, states that
      were not reached and all derivatives are NaN.

    Raises:
      RuntimeError: with `throw`, for a solve outside of jit that failed.
      ValueError: at trace time, for bad shapes, dtypes, names and known times; see `make_problem`; and for what
        solver and gradient method cannot do together.

    Outside of `jax.jit` it compiles once for all fields that are the same operations. On a CPU it warns, once, of a
    field with a convolution of `jax.lax`, whose gradients are slow in a loop there; see `convolution`.

    Example:
        >>> from ode_nets import Adaptive, solve
        >>> solution = solve(lambda t, x, k: -k * x, 1.0, 2.0, solver=Adaptive("dopri5", rtol=1e-5))
        >>> round(float(solution.x), 4), int(solution.result)
        (0.1353, 0)
    """
    check_kinds(solver, gradient, dense, throw)
    field = as_chosen(field) if callable(field) and not isinstance(field, type) else field
    problem = standard(make_problem)(field, x0, weights, t0=t0, t1=t1, ts=ts, has_aux=has_aux)
    check_axes(problem, solver)
    warn_of_convolutions(problem.program.jaxpr)
    refuse(solver, gradient, dense=dense, reports=bool(jax.tree.leaves(problem.aux_shapes())))
    if (own := own_loop(solver)) is not None:
        solution = standard(mark_derivatives)(standard(own)(problem, gradient, dense), problem)
    else:
        method = gradient if gradient is not None else default_gradient(solver)
        solution = run_compiled(problem, solver, method, dense)
    if throw:
        solution.raise_for_result()
    return solution


def refusal(
    solver: Any, gradient: Any, *, dense: bool = False, event: bool = False, reports: bool = False
) -> str | None:
    """Why a solver and a gradient method do not go together, with what does; `None` where they do.

    The one question of what works with what: of every scheme, grid and way back, asked by what they offer.

    Args:
      gradient: `None` for the solver's default.
      dense, event: whether what lies between the steps is asked for, or where an event is.
      reports: whether the field reports something beside `dx`.
    """
    asked: Callable[..., str | None] | None
    if own_loop(solver) is None:
        if dense and not solver.scheme.interpolates:
            return f"dense=True: scheme {solver.scheme.name!r} has no interpolant; choose another, or ask for ts"
        if dense and gradient is not None and not _takes_dense(gradient):
            return f"dense=True with gradient={gradient!r}: its run(problem, solver) takes no dense; ask for ts"
        asked = getattr(gradient, "refuses", None)
        return asked(solver, dense) if asked else None
    if event:
        return (
            f"solver={solver!r} runs a loop of its own, which stops at no event here: use Adaptive or FixedStep, which "
            "take any scheme, those of diffrax as DiffraxScheme(...); or diffrax.diffeqsolve with diffrax.Event"
        )
    asked = getattr(solver, "refuses", None)
    return asked(gradient, dense, reports) if asked else None


def _takes_dense(gradient: GradientMethod) -> bool:
    try:
        inspect.signature(gradient.run).bind(None, None, True)
    except TypeError:
        return False
    return True


def refuse(solver: Any, gradient: Any, **asked: bool) -> None:
    """Refuse what does not go together: everything that runs a gradient method asks here first.

    Raises:
      ValueError: with the `refusal`.
    """
    if (why := refusal(solver, gradient, **asked)) is not None:
        raise ValueError(why)


def own_loop(solver: Any) -> Callable[..., Solution] | None:
    """The loop that a solver brings, if it brings one."""
    loop: Callable[..., Solution] | None = getattr(solver, "solve", None)
    return loop


def run_compiled(problem: Problem, solver: Any, method: Any, dense: bool) -> Any:
    """What `method.run` gives, by one compiled program for all problems and solvers that differ in their arrays alone.

    Inside a program that is being traced it becomes a part of that: a program of its own would be traced once more
    wherever it is differentiated.

    Raises:
      ValueError: for forward mode through a method that has none, or through a field that has none.
    """
    # Known fractions of the span are for grids that may land on them; elsewhere they would only tell programs apart.
    known_ts = problem.known_ts if getattr(solver, "length", None) is not None else None
    parts, frame = split((dataclasses.replace(problem, field=None, known_ts=known_ts), solver))
    try:
        return (_part(frame, method, dense) if tracing() else _program(frame, method, dense))(parts)
    except Exception as error:
        # Where tangents reach a backward pass before the refusal of forward mode does; all else goes on as it came.
        if (type(error), str(error)) not in refusals_of_jax():
            raise
        both = getattr(method, "forward_mode", False)
        raise ValueError(OF_THE_FIELD if both else of_the_method(repr(method))) from error


def default_gradient(solver: Any) -> GradientMethod:
    """`Checkpointed()` where steps are known before they are taken, `ACA()` where they are found."""
    return Checkpointed() if solver.recorded else ACA()


def _program(frame: Any, method: Any, dense: bool) -> Callable:
    """The compiled solve of all problems of one frame. The least used are forgotten, and with them their programs."""
    try:
        return _compiled(frame, method, dense)
    except TypeError:
        # What cannot be hashed cannot be found again.
        return _compiled.__wrapped__(frame, method, dense)


@functools.lru_cache(N_PROGRAMS)
def _compiled(frame: Any, method: Any, dense: bool) -> Callable:
    return jax.jit(_part(frame, method, dense))


def _part(frame: Any, method: Any, dense: bool) -> Callable:
    @standard
    def run(parts: list[Any]) -> Solution:
        problem, solver = frame.fill(parts)
        solution = method.run(problem, solver, dense) if dense else method.run(problem, solver)
        return solution if getattr(method, "marks_failed", False) else mark_derivatives(solution, (problem, solver))

    return run


def check_axes(problem: Problem, solver: Any) -> None:
    """Refuse a field that devices evaluate together, on steps that each of them would find for itself.

    Raises:
      ValueError: for a field that reduces over a mesh axis, where steps are judged by an error that does not.
    """
    own_steps = not getattr(solver, "recorded", False)
    shared = axis_names(getattr(solver, "axis_name", None))
    if own_steps and (alone := exchanged_axes(problem.program.jaxpr) - set(shared)):
        axis = sorted(alone)[0]
        raise ValueError(
            f"the field reduces over the axis {axis!r} and solver={solver!r} does not: devices that take different "
            f"numbers of steps would wait for each other for ever; use Adaptive(..., axis_name={axis!r}), or "
            "FixedStep, or a field that reduces over nothing"
        )


def _made(value: Any, *kinds: Any) -> bool:
    """Whether a value is of one of some kinds, and not the class of it."""
    return isinstance(value, kinds) and not isinstance(value, type)


SolverKind = Annotated[
    Any,
    Rule(
        "FixedStep('rk4', n_steps), Adaptive('dopri5', rtol, atol) or another solver of this library",
        lambda value: _made(value, Solver, OwnLoop),
    ),
]
GradientKind = Annotated[
    Any,
    Rule(
        "Direct(), Checkpointed(), ACA(), Reversible(), Backsolve() or Naive(), or None for the solver's default",
        lambda value: value is None or _made(value, GradientMethod),
    ),
]


@checked
def check_kinds(solver: SolverKind, gradient: GradientKind, dense: bool = False, throw: bool = False) -> None:
    """Refuse what is no solver and no gradient method.

    Raises:
      ValueError: for a solver or a gradient method that is none, or in the other's place.
    """
