"""Chebyshev polynomials."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ode_nets.weights.basis import Basis, floating
from ode_nets.weights.intervals import Array, namespace


@dataclasses.dataclass(frozen=True)
class Chebyshev(Basis):
    """Shifted Chebyshev polynomials T_b(2u - 1), b < M, of size at most 1.

    Example:
        >>> Chebyshev(3).evaluate(jnp.array(1.0))
        Array([1., 1., 1.], dtype=float32)
    """

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = floating(u)
        x, xp = 2 * u - 1, namespace(u)
        values = [xp.ones_like(x), x]
        for b in range(1, self.n_basis - 1):
            values.append(2 * x * values[b] - values[b - 1])
        return xp.stack(values[: self.n_basis], -1)

    def nodes(self) -> np.ndarray:
        """The Chebyshev nodes, the zeros of T_M."""
        return (1 - np.cos(np.pi * (np.arange(self.n_basis) + 0.5) / self.n_basis)) / 2

    @property
    def degree(self) -> int:
        return self.n_basis - 1
