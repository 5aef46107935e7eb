"""A solver and a step size controller of diffrax, as a solver of ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, Positive, checked
from ode_nets.gradients import ACA, Backsolve, Checkpointed, Direct, GradientMethod
from ode_nets.gradients.aca import MEBIBYTE
from ode_nets.gradients.methods import refusal, run_compiled
from ode_nets.gradients.reverse_only import refuse_forward_mode
from ode_nets.integrate import Problem, Result, Solution, theta_at
from ode_nets.integrate.recorded import Recorded
from ode_nets.integrate.solution import mark_failed
from ode_nets.interop.adjoint import AdaptiveCheckpointAdjoint, plain_adjoint
from ode_nets.interop.guard import calm, guard
from ode_nets.interop.scheme import DiffraxScheme, Term, cast_like, explicit, filled, tolerances, values_of
from ode_nets.stepping import all_finite

PyTree = Any
UNKNOWN = -1
"""`nfe` of a solver whose evaluations cannot be told from its steps."""


@dataclasses.dataclass(frozen=True, eq=False)
@checked
class DiffraxSolver:
    """A solver and a step size controller of diffrax, wherever `solve` and `OdeBlock` take a solver.

    Where diffrax has the gradient method, it is diffrax's: `ACA(checkpoints)` is our `AdaptiveCheckpointAdjoint` for
    explicit Runge-Kutta solvers, `Direct()` is `DirectAdjoint`, `Checkpointed()`, the default, is
    `RecursiveCheckpointAdjoint` (either unit, reverse mode only) and `Backsolve()` is `BacksolveAdjoint`.

    Everything else takes two passes: diffrax's loop finds the steps, and our loop takes them again, as `Recorded`
    steps of `DiffraxScheme(solver)`, under any gradient method. These are fields with reports (`has_aux`, batch norms
    in training), `dense=True`, `ACA` with other solvers than explicit Runge-Kutta ones, `Direct` with
    `diffrax.HalfSolver`, and a gradient method of one's own.

    What is different from our solvers: in diffrax's loop a weight function that jumps is read at the floating-point
    time of a stage, from the side that the solve goes to, so that a stage on a jump, or within rounding of one, may see
    the interval that follows; a controller that steps onto the jumps
    (`diffrax.ClipStepSizeController(jump_ts=...)`) takes care of it. Unsorted traced `ts` raise an error from
    inside jit, as they do in diffrax.

    `nfe` counts stages * trials of explicit Runge-Kutta solvers, less the one that a first-same-as-last
    solver saves of each trial but the first. Not counted are what a controller spends on the choice of a
    first step, first stages that diffrax evaluates again, after a jump and while no trial has been
    accepted yet, and the second pass. For any other solver it is -1: evaluations cannot be told from steps.

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

    Example:
        >>> import diffrax
        >>> from ode_nets import solve
        >>> solver = DiffraxSolver(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-5, atol=1e-8))
        >>> round(float(solve(lambda t, x, k: -k * x, 1.0, 2.0, solver=solver).x), 4)
        0.1353
    """

    solver: Any
    stepsize_controller: Any = diffrax.ConstantStepSize()  # noqa: RUF009
    dt0: Positive | None = None
    max_steps: Count = 4096
    adjoint: Any = None

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
        if self.dt0 is None and isinstance(self.stepsize_controller, diffrax.ConstantStepSize):
            raise ValueError("dt0=None: diffrax.ConstantStepSize() takes steps of size dt0; give one")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiffraxSolver) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def _values(self) -> tuple[Any, ...]:
        return *values_of(self.solver, self.stepsize_controller, self.adjoint), self.dt0, self.max_steps

    def refuses(self, gradient: GradientMethod | None, dense: bool, reports: bool) -> str | None:
        """What diffrax's adjoints cannot do, and what gradient methods refuse of steps that are taken again."""
        backsolve = gradient if isinstance(gradient, Backsolve) and self.adjoint is None else None
        judged = isinstance(self.stepsize_controller, diffrax.AbstractAdaptiveStepSizeController)
        if backsolve is not None and _tolerances(backsolve) and not judged:
            return (
                f"gradient={gradient!r}: {type(self.stepsize_controller).__name__} has no tolerances to change; leave "
                "them out, or use diffrax.PIDController"
            )
        if self._adjoint(gradient) is not None and not reports and not dense:
            return None
        what = "dense=True" if dense else "a field that reports something beside dx (a batch norm in training does)"
        if self.adjoint is not None:
            return (
                f"{what} with adjoint={type(self.adjoint).__name__}: the steps have to be taken again, which is up to "
                "the gradient method; leave the adjoint out"
            )
        if backsolve is not None:
            return (
                f"{what} with gradient=Backsolve(): what it needs of every step is not there on the way back; use "
                "ACA(), Direct() or Checkpointed()"
            )
        steps = Recorded.at(DiffraxScheme(self.solver), np.broadcast_to(np.inf, self.max_steps), 0)
        return refusal(steps, gradient, dense=dense)

    def solve(self, problem: Problem, gradient: GradientMethod | None, dense: bool = False) -> Solution:
        """Solve `problem`, differentiable by `gradient`; `None` is `Checkpointed()`."""
        adjoint = self._adjoint(gradient)
        if adjoint is not None and not jax.tree.leaves(problem.aux_shapes()) and not dense:
            return self._own(problem, adjoint)
        return self._again(problem, Checkpointed() if gradient is None else gradient, dense)

    def _adjoint(self, gradient: GradientMethod | None) -> diffrax.AbstractAdjoint | None:
        """The adjoint that is given, or that of diffrax that a gradient method of ours stands for, if there is one."""
        if self.adjoint is not None:
            return self.adjoint
        if isinstance(gradient, ACA):
            if not explicit(self.solver):
                return None
            # What fits of a state of unknown size.
            few = gradient.slots(MEBIBYTE, self.max_steps)
            return AdaptiveCheckpointAdjoint(few if gradient.checkpoints == "auto" else gradient.checkpoints)
        if isinstance(gradient, Direct):
            # It fails for this solver, as `ForwardMode` does.
            return None if isinstance(self.solver, diffrax.HalfSolver) else diffrax.DirectAdjoint()
        if gradient is None or isinstance(gradient, Checkpointed):
            return diffrax.RecursiveCheckpointAdjoint()
        if not isinstance(gradient, Backsolve):
            return None
        controller, changes = self.stepsize_controller, _tolerances(gradient)
        if gradient.seminorm and hasattr(controller, "norm"):
            changes["norm"] = diffrax.adjoint_rms_seminorm
        if not changes:
            return diffrax.BacksolveAdjoint()
        where = lambda c: [getattr(c, name) for name in changes]
        controller = eqx.tree_at(where, controller, list(changes.values()))
        return diffrax.BacksolveAdjoint(stepsize_controller=controller)

    def _own(self, problem: Problem, adjoint: diffrax.AbstractAdjoint) -> Solution:
        """diffrax's own solve and gradient."""
        if isinstance(adjoint, AdaptiveCheckpointAdjoint):
            problem = refuse_forward_mode(problem, "ACA(...)")
        if isinstance(adjoint, diffrax.BacksolveAdjoint):
            _check_precision(problem)
        ts = None if problem.ts is None else problem.time(problem.ts)
        saveat: dict[str, Any] = {"t1": True} if ts is None else {"ts": ts}
        solution = self._diffeqsolve(problem, adjoint, diffrax.SaveAt(**saveat))
        leaves: Any = cast_like(solution.ys, jax.tree.leaves(problem.x0))
        done = jnp.asarray(solution.result == diffrax.RESULTS.successful)
        if isinstance(self.solver, diffrax.AbstractImplicitSolver):
            # Systems of a solve that failed are not solved again.
            theta = theta_at(problem.weights, problem.t0, problem.sign)
            leaves = guard(leaves, (problem.x0, problem.slope(problem.t0, problem.x0, theta)[0]))
        if ts is None:
            leaves, reached = [leaf[0] for leaf in leaves], done
        else:
            reached = jnp.isfinite(jnp.asarray(solution.ts))
            leaves = [_where(reached, leaf) for leaf in leaves]
        x = mark_failed(jax.tree.unflatten(jax.tree.structure(problem.x0), leaves), reached)
        code = _code(solution)
        stats = solution.stats
        return Solution(
            x=x,
            aux=jax.tree.map(lambda leaf: leaf, problem.aux_shapes()),
            nfe=self._evaluations(stats),
            n_accepted=jnp.asarray(stats["num_accepted_steps"], jnp.int32),
            n_rejected=jnp.asarray(stats["num_rejected_steps"], jnp.int32),
            result=jnp.where((code == Result.SUCCESS) & ~all_finite(x), Result.NON_FINITE, code).astype(jnp.int32),
        )

    def _again(self, problem: Problem, gradient: GradientMethod, dense: bool) -> Solution:
        """The steps of diffrax's solve, and a gradient method of ours over them."""
        scheme = DiffraxScheme(self.solver, *self._root_tolerances(problem))
        constant = jax.lax.stop_gradient(problem)
        saveat = diffrax.SaveAt(steps=True, fn=lambda t, y, args: None)
        found = self._diffeqsolve(constant, plain_adjoint(self.solver), saveat)
        ends = jnp.abs(jnp.asarray(found.ts, problem.span.dtype) - constant.t0)
        stats = found.stats
        steps = Recorded.at(scheme, ends, stats["num_accepted_steps"], stats["num_rejected_steps"], _code(found))
        solution = run_compiled(problem, steps, gradient, dense)
        return dataclasses.replace(solution, nfe=self._evaluations(stats))

    def _diffeqsolve(self, problem: Problem, adjoint: Any, saveat: diffrax.SaveAt) -> diffrax.Solution:
        """What diffrax makes of the problem. The state is the list of its leaves."""
        # BacksolveAdjoint stumbles over containers without any, too.
        leaves, structure = jax.tree.flatten((problem.weights, problem.consts))
        implicit = isinstance(self.solver, diffrax.AbstractImplicitSolver)
        # In the precision of the times, as interpolants of diffrax are, and systems of an implicit solver have to be.
        start = [
            leaf.astype(jnp.promote_types(leaf.dtype, problem.span.dtype)) for leaf in jax.tree.leaves(problem.x0)
        ]

        def slope(t: Any, y: list[jax.Array], args: Any) -> list[jax.Array]:
            weights, consts = jax.tree.unflatten(structure, args or [])
            x = cast_like(jax.tree.unflatten(jax.tree.structure(problem.x0), y), problem.x0)
            t = jnp.asarray(t, problem.t0.dtype)
            dx = jax.tree.leaves(problem.program(consts, t, x, theta_at(weights, t, problem.sign))[0])
            return cast_like(dx, start)

        field = (lambda t, y, args: calm(lambda t, y: slope(t, y, args))(t, y)) if implicit else slope
        return diffrax.diffeqsolve(
            Term(field),
            filled(self.solver, *self._root_tolerances(problem), both=False) if implicit else self.solver,
            problem.t0,
            problem.time(problem.span),
            None if self.dt0 is None else self.dt0 * problem.sign,
            start,
            leaves or None,
            saveat=saveat,
            stepsize_controller=self.stepsize_controller,
            adjoint=adjoint,
            max_steps=self.max_steps,
            throw=False,
        )

    def _evaluations(self, stats: dict[str, Any]) -> jax.Array:
        trials = jnp.asarray(stats["num_steps"], jnp.int32)
        scheme = explicit(self.solver)
        if scheme is None:
            return jnp.full_like(trials, UNKNOWN)
        shared = jnp.maximum(trials - 1, 0) if scheme.tableau.fsal else 0
        return scheme.tableau.n_stages * trials - shared

    def _root_tolerances(self, problem: Problem) -> tuple[float, float]:
        """Those of the controller, as in diffrax, where it has numbers for them."""
        given = (getattr(self.stepsize_controller, name, None) for name in ("rtol", "atol"))
        rtol, atol = (float(value) if isinstance(value, (int, float)) else None for value in given)
        return tolerances(problem.x0, rtol, atol or None)


