"""Differentiation through the solver as it ran."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax

from ode_nets.gradients.closure import Closed, Inputs
from ode_nets.gradients.outputs import follow_times, run_marked
from ode_nets.integrate import (
    Adaptive,
    FixedStep,
    Problem,
    Solution,
    integrate_adaptive,
    integrate_adaptive_bounded,
    integrate_fixed,
)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Direct:
    """Differentiate through the solver as it ran: the naive method, discretize-then-optimize.

    Keeps all that every step kept, of an adaptive solve for each of `max_steps` trials, taken or not: memory
    O(n_steps * stages * activations of the field). Under `jax.vmap` trials that are not taken are computed as
    well: give a `max_steps` not far above what is needed. Without differentiation nothing is kept. Works in
    forward and in reverse mode. Step sizes are constants of differentiation.
    """

    def run(self, problem: Problem, solver: FixedStep | Adaptive) -> Solution:
        """Solve `problem` with `solver`."""
        return run_marked(problem, partial(integrate, solver=solver, transform=lambda step: step))


def integrate(problem: Problem, closed: Closed, solver: FixedStep | Adaptive, transform: Any) -> Solution:
    """A solve through which both modes of differentiation work, `transform` around each of its steps.

    An adaptive solve takes the steps that it needs, and is differentiated as a scan over `max_steps`.
    """
    if isinstance(solver, FixedStep):
        return integrate_fixed(problem, solver, transform=transform)

    def again(inputs: Inputs) -> tuple[Problem, Adaptive]:
        return inputs.problem(closed, problem.on_domain), inputs.solver(solver)

    @jax.custom_jvp
    def run(inputs: Inputs) -> Solution:
        return integrate_adaptive(*again(inputs))

    @run.defjvp
    def derivative(primals: Any, tangents: Any) -> Any:
        bounded = lambda inputs: integrate_adaptive_bounded(*again(inputs), transform=transform)
        return jax.jvp(bounded, primals, tangents)

    solution = run(Inputs.of(problem, closed, solver))
    return dataclasses.replace(solution, x=follow_times(problem, closed, solver, solution.x))
