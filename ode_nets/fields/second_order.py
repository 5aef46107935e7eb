"""Equations of second order as fields of positions and velocities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import checked

PyTree = Any


@dataclasses.dataclass(frozen=True)
@checked
class SecondOrder:
    """The field of an equation of second order, r'' = a(t, r, r', theta).

        d/dt (r, v) = (v, a(t, r, v, theta))                 (ACA eq. 32; ContinuousNet eq. 12)

    Args:
      acceleration: pure function `acceleration(t, r, v, theta) -> a`, `a` like `r`.

    The state is a pair `(r, v)` of trees of one structure, named or not, or one array whose last axis holds the
    positions and then as many velocities, `[..., 2 n]`; slopes are made like it.

    Raises:
      ValueError: at trace time, for a state that is neither.

    Example:
        >>> from ode_nets import FixedStep, solve
        >>> falling = SecondOrder(lambda t, r, v, g: -g)
        >>> r, v = solve(falling, (0.0, 1.0), 2.0, solver=FixedStep("midpoint", 1), t1=1.0).x
        >>> float(r), float(v)
        (0.0, -1.0)
    """

    acceleration: Callable[[Any, PyTree, PyTree, PyTree], PyTree]

    def __call__(self, t: Any, x: PyTree, theta: PyTree) -> PyTree:
        """The slope of a state, like it."""
        if isinstance(x, tuple) and len(x) == 2:
            slope = (x[1], self.acceleration(t, *x, theta))
            make: Any = getattr(x, "_make", tuple)
            return make(slope)
        if not isinstance(x, (jax.Array, np.ndarray)) or x.ndim < 1 or x.shape[-1] % 2:
            raise ValueError(
                f"x={jax.tree.map(jnp.shape, x)}: expected a pair (r, v), or one array [..., 2 n] of n positions and "
                "n velocities"
            )
        r, v = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([v, self.acceleration(t, r, v, theta)], axis=-1)
