"""A solver and a step size controller of diffrax, as a solver of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, GradientMethod
from ode_nets.gradients.closure import Closed
from ode_nets.gradients.outputs import run_marked
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.integrate import Problem, Result, Solution, is_finite, theta_at
from ode_nets.integrate.adaptive import poison
from ode_nets.interop.adjoint import AdaptiveCheckpointAdjoint

PyTree = Any
UNKNOWN = -1
"""`nfe` of a solver whose evaluations cannot be told from its steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class DiffraxSolver:
    """A solver and a step size controller of diffrax, wherever `solve` and `OdeBlock` take a solver.

        solver = DiffraxSolver(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-3, atol=1e-6))
        OdeBlock(unit, basis, solver, gradient=ACA())

    The gradient methods are diffrax's: `ACA(checkpoints)` is our `AdaptiveCheckpointAdjoint`, `Direct()` is
    `DirectAdjoint`, `Checkpointed()` is `RecursiveCheckpointAdjoint` (either unit, reverse mode only) and
    `Backsolve()` is `BacksolveAdjoint`.

    What is different from our solvers: a weight function that jumps is read at the floating-point time of a
    stage, from the side that the solve goes to, so that a stage on a jump, or within rounding of one, may see
    the interval that follows; a controller that steps onto the jumps
    (`diffrax.ClipStepSizeController(jump_ts=...)`) takes care of it. Unsorted traced `ts` raise an error from
    inside jit, as they do in diffrax. What a field reports (`has_aux` fields, batch norms in training) is
    summed by one more pass over the accepted steps, which takes `ACA` and an explicit Runge-Kutta solver.

    `nfe` counts stages * trials of explicit Runge-Kutta solvers, less the one that a first-same-as-last
    solver saves of each trial but the first. Not counted are what a controller spends on the choice of a
    first step, and first stages that diffrax evaluates again, after a jump and while no trial has been
    accepted yet. For any other solver it is -1: evaluations cannot be told from steps.

    Args:
      solver: any `diffrax.AbstractSolver` for ordinary differential equations.
      stepsize_controller: any `diffrax.AbstractStepSizeController`.
      dt0: first step, or every step of `diffrax.ConstantStepSize`: a positive number, whichever way the solve
        goes; `None` leaves it to the controller.
      max_steps: bound on trials, accepted and rejected together.
      adjoint: a `diffrax.AbstractAdjoint` to use whatever the gradient method.

    Raises:
      ValueError: for arguments of another kind or out of range and, in `solve`, for a gradient method that
        cannot do what is asked.
    """

    solver: diffrax.AbstractSolver
    stepsize_controller: diffrax.AbstractStepSizeController = diffrax.ConstantStepSize()  # noqa: RUF009
    dt0: float | None = None
    max_steps: int = 4096
    adjoint: diffrax.AbstractAdjoint | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("solver", diffrax.AbstractSolver),
            ("stepsize_controller", diffrax.AbstractStepSizeController),
            ("adjoint", diffrax.AbstractAdjoint),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "adjoint" and value is None):
                raise ValueError(
                    f"{name}={value!r}: expected a diffrax.{kind.__name__}; a FixedStep or Adaptive goes to "
                    "solve as it is"
                )
        if self.dt0 is not None and not self.dt0 > 0:
            raise ValueError(f"dt0={self.dt0}: expected None or a number above 0; t1 < t0 turns it around")
        if self.dt0 is None and isinstance(self.stepsize_controller, diffrax.ConstantStepSize):
            raise ValueError("dt0=None: diffrax.ConstantStepSize() takes steps of size dt0; give one")
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps}: expected at least 1")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiffraxSolver) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def run(self, problem: Problem, gradient: GradientMethod) -> Solution:
        """Solve `problem`, differentiable by `gradient`."""
        return run_marked(problem, partial(self._run, gradient=gradient))

    def _run(self, problem: Problem, closed: Closed, gradient: GradientMethod) -> Solution:
        adjoint = self.adjoint if self.adjoint is not None else _adjoint(gradient, self.stepsize_controller)
        # Leaves alone, because BacksolveAdjoint stumbles over containers without any.
        leaves, structure = jax.tree.flatten((problem.weights, closed.consts))
        inputs = (problem.x0, leaves or None, problem.t0, problem.t1, problem.ts)
        if isinstance(adjoint, AdaptiveCheckpointAdjoint):
            inputs = refuse_forward_mode(inputs, "ACA(...)")
        x0, args, t0, t1, ts = inputs
        sign = jnp.where(t0 < t1, 1, -1)

        def evaluate(t: Any, x: PyTree, args: Any) -> tuple[PyTree, PyTree]:
            weights, consts = jax.tree.unflatten(structure, args or [])
            return closed.field(consts)(t, x, theta_at(weights, t, sign))

        aux = jax.eval_shape(lambda: evaluate(t0, x0, args)[1])
        if jax.tree.leaves(aux):
            # Inside a solve, diffrax's time runs forward.
            adjoint = _reporting(adjoint, lambda t, x, args: evaluate(sign * t, x, args)[1])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, args: evaluate(t, x, args)[0]),
            self.solver,
            t0,
            t1,
            None if self.dt0 is None else self.dt0 * sign,
            x0,
            args,
            saveat=diffrax.SaveAt(t1=True) if ts is None else diffrax.SaveAt(ts=ts),
            stepsize_controller=self.stepsize_controller,
            adjoint=adjoint,
            max_steps=self.max_steps,
            throw=False,
        )
        return self._solution(solution, aux, ts is None)

    def _solution(self, solution: diffrax.Solution, aux: PyTree, single: bool) -> Solution:
        done = solution.result == diffrax.RESULTS.successful
        x: PyTree = solution.ys
        if single:
            x = poison(jax.tree.map(lambda leaf: leaf[0], x), jnp.asarray(done))
        else:
            reached = jnp.isfinite(jnp.asarray(solution.ts))
            x = poison(jax.tree.map(lambda leaf: _where(reached, leaf), x), reached)
        result = jnp.where(is_finite(x), Result.SUCCESS, Result.NON_FINITE)
        for theirs, ours in (
            (diffrax.RESULTS.max_steps_reached, Result.MAX_STEPS),
            (diffrax.RESULTS.max_steps_rejected, Result.MAX_STEPS),
            (diffrax.RESULTS.dt_min_reached, Result.STEP_UNDERFLOW),
        ):
            result = jnp.where(solution.result == theirs, ours, result)
        result = jnp.where(~done & (result == Result.SUCCESS), Result.NON_FINITE, result)
        trials = solution.stats["num_steps"]
        return Solution(
            x=x,
            aux=solution.stats["reports"] if jax.tree.leaves(aux) else jax.tree.map(lambda leaf: leaf, aux),
            nfe=jnp.asarray(self._evaluations(trials), jnp.int32),
            n_accepted=jnp.asarray(solution.stats["num_accepted_steps"], jnp.int32),
            n_rejected=jnp.asarray(solution.stats["num_rejected_steps"], jnp.int32),
            result=result.astype(jnp.int32),
        )

    def _evaluations(self, trials: jax.Array) -> Any:
        solver = type(self.solver)
        if solver is diffrax.Euler:
            return trials
        tableau = solver.tableau if issubclass(solver, diffrax.AbstractERK) else None
        if not isinstance(tableau, diffrax.ButcherTableau):
            return UNKNOWN
        shared = jnp.maximum(trials - 1, 0) if tableau.fsal else 0
        return tableau.num_stages * trials - shared


