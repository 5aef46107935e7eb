"""Differentiation through the solver with recomputed steps or blocks."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax

from ode_nets.gradients.closure import Closed
from ode_nets.gradients.direct import integrate
from ode_nets.gradients.outputs import run_marked
from ode_nets.integrate import Adaptive, FixedStep, Problem, Solution

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Checkpointed:
    """Differentiate through the solver, recomputing in the backward pass what would cost memory to keep.

    Args:
      unit: `"step"` keeps one state a step and recomputes inside the step; `"block"` keeps the initial
        state alone and recomputes the whole solve (ANODE; ANODEV2 sec. 3), then as `Direct`.

    The gradient is that of `Direct`. Works in forward and in reverse mode.
    """

    unit: Literal["step", "block"] = "step"

    def __post_init__(self) -> None:
        if self.unit not in ("step", "block"):
            raise ValueError(f"unit={self.unit!r}: expected 'step' or 'block'")

    def run(self, problem: Problem, solver: FixedStep | Adaptive) -> Solution:
        """Solve `problem` with `solver`."""
        if self.unit == "step":
            return run_marked(problem, partial(integrate, solver=solver, transform=jax.checkpoint))

        def run(problem: Problem, closed: Closed) -> Solution:
            @jax.checkpoint
            def block(x0: PyTree, weights: PyTree) -> Solution:
                again = dataclasses.replace(problem, x0=x0, weights=weights)
                return integrate(again, closed, solver, transform=lambda step: step)

            return block(problem.x0, problem.weights)

        return run_marked(problem, run)
