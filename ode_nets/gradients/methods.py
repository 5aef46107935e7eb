"""Gradient methods, exchangeable by one argument of `solve`."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from ode_nets.integrate import Adaptive, Field, FixedStep, Problem, Solution, make_problem

PyTree = Any


@runtime_checkable
class GradientMethod(Protocol):
    """How a solve is differentiated: a frozen, hashable value that owns the solve and its backward pass."""

    def run(self, problem: Problem, solver: Any) -> Solution:
        """Solve `problem` with `solver`, differentiable by this method; where that fails, derivatives are NaN."""


@runtime_checkable
class CustomSolver(Protocol):
    """A solver that brings its own loop and its own ways to differentiate it."""

    def run(self, problem: Problem, gradient: GradientMethod) -> Solution:
        """Solve `problem`, differentiable by what `gradient` means there; where that fails, derivatives are NaN."""


def solve(
    field: Field,
    x0: PyTree,
    weights: PyTree = None,
    *,
    solver: FixedStep | Adaptive | CustomSolver,
    gradient: GradientMethod,
    t0: Any = 0.0,
    t1: Any = 1.0,
    ts: Any = None,
    has_aux: bool = False,
) -> Solution:
    """Solve an initial value problem; field, weight function, solver and gradient method are exchangeable.

        dx/dt = field(t, x, theta(t)),  x(t0) = x0           (ContinuousNet eq. 20-22)

    Args:
      field: pure function `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`; `dx` like `x`.
      x0: initial state, a pytree of floating-point arrays.
      weights: a weight function, or a pytree theta that holds at all times.
      solver: `FixedStep`, `Adaptive`, or a `CustomSolver`: `PaddedStep`, `TracedStep`,
        `ode_nets.interop.diffrax.DiffraxSolver`.
      gradient: `Direct()`, `Checkpointed()`, ...: what reverse-mode differentiation does.
      t0, t1: start and end; `t1 < t0` integrates backward in time.
      ts: times at which the state is asked for, in the order of integration; `None` asks for x(t1).
      has_aux: whether the field reports something beside `dx`; reports of accepted steps are summed.

    Returns:
      `Solution`. Array values never raise; look at `result`: where it is not `SUCCESS`, states that were not
      reached and all derivatives are NaN.

    Raises:
      ValueError: at trace time, for bad shapes, dtypes, names and known times; see `make_problem`.
    """
    if isinstance(solver, type) or not isinstance(solver, FixedStep | Adaptive | CustomSolver):
        raise ValueError(
            f"solver={solver!r}: expected FixedStep('rk4', n_steps), Adaptive('dopri5', rtol, atol) or another "
            "solver of this library"
        )
    if isinstance(gradient, type) or not isinstance(gradient, GradientMethod):
        raise ValueError(f"gradient={gradient!r}: expected Direct(), Checkpointed(), ACA() or Backsolve()")
    problem = make_problem(field, x0, weights, t0=t0, t1=t1, ts=ts, has_aux=has_aux)
    if isinstance(solver, CustomSolver):
        return solver.run(problem, gradient)
    return gradient.run(problem, solver)
