"""Differentiation through the solver as it ran."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from ode_nets.arguments import checked
from ode_nets.gradients.outputs import follow_times
from ode_nets.gradients.replay import Transform, replay, search
from ode_nets.gradients.rules import standard
from ode_nets.integrate import Problem, Solution, Solver, integrate
from ode_nets.trees import split

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Direct:
    """Differentiate through the accepted steps: discretize-then-optimize, everything kept.

    Keeps all that every step kept: memory O(n_steps * stages * activations of the field), and room for `max_steps` of
    them where their number is not known at trace time. Steps that were not needed are not taken, and rejected trials
    are no part of it: step sizes are constants of differentiation. Without differentiation nothing is kept. Works in
    forward and in reverse mode, also to second order.

    Example:
        >>> import jax
        >>> from ode_nets import Direct, FixedStep, solve
        >>> end = lambda k: solve(lambda t, x, k: -k * x, 1.0, k, solver=FixedStep("euler", 2), gradient=Direct()).x
        >>> float(jax.grad(end)(1.0))
        -0.5
    """

    forward_mode: ClassVar[bool] = True
    """Whether it works in forward mode too."""

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        return differentiable(problem, solver, lambda step: step, dense)


@dataclasses.dataclass(frozen=True)
@checked
class Checkpointed:
    """Differentiate through the accepted steps, recomputing in the backward pass what would cost memory to keep.

    Args:
      unit: `"step"` keeps one state a step and recomputes inside the step; `"block"` keeps the initial
        state alone and recomputes the whole solve (ANODE; ANODEV2 sec. 3), then as `Direct`.

    The gradient is that of `Direct`. Works in forward and in reverse mode.

    Example:
        >>> Checkpointed("block")
        Checkpointed(unit='block')
    """

    unit: Literal["step", "block"] = "step"

    forward_mode: ClassVar[bool] = True
    """Whether it works in forward mode too."""

    def run(self, problem: Problem, solver: Solver, dense: bool = False) -> Solution:
        """Solve `problem` with `solver`."""
        if self.unit == "step":
            return differentiable(problem, solver, jax.checkpoint, dense)
        arrays, frame = split(solver)

        @jax.checkpoint
        def block(problem: Problem, arrays: list[Any]) -> Solution:
            return differentiable(problem, frame.fill(arrays), lambda step: step, dense)

        return block(problem, arrays)


def differentiable(problem: Problem, solver: Solver, transform: Transform, dense: bool) -> Solution:
    """A solve through which both modes of differentiation work, `transform` around each of its steps.

    Where the number of steps is known it is a scan over them. Otherwise it takes the steps that it needs, and where it
    is differentiated takes them once more as a scan over as many as there may be.
    """
    if solver.length is not None:
        return follow_times(problem, solver, replay(problem, solver, None, transform, dense))
    arrays, frame = split(solver)

    @jax.custom_jvp
    def run(problem: Problem, arrays: list[Any]) -> Solution:
        return integrate(problem, frame.fill(arrays), dense)

    @run.defjvp
    @standard
    def derivative(primals: Any, tangents: Any) -> Any:
        constant, solver = jax.lax.stop_gradient(primals[0]), frame.fill(primals[1])
        record = None if solver.recorded else search(constant, solver)
        along = lambda problem: replay(problem, solver, record, transform, dense)
        return jax.jvp(along, primals[:1], tangents[:1])

    return follow_times(problem, solver, run(problem, arrays))
