"""What a solve gives."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.lanes import read
from ode_nets.trees import pytree

PyTree = Any


class Result(enum.IntEnum):
    """Result code of a solve. Anything but `SUCCESS` means that the state is not the solution."""

    SUCCESS = 0
    MAX_STEPS = 1
    """More steps were needed, or asked for, than `max_steps`."""
    STEP_UNDERFLOW = 2
    """A step so small that it does not move the clock, or that the controller gave up."""
    NON_FINITE = 3
    """A state, a slope, a report or an argument left the finite numbers."""
    UNSORTED_TIMES = 4
    """Asked times, known only when the program runs, that are not in order from t0 to t1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steps:
    """The accepted steps of a solve.

    Attributes:
      t: times at which they start, `[max_steps]`, in the order of integration; infinite behind the last.
      h: signed sizes, `[max_steps]`; 0 behind the last.
      n: int32 scalar, how many there are.
    """

    t: jax.Array
    h: jax.Array
    n: jax.Array


@pytree("steps", "x", "inside", "t0", "sign")
@dataclasses.dataclass(frozen=True, eq=False)
class Interpolation:
    """The solution at any time between t0 and t1: what `solve(..., dense=True)` keeps of every step.

    Calling it is differentiable in the time and, through the solve, in all that the solve depends on.
    """

    scheme: Any
    steps: Steps
    x: PyTree
    inside: PyTree
    t0: Any
    sign: Any

    def __call__(self, t: Any) -> PyTree:
        """The state at time t, or at several: leaves `[*t.shape, ...]`. NaN outside of what was integrated.

        x(t_n + s h) = x_n + h * sum_i b_i(s) k_i, for a Runge-Kutta scheme
        """
        time = self.steps.t.dtype
        t = jnp.asarray(t, time)
        if t.ndim:
            states: PyTree = jax.vmap(self)(t)
            return states
        passed = jnp.searchsorted(self.sign * self.steps.t, self.sign * t, side="right").astype(jnp.int32)
        i = jnp.clip(passed - 1, 0, jnp.maximum(self.steps.n - 1, 0))
        start, h = self.steps.t[i], self.steps.h[i]
        s = jnp.where(h == 0, 0, t - start) / jnp.where(h == 0, 1, h)
        state = self.scheme.interpolate(read(self.inside, i), read(self.x, i), h, s)
        slack = 8 * jnp.finfo(time).eps
        outside = (passed == 0) | (s > 1 + slack)
        return jax.tree.map(lambda leaf: jnp.where(outside, jnp.nan, leaf).astype(leaf.dtype), state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """What a solve gives.

    Attributes:
      x: the state at `t1`, a pytree like `x0`; with `ts`, every leaf has a leading axis `[len(ts), ...]`.
      aux: what the field reported, summed over the stages of accepted steps that the state depends on.
      nfe: int32 scalar, field evaluations of the forward pass, rejected trials included; -1 where a scheme cannot
        tell (implicit ones).
      n_accepted: int32 scalar, accepted steps.
      n_rejected: int32 scalar, rejected trials.
      result: int32 scalar, a `Result`.
      dense: with `dense=True`, the `Interpolation`: `solution.dense(t)` is the state at any time; else `None`.
    """

    x: PyTree
    aux: PyTree
    nfe: jax.Array
    n_accepted: jax.Array
    n_rejected: jax.Array
    result: jax.Array
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


def poison(x: PyTree, good: jax.Array) -> PyTree:
    """`x` where `good`, else NaN, by a product, so that gradients turn NaN too."""

    def leaf(a: jax.Array) -> jax.Array:
        factor = jnp.where(good, 1.0, jnp.nan).astype(a.dtype)
        return a * factor.reshape(factor.shape + (1,) * (a.ndim - factor.ndim))

    return jax.tree.map(leaf, x)
