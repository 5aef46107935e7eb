"""Hat functions on equally spaced knots."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ode_nets.arguments import Count, checked
from ode_nets.weights.basis import Basis, Support, floating, quotient
from ode_nets.weights.intervals import Array, interval_index, locate, namespace, node_offset


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear(Basis):
    """Hat functions on M equally spaced knots from 0 to 1, continuous; M = 1 is the constant.

    Example:
        >>> PiecewiseLinear(3).evaluate(jnp.array(0.25))
        Array([0.5, 0.5, 0. ], dtype=float32)
    """

    nodal: ClassVar[bool] = True

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = floating(u)
        if self.n_basis == 1:
            return namespace(u).ones_like(u)[..., None]
        distance = abs(u[..., None] * (self.n_basis - 1) - np.arange(self.n_basis, dtype=u.dtype))
        return namespace(u).maximum(1 - distance, 0)

    def nodes(self) -> np.ndarray:
        return np.array([0.5]) if self.n_basis == 1 else self.breaks()

    @property
    def degree(self) -> int:
        return min(1, self.n_basis - 1)

    def breaks(self) -> np.ndarray:
        pieces = max(self.n_basis - 1, 1)
        return np.arange(pieces + 1) / pieces

    @checked
    def refined(self, factor: Count = 2) -> Basis:
        """Every piece cut into `factor`: `(M - 1) * factor + 1` knots; from the constant, `factor` knots."""
        return PiecewiseLinear(factor if self.n_basis == 1 else (self.n_basis - 1) * factor + 1)

    def support(self, u: Array, side: Any = 1) -> Support:
        if self.n_basis == 1:
            return 0, None
        u = floating(u)
        start = locate(u, self.n_basis - 1, side)
        right = u * (self.n_basis - 1) - start.astype(u.dtype)
        return start, namespace(u).stack([1 - right, right], -1)

    def node_support(self, step: Any, n_steps: Any, numerator: Any, denominator: Any, dtype: Any) -> Support:
        if self.n_basis == 1:
            return 0, None
        pieces = self.n_basis - 1
        start = interval_index(step, n_steps, pieces, node_offset(pieces, numerator, denominator))
        # The whole part is taken off in integers, so that a late step loses no digits of its weights.
        steps_in = jnp.asarray(pieces * step - start * n_steps, dtype)
        right = ((steps_in + pieces * quotient(numerator, denominator, dtype)) / n_steps).astype(dtype)
        return start, jnp.stack([1 - right, right])
