"""Differentiation through the solver as it ran."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from ode_nets.gradients.closure import Closed
from ode_nets.gradients.outputs import follow_times, run_marked
from ode_nets.integrate import (
    Adaptive,
    FixedStep,
    PaddedStep,
    Problem,
    Solution,
    integrate_adaptive,
    integrate_adaptive_bounded,
    integrate_fixed,
    integrate_padded,
)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Direct:
    """Differentiate through the solver as it ran: the naive method, discretize-then-optimize.

    Keeps all that every step kept, of an adaptive solve for each of `max_steps` trials, taken or not: memory
    O(n_steps * stages * activations of the field). Without differentiation nothing is kept. Works in forward
    and in reverse mode. Step sizes are constants of differentiation.
    """

    def run(self, problem: Problem, solver: FixedStep | PaddedStep | Adaptive) -> Solution:
        """Solve `problem` with `solver`."""
        if isinstance(solver, PaddedStep):
            return integrate_padded(problem, solver)
        return run_marked(problem, partial(integrate, solver=solver, transform=lambda step: step))


def integrate(problem: Problem, closed: Closed, solver: FixedStep | Adaptive, transform: Any) -> Solution:
    """A solve through which both modes of differentiation work, `transform` around each of its steps.

    An adaptive solve takes the steps that it needs, and is differentiated as a scan over `max_steps`.
    """
    if isinstance(solver, FixedStep):
        return integrate_fixed(problem, solver, transform=transform)

    def again(inputs: tuple[Any, ...]) -> tuple[Problem, Adaptive]:
        x0, weights, t0, t1, ts, consts, (rtol, atol, first_step) = inputs
        return (
            Problem(closed.field(consts), x0, weights, t0, t1, ts, problem.on_domain),
            dataclasses.replace(solver, rtol=rtol, atol=atol, first_step=first_step),
        )

    @jax.custom_jvp
    def run(inputs: tuple[Any, ...]) -> Solution:
        return integrate_adaptive(*again(inputs))

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        bounded = lambda inputs: integrate_adaptive_bounded(*again(inputs), transform=transform)
        return jax.jvp(bounded, primals, tangents)

    tolerances = (solver.rtol, solver.atol, solver.first_step)
    solution = run(
        (problem.x0, problem.weights, problem.t0, problem.t1, problem.ts, closed.consts, tolerances)
    )
    return dataclasses.replace(solution, x=follow_times(problem, closed, solver, solution.x))