def _check_precision(problem: Problem) -> None:
    """Refuse what `diffrax.BacksolveAdjoint` fails for: it ravels state, weights and times into one array."""
    named = {"x0": problem.x0, "the weights": (problem.weights, problem.consts)}
    for name, tree in named.items():
        for leaf in jax.tree.leaves(tree):
            if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) and jnp.result_type(leaf) != problem.span.dtype:
                raise ValueError(
                    f"{name} of {jnp.result_type(leaf)} with times of {problem.span.dtype}: the backward solve of "
                    f"diffrax has one precision; give arrays of {problem.span.dtype}, or use ACA(), Checkpointed() or "
                    "Direct(), or Adaptive with Backsolve()"
                )


def _tolerances(gradient: Backsolve) -> dict[str, Any]:
    """Those of its own that it has."""
    return {name: value for name in ("rtol", "atol") if (value := getattr(gradient, name)) is not None}


def _code(solution: diffrax.Solution) -> jax.Array:
    """What became of a solve, in our codes."""
    done = solution.result == diffrax.RESULTS.successful
    result = jnp.where(done, Result.SUCCESS, Result.NON_FINITE)
    for theirs, ours in (
        (diffrax.RESULTS.max_steps_reached, Result.MAX_STEPS),
        (diffrax.RESULTS.max_steps_rejected, Result.MAX_STEPS),
        (diffrax.RESULTS.dt_min_reached, Result.STEP_UNDERFLOW),
    ):
        result = jnp.where(solution.result == theirs, ours, result)
    return result.astype(jnp.int32)


def _where(reached: jax.Array, leaf: jax.Array) -> jax.Array:
    """Rows that were reached; zeros where diffrax has put infinities."""
    return jnp.where(reached.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
