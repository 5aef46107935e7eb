"""What a solve gives."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from ode_nets.lanes import read
from ode_nets.trees import known, pytree

PyTree = Any


class Result(enum.IntEnum):
    """Result code of a solve. Anything but `SUCCESS` means that the state is not the solution.

    Example:
        >>> Result(1).name
        'MAX_STEPS'
    """

    SUCCESS = 0
    MAX_STEPS = 1
    """More steps were needed, or asked for, than `max_steps`."""
    STEP_UNDERFLOW = 2
    """A step so small that it does not move the clock, or that the controller gave up."""
    NON_FINITE = 3
    """A state, a slope, a report or an argument left the finite numbers."""
    UNSORTED_TIMES = 4
    """Asked times, known only when the program runs, that are not in order from t0 to t1."""


REMEDIES = {
    Result.MAX_STEPS: "more than max_steps were needed, or asked for: raise max_steps, loosen rtol and atol, or, "
    "if the problem is stiff, take an implicit scheme, Adaptive(DiffraxScheme(diffrax.Kvaerno5()), ...)",
    Result.STEP_UNDERFLOW: "steps became too small to move the clock: the solution may have a singularity before t1, "
    "or tolerances are below rounding; loosen rtol and atol, end earlier, or compute in float64 (jax_enable_x64)",
    Result.NON_FINITE: "a state, a slope or an argument left the finite numbers: look at x0, the weights and the "
    "field there; take smaller steps (n_steps, first_step, rtol), or an implicit scheme for a stiff problem",
    Result.UNSORTED_TIMES: "ts are not in order from t0 to t1: sort them in the direction of integration",
}
"""What each failure means, and what to do."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """The accepted steps of a solve.

    Attributes:
      t: times at which they start, in the order of integration; infinite behind the last.
      h: signed sizes; 0 behind the last.
      n: how many there are.

    Example:
        >>> solution = solve(lambda t, x, k: k * x, 1.0, 1.0, solver=FixedStep("rk4", 2), dense=True)
        >>> solution.steps.t, solution.steps.h
        (Array([0. , 0.5], dtype=float32), Array([0.5, 0.5], dtype=float32))
    """

    t: Float[Array, "*lanes max_steps"]
    h: Float[Array, "*lanes max_steps"]
    n: Int32[Array, "*lanes"]


@pytree("steps", "tau", "x", "inside", "t0", "sign")
@dataclasses.dataclass(frozen=True, eq=False)
class Interpolation:
    """The solution at any time between t0 and t1: what `solve(..., dense=True)` keeps of every step.

    Calling it is differentiable in the time and, through the solve, in all that the solve depends on.

    Example:
        >>> solution = solve(lambda t, x, k: k * x, 1.0, 1.0, solver=Adaptive("dopri5", rtol=1e-5), dense=True)
        >>> round(float(solution.dense(0.3)), 3), round(float(jax.grad(solution.dense)(0.3)), 3)  # exp(0.3) twice
        (1.35, 1.35)
    """

    scheme: Any
    steps: Steps
    tau: Float[Array, "*lanes max_steps"]
    """Where the steps start, as |t - t0|; infinite behind the last."""
    x: PyTree
    inside: PyTree
    t0: Any
    sign: Any

    def __call__(self, t: Any) -> PyTree:
        """The state at time t, or at several: leaves `[*t.shape, ...]`. NaN outside of what was integrated.

        x(t_n + s h) = x_n + h * sum_i b_i(s) k_i, for a Runge-Kutta scheme

        Raises:
          ValueError: for the solution of several lanes, outside of the `jax.vmap` that made them.
        """
        if self.tau.ndim != 1:
            raise ValueError(
                f"a dense solution of lanes {self.tau.shape[:-1]}: expected that of one; evaluate each in its own, "
                "jax.vmap(lambda dense: dense(t))(solution.dense)"
            )
        time = self.steps.t.dtype
        t = jnp.asarray(t, time)
        if t.ndim:
            states: PyTree = jax.vmap(self)(t)
            return states
        # As far from t0 as the clock of the solve says, which does not feel how far t0 is from zero.
        tau = self.sign * (t - self.t0)
        slack = 8 * jnp.finfo(time).eps * jnp.maximum(jnp.abs(t), jnp.abs(self.t0))
        tau = jnp.where((tau < 0) & (tau >= -slack), 0, tau)
        passed = jnp.searchsorted(self.tau, tau, side="right").astype(jnp.int32)
        i = jnp.clip(passed - 1, 0, jnp.maximum(self.steps.n - 1, 0))
        start, h = self.tau[i], self.steps.h[i]
        size = jnp.abs(h)
        s = jnp.where(h == 0, 0, tau - start) / jnp.where(h == 0, 1, size)
        state = self.scheme.interpolate(read(self.inside, i), read(self.x, i), h, s)
        outside = (passed == 0) | (tau - start > size * (1 + 8 * jnp.finfo(time).eps) + slack)
        return jax.tree.map(lambda leaf: jnp.where(outside, jnp.nan, leaf).astype(leaf.dtype), state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Solution:
    """What a solve gives.

    Attributes:
      x: the state at `t1`, a pytree like `x0`; with `ts`, every leaf has a leading axis `[len(ts), ...]`.
      aux: what the field reported, summed over the stages of accepted steps that the state depends on.
      nfe: field evaluations of the forward pass, rejected trials included; -1 where a scheme cannot
        tell (implicit ones).
      n_accepted: accepted steps.
      n_rejected: rejected trials.
      result: a `Result`.
      dense: with `dense=True`, the `Interpolation`: `solution.dense(t)` is the state at any time; else `None`.

    Example:
        >>> solution = solve(lambda t, x, k: k * x, 1.0, 1.0, solver=FixedStep("euler", 2))
        >>> solution
        Solution(x=2.25, nfe=2, n_accepted=2, n_rejected=0, result=SUCCESS)
    """

    x: PyTree
    aux: PyTree
    nfe: Int32[Array, "*lanes"]
    n_accepted: Int32[Array, "*lanes"]
    n_rejected: Int32[Array, "*lanes"]
    result: Int32[Array, "*lanes"]
    dense: Interpolation | None = None

    @property
    def steps(self) -> Steps:
        """Times and sizes of the accepted steps.

        Raises:
          ValueError: unless the solve was asked for `dense=True`.
        """
        if self.dense is None:
            raise ValueError("steps are kept with what lies between them: call solve(..., dense=True)")
        return self.dense.steps

    def raise_for_result(self) -> None:
        """Turn a solve that failed into an error, outside of jit.

        Where the result is not known, inside of `jax.jit`, `jax.vmap` or a differentiation, nothing happens: look at
        the result of what comes out.

        Raises:
          RuntimeError: with the name of the result, what it means and what to do; of several lanes, how many.

        Example:
            >>> solution = solve(lambda t, x, k: x**2, 1.0, 1.0, solver=Adaptive("dopri5"), t1=2.0)
            >>> solution.raise_for_result()  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            RuntimeError: the solve ended in STEP_UNDERFLOW after ... steps, ...
        """
        if not known(self.result):
            return
        results = np.asarray(self.result)
        failed = np.ravel(results)[np.ravel(results) != Result.SUCCESS]
        if not failed.size:
            return
        lanes = f" in {failed.size} of {results.size} lanes," if results.ndim else ""
        worst = Result(int(failed[0]))
        steps = "" if results.ndim else f" after {int(self.n_accepted)} steps,"
        raise RuntimeError(f"the solve ended in {worst.name}{lanes}{steps} {REMEDIES[worst]}")

    def __repr__(self) -> str:
        """Short, with the name of the result where it is known."""
        values = {name: getattr(self, name) for name in ("x", "nfe", "n_accepted", "n_rejected", "result")}
        if known(self.result):
            values["result"] = _names(np.asarray(self.result))
        shown = [f"{name}={_short(value)}" for name, value in values.items()]
        return f"Solution({', '.join(shown + ['dense'] * (self.dense is not None))})"


def _names(results: np.ndarray) -> str:
    """Of result codes: the name, or how often there is each."""
    if not results.ndim:
        return Result(int(results)).name
    codes, counts = np.unique(results, return_counts=True)
    return " ".join(f"{Result(int(code)).name}*{count}" for code, count in zip(codes, counts, strict=True))


def _short(value: Any) -> str:
    """Numbers as they are, arrays by dtype and shape."""
    if isinstance(value, str):
        return value
    if not known(value):
        return f"{jax.tree.map(jnp.shape, value)} traced"
    leaf = lambda a: _Shown(f"{a}" if not jnp.ndim(a) else f"{jnp.result_type(a)}{list(jnp.shape(a))}")
    return repr(jax.tree.map(leaf, value))


class _Shown(str):
    """Text without quotation marks."""

    def __repr__(self) -> str:
        return str(self)


def mark_failed(x: PyTree, good: jax.Array) -> PyTree:
    """`x` where `good`, else NaN, by a product, so that gradients turn NaN too."""

    def leaf(a: jax.Array) -> jax.Array:
        factor = jnp.where(good, 1.0, jnp.nan).astype(a.dtype)
        return a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim))

    return jax.tree.map(leaf, x)
