"""Indicators of equal intervals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from ode_nets.weights.basis import Basis, Support, floating
from ode_nets.weights.intervals import Array, interval_index, locate, node_offset


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant(Basis):
    """Indicators of M equal intervals: the weights of a residual network (ContinuousNet eq. 25).

    Example:
        >>> PiecewiseConstant(4).evaluate(jnp.array(0.6))
        Array([0., 0., 1., 0.], dtype=float32)
    """

    nodal: ClassVar[bool] = True

    @property
    def continuous(self) -> bool:
        """Only a single constant is."""
        return self.n_basis == 1

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = floating(u)
        index = locate(u, self.n_basis, side)
        return (index[..., None] == np.arange(self.n_basis)).astype(u.dtype)

    def nodes(self) -> np.ndarray:
        return (np.arange(self.n_basis) + 0.5) / self.n_basis

    @property
    def degree(self) -> int:
        return 0

    def breaks(self) -> np.ndarray:
        return np.arange(self.n_basis + 1) / self.n_basis

    def n_sections(self, n_steps: int) -> int:
        return math.gcd(self.n_basis, n_steps)

    def section(self, n_sections: int) -> Basis:
        return PiecewiseConstant(self.n_basis // n_sections)

    def support(self, u: Array, side: Any = 1) -> Support:
        return (0 if self.n_basis == 1 else locate(floating(u), self.n_basis, side)), None

    def node_support(self, step: Any, n_steps: Any, numerator: Any, denominator: Any, dtype: Any) -> Support:
        if self.n_basis == 1:
            return 0, None
        offset = node_offset(self.n_basis, numerator, denominator)
        return interval_index(step, n_steps, self.n_basis, offset), None
