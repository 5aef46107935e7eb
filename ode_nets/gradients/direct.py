"""Differentiation through the solver as it ran."""

from __future__ import annotations

import dataclasses

from ode_nets.integrate import FixedStep, PaddedStep, Problem, Solution, integrate_fixed, integrate_padded


@dataclasses.dataclass(frozen=True)
class Direct:
    """Differentiate through the solver as it ran: the naive method, discretize-then-optimize.

    Keeps all that every step kept: memory O(n_steps * stages * activations of the field). Works in forward
    and in reverse mode.
    """

    def run(self, problem: Problem, solver: FixedStep | PaddedStep) -> Solution:
        """Solve `problem` with `solver`."""
        if isinstance(solver, PaddedStep):
            return integrate_padded(problem, solver)
        return integrate_fixed(problem, solver)