def _values(solver: DiffraxSolver) -> tuple[Any, ...]:
    """All that a solver is, hashable: controllers hold arrays, such as jump times, which are not."""
    leaves, structure = jax.tree.flatten((solver.solver, solver.stepsize_controller, solver.adjoint))
    plain = lambda leaf: (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()) if eqx.is_array(leaf) else leaf
    return structure, *map(plain, leaves), solver.dt0, solver.max_steps


class _Reporting(AdaptiveCheckpointAdjoint):
    """Adds up what a field reports."""

    reporter: Callable[..., PyTree] | None = None

    @property
    def report(self) -> Any:
        return self.reporter


def _reporting(adjoint: diffrax.AbstractAdjoint, report: Callable[..., PyTree]) -> diffrax.AbstractAdjoint:
    if isinstance(adjoint, AdaptiveCheckpointAdjoint):
        return _Reporting(adjoint.checkpoints, report)
    raise ValueError(
        "the field reports something beside dx (a batch norm in training does), which "
        f"{type(adjoint).__name__} cannot add up over stages: use gradient=ACA() with an explicit "
        "Runge-Kutta solver of diffrax, or a solver of ours (FixedStep, Adaptive)"
    )


def _adjoint(gradient: GradientMethod, controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractAdjoint:
    """The adjoint of diffrax that a gradient method of ours stands for."""
    if isinstance(gradient, ACA):
        return AdaptiveCheckpointAdjoint(gradient.checkpoints)
    if isinstance(gradient, Direct):
        return diffrax.DirectAdjoint()
    if isinstance(gradient, Checkpointed):
        return diffrax.RecursiveCheckpointAdjoint()
    if not isinstance(gradient, Backsolve):
        raise ValueError(
            f"gradient={gradient!r}: expected ACA(), Direct(), Checkpointed() or Backsolve() with a "
            "DiffraxSolver; for another method give the solver an adjoint, DiffraxSolver(..., adjoint=...)"
        )
    changes = {name: value for name in ("rtol", "atol") if (value := getattr(gradient, name)) is not None}
    if not changes:
        return diffrax.BacksolveAdjoint()
    if not isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        raise ValueError(
            f"gradient={gradient!r}: {type(controller).__name__} has no tolerances to change; leave them "
            "out, or use diffrax.PIDController"
        )
    where = lambda c: [getattr(c, name) for name in changes]
    controller = eqx.tree_at(where, controller, list(changes.values()))
    return diffrax.BacksolveAdjoint(stepsize_controller=controller)


def _where(reached: jax.Array, leaf: jax.Array) -> jax.Array:
    """Rows that were reached; zeros where diffrax has put infinities."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
