"""Steps that another loop has found, taken as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.integrate.problem import Place, Problem
from ode_nets.integrate.solution import Result
from ode_nets.integrate.uniform import Clock, FixedStep
from ode_nets.stepping import Scheme, Step, all_finite
from ode_nets.trees import pytree

PyTree = Any


@pytree("scheme", "ends", "n_steps", "rejected", "result")
@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """The steps of a solve that is over, for a gradient method to go back over: `gradient.run(problem, recorded)`.

    Their sizes are constants of differentiation, but for a last step that landed on t1: its size is what was left.

    Args:
      scheme: takes the steps.
      ends: where each step ends, as tau = |t - t0|, ascending, `[max_steps]`; whatever behind the last.
      n_steps: how many there are, int32 scalar.
      rejected: rejected trials of the search, int32 scalar, to be told.
      result: of the search, a `Result`, int32 scalar.

    Example:
        >>> from ode_nets.integrate import integrate, make_problem
        >>> from ode_nets.stepping import get_scheme
        >>> problem = make_problem(lambda t, x, k: -k * x, 1.0, 1.0)
        >>> steps = Recorded(get_scheme("dopri5"), jnp.array([0.25, 1.0]), jnp.int32(2))
        >>> round(float(integrate(problem, steps).x), 3)
        0.368
    """

    scheme: Scheme
    ends: Any
    n_steps: Any
    rejected: Any = 0
    result: Any = Result.SUCCESS

    def __post_init__(self) -> None:
        for name in ("n_steps", "rejected", "result"):
            object.__setattr__(self, name, jnp.asarray(getattr(self, name), jnp.int32))

    def __repr__(self) -> str:
        return f"Recorded({self.scheme!r}, <at most {self.bound} steps>)"

    length = None
    """Number of steps: it is not known at trace time."""
    estimates = False
    """Whether steps are judged by an error."""
    recorded = True
    """Whether steps are known before they are taken."""

    @property
    def bound(self) -> int:
        """Most steps."""
        return int(jnp.shape(self.ends)[0])

    def lands(self, problem: Problem) -> bool:
        """Whether asked times are met by ends of steps: they are interpolated.

        Raises:
          ValueError: where there are any, and the scheme has no interpolant.
        """
        if problem.ts is not None and not self.scheme.interpolates:
            raise ValueError(f"scheme {self.scheme.name!r} has no interpolant, by which asked times would be met")
        return problem.ts is None

    def count(self) -> Any:
        """Steps that are taken."""
        return self.n_steps

    def begin(self, problem: Problem) -> tuple[Clock, PyTree, Any]:
        """The clock before the first step, what the scheme starts with, and the evaluations that took."""
        zero, none = jnp.zeros_like(problem.span), jnp.int32(0)
        return Clock(zero, zero, none, self.rejected, zero, none, self.result), None, none

    def running(self, clock: Clock) -> jax.Array:
        """Whether another step is due."""
        return clock.step < self.n_steps

    def arrived(self, clock: Clock) -> jax.Array:
        """Whether the last step has been taken, of a search that reached t1."""
        return (clock.step >= self.n_steps) & (self.result == Result.SUCCESS)

    def place(self, problem: Problem, step: Any, tau: Any, end: Any, cursor: Any) -> Place:
        """Step number `step` again."""
        ends = jax.lax.stop_gradient(jnp.asarray(self.ends, problem.span.dtype))
        start = jnp.where(step > 0, ends[jnp.maximum(step - 1, 0)], 0)
        last = (step == self.n_steps - 1) & (self.result == Result.SUCCESS)
        # What is left to t1 moves with it, and the end is t1 itself.
        end = jnp.where(last, problem.span, ends[step])
        return Place(start, end - start, end)

    def propose(self, problem: Problem, clock: Clock) -> Place:
        """The step to take next."""
        return self.place(problem, clock.step, None, None, None)

    def judge(self, problem: Problem, clock: Clock, place: Place, x: PyTree, step: Step) -> tuple[Clock, Any]:
        """The clock after a step, and that it counts."""
        result = clock.result
        if step.good is not None:
            result = jnp.where(step.good | (result != Result.SUCCESS), result, Result.NON_FINITE).astype(jnp.int32)
        return clock._replace(tau=place.end, step=clock.step + 1, result=result), True

    def passed(self, problem: Problem, j: Any, clock: Clock) -> jax.Array:
        """Whether asked time j lies behind the clock, or at it."""
        return problem.ts[j] <= clock.tau

    def among(self, problem: Problem, span: Any) -> FixedStep:
        """As many steps on a part of the problem as there were on average, of one size."""
        share = jnp.where(problem.span == 0, 0, span / jnp.where(problem.span == 0, 1, problem.span))
        steps = jnp.ceil(share * self.n_steps.astype(share.dtype) - 1e-2)
        return FixedStep(self.scheme, jnp.maximum(steps, 1).astype(jnp.int32), self.bound)

    def outcome(self, clock: Clock, x: PyTree, aux: PyTree) -> jax.Array:
        """The `Result` of a solve after its loop."""
        good = all_finite(x, aux)
        return jnp.where((clock.result == Result.SUCCESS) & ~good, Result.NON_FINITE, clock.result).astype(jnp.int32)
