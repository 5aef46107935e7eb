"""Steps that another loop has found, taken as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.integrate.problem import Place, Problem, in_order
from ode_nets.integrate.solution import Result, Solution
from ode_nets.integrate.uniform import Clock, KnownSteps
from ode_nets.stepping import Scheme, get_scheme
from ode_nets.tableaus import Tableau
from ode_nets.trees import pytree

PyTree = Any


@pytree("scheme", "ends", "n_steps", "rejected", "result")
@dataclasses.dataclass(frozen=True, eq=False)
class Recorded(KnownSteps):
    """The accepted steps of an earlier solve, taken again: many values and gradients at frozen steps.

    Every gradient method goes with it, and none searches: a step costs its evaluations and no error estimate. Sizes of
    steps are constants of the program, not only of differentiation, but for the last, which lands on t1: where weights
    change, values change smoothly, as those of an adaptive solver do not. `Backsolve` takes them the other way round.

    Args:
      solution: of `solve(..., dense=True)`, from the same t0; may be traced. Where that solve failed, this one does.
        Of several lanes, the solver is to be mapped with `jax.vmap` as they were.
      scheme: takes the steps; has an interpolant where times are asked for. `None` for the one that took them.

    Raises:
      ValueError: for a solution without steps.

    Example:
        >>> from ode_nets import Adaptive, Recorded, solve
        >>> field = lambda t, x, k: -k * x
        >>> found = solve(field, 1.0, 2.0, solver=Adaptive("dopri5", rtol=1e-5), dense=True)
        >>> again = solve(field, 1.0, 2.1, solver=Recorded(found))
        >>> int(again.n_accepted) == int(found.n_accepted), int(again.n_rejected), round(float(again.x), 3)
        (True, 0, 0.122)
    """

    scheme: Scheme
    ends: Any
    n_steps: Any
    rejected: Any
    result: Any

    def __init__(self, solution: Solution, scheme: Scheme | Tableau | str | None = None):
        if not isinstance(solution, Solution):
            raise ValueError(f"solution={solution!r}: expected what solve(..., dense=True) gives")
        steps = solution.steps
        scheme = solution.dense.scheme if scheme is None else get_scheme(scheme)  # type: ignore[union-attr]
        # Their sum, and not their times, which are rounded to the precision of t0.
        self._set(scheme, jnp.cumsum(jnp.abs(steps.h), axis=-1), steps.n, jnp.zeros_like(steps.n), solution.result)

    @classmethod
    def at(cls, scheme: Scheme, ends: Any, n_steps: Any, rejected: Any = 0, result: Any = Result.SUCCESS) -> Recorded:
        """Steps by their ends.

        Args:
          ends: where each step ends, as tau = |t - t0|, ascending, `[max_steps]`; whatever behind the last.
          n_steps: how many there are, int32 scalar.
          rejected: rejected trials of the search, int32 scalar, to be told.
          result: of the search, a `Result`, int32 scalar.
        """
        new = object.__new__(cls)
        new._set(scheme, ends, n_steps, rejected, result)
        return new

    def _set(self, scheme: Scheme, ends: Any, *counts: Any) -> None:
        object.__setattr__(self, "scheme", scheme)
        object.__setattr__(self, "ends", ends)
        for name, count in zip(("n_steps", "rejected", "result"), counts, strict=True):
            object.__setattr__(self, name, jnp.asarray(count, jnp.int32))

    def __repr__(self) -> str:
        return f"Recorded({self.scheme!r}, <at most {self.bound} steps>)"

    length = None
    """Number of steps: it is not known at trace time."""

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
        last = self.place(problem, jnp.maximum(self.n_steps - 1, 0), None, None, None)
        stuck = ((self.n_steps == 0) | (last.h <= 0)) & (problem.span > 0)
        result = jnp.where(stuck & (self.result == Result.SUCCESS), Result.STEP_UNDERFLOW, self.result)
        result = jnp.where(in_order(problem), result, Result.UNSORTED_TIMES)
        return Clock(zero, zero, none, self.rejected, zero, none, result.astype(jnp.int32)), None, none

    def running(self, clock: Clock) -> jax.Array:
        """Whether another step is due."""
        return clock.step < self.n_steps

    def arrived(self, clock: Clock) -> jax.Array:
        """Whether the last step has been taken, of a search that reached t1."""
        failed = clock.result == Result.STEP_UNDERFLOW
        failed |= (clock.result == Result.UNSORTED_TIMES) | (self.result != Result.SUCCESS)
        return (clock.step >= self.n_steps) & ~failed

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

    def passed(self, problem: Problem, j: Any, clock: Clock) -> jax.Array:
        """Whether asked time j lies behind the clock, or at it."""
        return problem.ts[j] <= clock.tau

    def among(self, problem: Problem, begin: Any, end: Any) -> Recorded:
        """The steps on a part of the problem, the other way round."""
        ends = jnp.asarray(self.ends, problem.span.dtype)
        starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
        within = (jnp.arange(self.bound) < self.n_steps) & (starts > begin) & (starts < end)
        mirrored = jnp.sort(jnp.where(within, end - starts, jnp.inf))
        return Recorded.at(self.scheme, mirrored, jnp.sum(within) + 1)
