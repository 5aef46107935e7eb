"""Steps of equal size, as many as are asked for."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, checked, is_real, shown
from ode_nets.integrate.problem import Place, Problem, WeightFunction, in_order, unresolved
from ode_nets.integrate.solution import Result
from ode_nets.stepping import RungeKutta, Step, all_finite, get_scheme, pad_scheme
from ode_nets.trees import known, pytree

PyTree = Any
MOST = 4096
"""Bound on a number of steps that is an array, if no other is given."""


class Clock(NamedTuple):
    """Where a solve stands between two steps. Scalars all."""

    tau: jax.Array
    h: jax.Array
    """Size of the next trial."""
    step: jax.Array
    """Steps accepted so far."""
    rejected: jax.Array
    error: jax.Array
    """Scaled error of the last accepted step."""
    cursor: jax.Array
    """Asked times passed so far."""
    result: jax.Array


class KnownSteps:
    """What grids have in common whose steps are known before they are taken: none is judged, and every one counts."""

    estimates: Literal[False] = False
    """Whether steps are judged by an error."""
    recorded = True
    """Whether steps are known before they are taken."""

    def judge(self, problem: Problem, clock: Clock, place: Place, x: PyTree, step: Step) -> tuple[Clock, Any]:
        """The clock after a step, and that it counts."""
        result = clock.result
        if step.good is not None:
            result = jnp.where(step.good | (result != Result.SUCCESS), result, Result.NON_FINITE).astype(jnp.int32)
        return clock._replace(tau=place.end, step=clock.step + 1, result=result), True

    def outcome(self, clock: Clock, x: PyTree, aux: PyTree) -> jax.Array:
        """The `Result` of a solve after its loop."""
        good = all_finite(x, aux)
        return jnp.where((clock.result == Result.SUCCESS) & ~good, Result.NON_FINITE, clock.result).astype(jnp.int32)


@pytree("scheme", "n_steps")
@dataclasses.dataclass(frozen=True)
class FixedStep(KnownSteps):
    """`n_steps` equal steps of a scheme.

        x_{n+1} = x_n + h * sum_i b_i k_i,  h = (t1 - t0) / n_steps          (ContinuousNet eq. 11)

    Args:
      scheme: the key of a tableau (`"euler"`, `"midpoint"`, `"rk4"`, ...), a `Tableau`, or any `Scheme`.
      n_steps: number of steps, at least 1. Compile time does not depend on it. An integer array makes it a variable
        of the program: one compiled program then serves every number of steps, and costs each its own.
      max_steps: bound of a number of steps that is an array; beyond, the state is NaN and the result `MAX_STEPS`.
        `Direct()` and `Checkpointed()` have room for as many where they are differentiated.

    Weights defined on [t0, t1] are read by exact arithmetic on (step, stage node), with the limit from inside the step
    where they jump; on any other interval they are read at the floating-point stage time.

    Raises:
      ValueError: for an unknown scheme, fewer than one step, or a number of steps that is not an integer.

    Example:
        >>> FixedStep("rk4", 4)
        FixedStep(rk4, 4)
    """

    scheme: Any
    n_steps: Any
    max_steps: Count = MOST

    @checked
    def __init__(self, scheme: Any, n_steps: Any, max_steps: Count = MOST):
        object.__setattr__(self, "scheme", get_scheme(scheme))
        object.__setattr__(self, "n_steps", _checked_steps(n_steps, max_steps))
        object.__setattr__(self, "max_steps", max_steps)

    def __repr__(self) -> str:
        return f"FixedStep({self.scheme!r}, {self.n_steps})"

    @property
    def length(self) -> int | None:
        """Number of steps, where it is known at trace time."""
        return self.n_steps if isinstance(self.n_steps, int) else None

    @property
    def bound(self) -> int:
        """Most steps."""
        return self.length or self.max_steps

    def refined(self, factor: Count) -> FixedStep:
        """`factor` steps in the place of each."""
        return FixedStep(self.scheme, self.n_steps * factor, self.max_steps)

    def lands(self, problem: Problem) -> bool:
        """Whether asked times are met by ends of steps, so that nothing is interpolated.

        Raises:
          ValueError: where they are not and the scheme has no interpolant.
        """
        if problem.ts is None:
            return True
        if problem.known_ts is not None and self.length is not None:
            off = [abs(f * self.length - round(f * self.length)) for f, _ in problem.known_ts]
            slack = [min(0.01, 1e-6 + e * self.length) for _, e in problem.known_ts]
            bad = [f for f, o, s in zip(problem.known_ts, off, slack, strict=True) if o > s]
            if not bad:
                return True
        else:
            bad = None
        if self.scheme.interpolates:
            return False
        what = "are not known at trace time" if bad is None else f"has one at {bad[0][0]} of the way from t0 to t1"
        raise ValueError(
            f"ts {what}, which may be no end of one of the {self.n_steps} steps, and scheme {self.scheme.name!r} has "
            "no interpolant; ask for ends of steps, or use a scheme that has one"
        )

    def indices(self, problem: Problem) -> np.ndarray:
        """Which ends of steps known asked times are, int32 `[n]`."""
        return np.array([round(f * self.bound) for f, _ in problem.known_ts or ()], np.int32)

    def begin(self, problem: Problem) -> tuple[Clock, PyTree, Any]:
        """The clock before the first step, what the scheme starts with, and the evaluations that took."""
        if jnp.ndim(self.n_steps):
            raise ValueError(
                f"n_steps has shape {jnp.shape(self.n_steps)}: expected a scalar; use jax.vmap for several solves"
            )
        n = self.count()
        wanted = jnp.asarray(self.n_steps, jnp.int32)
        h = problem.span / jnp.maximum(n, 1).astype(problem.span.dtype)
        stuck = unresolved(problem, 0 * h, h) | unresolved(problem, problem.span - h, problem.span)
        result = jnp.where(stuck & (problem.span != 0), Result.STEP_UNDERFLOW, Result.SUCCESS)
        result = jnp.where(jnp.isfinite(problem.span) & jnp.isfinite(problem.t0), result, Result.NON_FINITE)
        result = jnp.where(in_order(problem), result, Result.UNSORTED_TIMES)
        result = jnp.where((wanted >= 1) & (wanted <= self.bound), result, Result.MAX_STEPS)
        zero = jnp.int32(0)
        clock = Clock(
            tau=jnp.zeros_like(problem.span),
            h=jnp.zeros_like(problem.span),
            step=zero,
            rejected=zero,
            error=jnp.zeros_like(problem.span),
            cursor=zero,
            result=result.astype(jnp.int32),
        )
        return clock, None, jnp.int32(0)

    def count(self) -> Any:
        """Steps that are taken: none of a number that is out of range."""
        n = jnp.asarray(self.n_steps, jnp.int32)
        return n if self.length is not None else jnp.where((n >= 1) & (n <= self.bound), n, 0)

    def running(self, clock: Clock) -> jax.Array:
        """Whether another step is due."""
        return clock.step < self.count()

    def arrived(self, clock: Clock) -> jax.Array:
        """Whether the last step has been taken."""
        failed = (clock.result != Result.SUCCESS) & (clock.result != Result.NON_FINITE)
        return (clock.step >= self.count()) & ~failed

    def place(self, problem: Problem, step: Any, tau: Any, end: Any, cursor: Any) -> Place:
        """Step number `step` again, differentiable in the times of the problem; `tau` and `end` follow from it."""
        n = jnp.maximum(self.count(), 1)
        h = problem.span / n.astype(problem.span.dtype)
        last = step == n - 1
        end = jnp.where(last, problem.span, jnp.asarray(step + 1, h.dtype) * h)
        exact = None
        if problem.exact and isinstance(problem.weights, WeightFunction):
            exact = (step, self.n_steps if self.length is not None else n)
        return Place(jnp.asarray(step, h.dtype) * h, h, end, exact)

    def propose(self, problem: Problem, clock: Clock) -> Place:
        """The step to take next."""
        return self.place(problem, clock.step, None, None, None)

    def passed(self, problem: Problem, j: Any, clock: Clock) -> jax.Array:
        """Whether asked time j lies behind the clock, or at it."""
        if problem.known_ts is not None and self.length is not None and self.lands(problem):
            return jnp.asarray(self.indices(problem))[j] <= clock.step
        return (problem.ts[j] <= clock.tau) | (clock.step >= self.count())

    def among(self, problem: Problem, begin: Any, end: Any) -> FixedStep:
        """The same density of steps on a part of the problem: what a backward solve between asked times takes."""
        n, span = self.count(), end - begin
        share = jnp.where(problem.span == 0, 0, span / jnp.where(problem.span == 0, 1, problem.span))
        steps = jnp.ceil(share * n.astype(share.dtype) - 1e-2)
        return FixedStep(self.scheme, jnp.maximum(steps, 1).astype(jnp.int32), self.bound)


def _checked_steps(n_steps: Any, max_steps: int) -> Any:
    if not is_real(n_steps) or not jnp.issubdtype(jnp.result_type(n_steps), jnp.integer):
        raise ValueError(f"n_steps={shown(n_steps)}: expected an integer of at least 1, or an integer array of no axes")
    if isinstance(n_steps, int | np.integer):
        if not 1 <= n_steps < 2**31:
            raise ValueError(f"n_steps={n_steps}: expected an integer of at least 1 (below 2**31)")
        return int(n_steps)
    if known(n_steps) and np.size(n_steps) and (np.min(np.asarray(n_steps)) < 1 or np.max(n_steps) > max_steps):
        raise ValueError(f"n_steps={n_steps}: expected integers from 1 to max_steps={max_steps}")
    return n_steps


@checked
def pad(solver: FixedStep, n_stages: Count, max_steps: Count | None = None) -> FixedStep:
    """A fixed-step solver whose scheme and number of steps are arrays: one program serves all of at most `n_stages`.

    Stack several (`jax.tree.map(lambda *v: jnp.stack(v), *padded)`) and map over them: all then run as many steps and
    stages as the longest of them.

    Args:
      solver: the one that is turned into arrays.
      n_stages: of the scheme that results.
      max_steps: bound on its number of steps, as of `FixedStep`; solvers that are stacked have the same. The default is
        4,096, or the solver's own number where that is more.

    Raises:
      ValueError: for a scheme that has more stages than that, or is no Runge-Kutta scheme; for more steps.

    Example:
        >>> padded = [pad(FixedStep(scheme, n), 4) for scheme, n in (("euler", 8), ("rk4", 2))]
        >>> stacked = jax.tree.map(lambda *v: jnp.stack(v), *padded)
        >>> run = lambda solver: solve(lambda t, x, k: k * x, 1.0, 1.0, solver=solver).x
        >>> [round(float(x), 3) for x in jax.vmap(run)(stacked)]  # (1 + 1/8)^8, and nearly e
        [2.566, 2.717]
    """
    if not isinstance(solver.scheme, RungeKutta):
        raise ValueError(f"scheme={solver.scheme!r}: only a Runge-Kutta scheme can be turned into arrays")
    most = max_steps or max(MOST, solver.bound)
    return FixedStep(pad_scheme(solver.scheme, n_stages), np.asarray(solver.n_steps, np.int32), most)
