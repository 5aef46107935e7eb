"""Steps that are sized by their error."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, checked, is_real, shown
from ode_nets.axes import AxisName, all_over, axis_names
from ode_nets.control import Norm, StepController, initial_step, scaled_norm
from ode_nets.integrate.loop import Solver
from ode_nets.integrate.problem import Place, Problem, evaluator, in_order, unresolved
from ode_nets.integrate.solution import Result
from ode_nets.integrate.uniform import Clock
from ode_nets.stepping import START, Step, all_finite, get_scheme
from ode_nets.trees import known, pytree

PyTree = Any
Outputs = Literal["interpolate", "clip"]


@pytree("scheme", "rtol", "atol", "first_step", "min_step")
@dataclasses.dataclass(frozen=True)
@checked
class Adaptive:
    """Steps of a scheme with an error estimate, sized by that error.

    Args:
      scheme: the key of an embedded tableau (`"heun_euler"`, `"bosh3"`, `"fehlberg21"`, `"dopri5"`, `"tsit5"`), a
        `Tableau`, or any `Scheme` with an error estimate.
      rtol, atol: relative and absolute tolerance above 0 (atol may be 0): scalars, arrays that broadcast against every
        leaf of the state, or pytrees like the state; may be traced.
      first_step: size of the first trial, above 0, may be traced; `None` for Hairer's estimate, which costs
        one evaluation more.
      max_steps: bound on trials, accepted and rejected together.
      min_step: smallest step before the solve gives up; `None` for steps that do not move the clock.
      controller: next step from error.
      norm: `"batch"` controls the error of the whole state, `"sample"` that of the worst sample
        (leading axis).
      outputs: how asked times `ts` are met: `"interpolate"` leaves the steps alone and uses the scheme's interpolant,
        `"clip"` shortens steps to land on them. `None` interpolates where the scheme can.
      axis_name: mesh axis of a `jax.shard_map` over which the samples of the state are spread. All devices then take
        the same steps, by the error of all samples: one reduction of a scalar a trial. Without it each device takes
        steps of its own.

    Raises:
      ValueError: for schemes without error estimate or, with `"interpolate"`, without an interpolant, and for
        values out of range.

    Example:
        >>> Adaptive("dopri5", rtol=1e-6, atol=1e-9)
        Adaptive(dopri5, rtol=1e-06, atol=1e-09)
    """

    scheme: Any
    rtol: Any = 1e-3
    atol: Any = 1e-6
    first_step: Any = None
    max_steps: Count = 4096
    min_step: Any = None
    controller: StepController = StepController()
    norm: Norm = "batch"
    outputs: Outputs | None = None
    axis_name: AxisName = None

    def __post_init__(self) -> None:
        axis_names(self.axis_name)
        object.__setattr__(self, "scheme", get_scheme(self.scheme))
        if self.scheme.error_order is None:
            raise ValueError(
                f"scheme {self.scheme.name!r} has no error estimate; use heun_euler, bosh3, fehlberg21, "
                "dopri5 or tsit5, or FixedStep"
            )
        _check_number("rtol", self.rtol, "above 0", lambda v: v > 0)
        _check_number("atol", self.atol, "at least 0", lambda v: v >= 0)
        for name in ("first_step", "min_step"):
            if getattr(self, name) is not None:
                if not is_real(getattr(self, name)) or np.ndim(getattr(self, name)):
                    raise ValueError(f"{name}={shown(getattr(self, name))}: expected one number above 0, or None")
                _check_number(name, getattr(self, name), "above 0", lambda v: v > 0)
        if self.outputs is None:
            object.__setattr__(self, "outputs", "interpolate" if self.scheme.interpolates else "clip")
        if self.outputs == "interpolate" and not self.scheme.interpolates:
            raise ValueError(f"scheme {self.scheme.name!r} has no interpolant; use outputs='clip'")

    def __repr__(self) -> str:
        return f"Adaptive({self.scheme!r}, rtol={self.rtol}, atol={self.atol})"

    @property
    def length(self) -> int | None:
        """Number of steps: it is never known before."""
        return None

    estimates: ClassVar[Literal[True]] = True
    """Whether steps are judged by an error."""
    recorded = False
    """Whether steps are known before they are taken."""

    @property
    def bound(self) -> int:
        """Most steps."""
        return self.max_steps

    def lands(self, problem: Problem) -> bool:
        """Whether asked times are met by ends of steps, so that nothing is interpolated."""
        return problem.ts is None or self.outputs == "clip"

    def begin(self, problem: Problem) -> tuple[Clock, PyTree, Any]:
        """The clock before the first trial, what the scheme starts with, and the evaluations that took.

        The result is `NON_FINITE` for a step or a span that is not finite, `UNSORTED_TIMES` for asked times out of
        order.
        """
        span, zero = problem.span, jnp.zeros_like(problem.span)
        evaluate = evaluator(problem, Place(zero, zero, zero))
        first, nfe = None, 0
        if self.first_step is None:
            first = evaluate(START, problem.x0)
            h = initial_step(
                lambda tau, x: evaluator(problem, Place(tau, zero, tau))(START, x)[0],
                problem.x0, first[0], span, problem.sign, self.scheme.error_order or 1, self.rtol, self.atol, self.norm,
                self.axis_name,
            )  # fmt: skip
            nfe = 2
            if problem.clocked:
                # A guess may be as wrong as to lie below what the clock resolves, where larger steps are good.
                h = jnp.minimum(jnp.maximum(h, 2 * jnp.finfo(h.dtype).eps * jnp.abs(problem.t0)), span)
        else:
            given = jnp.asarray(self.first_step, span.dtype)
            h = jnp.minimum(jnp.where(given > 0, given, jnp.nan), span)
        carry, more = self.scheme.start(evaluate, problem.x0, first, problem.smooth)
        positive = [jnp.all(jnp.asarray(leaf) > 0) for leaf in jax.tree.leaves(self.rtol)]
        positive += [jnp.all(jnp.asarray(leaf) >= 0) for leaf in jax.tree.leaves(self.atol)]
        good = jnp.all(jnp.stack(positive))
        good &= jnp.isfinite(h) & jnp.isfinite(span) & jnp.isfinite(problem.t0)
        good &= all_over(self.axis_name, all_finite(problem.x0))
        result = jnp.where(good, Result.SUCCESS, Result.NON_FINITE)
        result = jnp.where(in_order(problem), result, Result.UNSORTED_TIMES)
        count = jnp.int32(0)
        error = jnp.ones((), scaled_norm(problem.x0, problem.x0, problem.x0, self.rtol, self.atol).dtype)
        h = jnp.where(span <= 0, -1, h)
        clock = Clock(zero, h, count, count, error, count, result.astype(jnp.int32))
        return clock, carry, jnp.int32(nfe + more)

    def running(self, clock: Clock) -> jax.Array:
        """Whether another trial is due: t1 is ahead (a negative size stands for arrival), nothing has failed."""
        return (clock.h >= 0) & (clock.result == Result.SUCCESS) & (clock.step + clock.rejected < self.max_steps)

    def arrived(self, clock: Clock) -> jax.Array:
        """Whether a step has landed on t1."""
        return clock.h < 0

    def _goal(self, problem: Problem, cursor: Any) -> jax.Array:
        """The time that must be landed on next."""
        if problem.ts is None or self.outputs != "clip":
            return problem.span
        n = problem.n_asked
        return jnp.where(cursor < n, problem.ts[jnp.minimum(cursor, n - 1)], problem.span)

    def place(self, problem: Problem, step: Any, tau: Any, end: Any, cursor: Any) -> Place:
        """A step that went from `tau` to `end`, again: its size is a constant of differentiation, but for a step that
        landed: its size is what was left to the time that it landed on."""
        goal = self._goal(problem, cursor)
        landed = end == goal
        h = jnp.where(landed, goal - tau, jax.lax.stop_gradient(end - tau))
        return Place(tau, h, jnp.where(landed, goal, tau + h))

    def propose(self, problem: Problem, clock: Clock) -> Place:
        """The trial to make next."""
        goal = self._goal(problem, clock.cursor)
        remaining = goal - clock.tau
        landed = remaining <= clock.h * (1 + 1e-6)
        end = jnp.where(landed, goal, clock.tau + clock.h)
        # The state advances by what the clock advances.
        return Place(clock.tau, end - clock.tau, end)

    def judge(self, problem: Problem, clock: Clock, place: Place, x: PyTree, step: Step) -> tuple[Clock, Any]:
        """The clock after a trial, and whether it counts."""
        before, after = self.scheme.lower(x), self.scheme.lower(step.x)
        error = scaled_norm(step.error, before, after, self.rtol, self.atol, self.norm, self.axis_name, step.good)
        landed = place.end == self._goal(problem, clock.cursor)
        stuck = unresolved(problem, place.tau, place.end) & ~landed
        accepted = (error <= 1) & ~stuck
        factor = self.controller.factor(error, clock.error.astype(error.dtype), self.scheme.error_order or 1)
        h = place.h * factor.astype(place.h.dtype)
        # A step that was cut short says nothing against the size that was planned.
        h = jnp.where(accepted & landed, jnp.maximum(h, clock.h), h)
        stuck |= ~accepted & (h < self._smallest(problem, clock))
        why = jnp.where(jnp.isfinite(error), Result.STEP_UNDERFLOW, Result.NON_FINITE)
        done = accepted & (place.end >= problem.span)
        return Clock(
            tau=jnp.where(accepted, place.end, clock.tau),
            h=jnp.where(done, -1, h),
            step=clock.step + accepted.astype(jnp.int32),
            rejected=clock.rejected + (~accepted).astype(jnp.int32),
            error=jnp.where(accepted, error, clock.error).astype(clock.error.dtype),
            cursor=clock.cursor,
            result=jnp.where(stuck, why, clock.result).astype(jnp.int32),
        ), accepted

    def _smallest(self, problem: Problem, clock: Clock) -> jax.Array:
        """Size below which a rejected step is given up: four roundings of the clock that matters."""
        if self.min_step is not None:
            return jnp.asarray(self.min_step, clock.tau.dtype)
        seen = jnp.abs(problem.time(clock.tau)) if problem.clocked else clock.tau
        return 4 * jnp.finfo(clock.tau.dtype).eps * jnp.maximum(seen, clock.tau)

    def passed(self, problem: Problem, j: Any, clock: Clock) -> jax.Array:
        """Whether asked time j lies behind the clock, or at it."""
        return problem.ts[j] <= clock.tau

    def among(self, problem: Problem, begin: Any, end: Any) -> Adaptive:
        """The solver of a part of the problem: itself. A backward solve has no batch to look at sample by sample."""
        return dataclasses.replace(self, norm="batch", outputs="clip")

    def outcome(self, clock: Clock, x: PyTree, aux: PyTree) -> jax.Array:
        """The `Result` of a solve after its loop: success once it has landed on t1."""
        result = jnp.where(self.arrived(clock), Result.SUCCESS, Result.MAX_STEPS)
        if jax.tree.leaves(aux):
            result = jnp.where(all_finite(aux), result, Result.NON_FINITE)
        return jnp.where(clock.result == Result.SUCCESS, result, clock.result).astype(jnp.int32)


def _check_number(name: str, value: Any, allowed: str, good: Any) -> None:
    # A solver is a tree of numbers, too.
    leaves: list[Any] = [value] if isinstance(value, Solver) else jax.tree.leaves(value) or [value]
    for leaf in leaves:
        if not is_real(leaf) or not np.size(leaf):
            raise ValueError(f"{name}={shown(value)}: expected a number {allowed}")
        if known(leaf) and not np.all(good(np.asarray(leaf))):
            raise ValueError(f"{name}={value}: expected a number {allowed}")
