"""Legendre polynomials."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ode_nets.weights.basis import Basis, floating
from ode_nets.weights.intervals import Array, namespace


@dataclasses.dataclass(frozen=True)
class Legendre(Basis):
    """Shifted Legendre polynomials P_b(2u - 1), b < M, with phi_b(1) = 1; orthogonal on [0, 1].

    Example:
        >>> Legendre(3).evaluate(jnp.array(0.5))
        Array([ 1. ,  0. , -0.5], dtype=float32)
    """

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = floating(u)
        x, xp = 2 * u - 1, namespace(u)
        values = [xp.ones_like(x), x]
        for b in range(1, self.n_basis - 1):
            values.append(((2 * b + 1) * x * values[b] - b * values[b - 1]) / (b + 1))
        return xp.stack(values[: self.n_basis], -1)

    def nodes(self) -> np.ndarray:
        """The Gauss-Legendre nodes."""
        return (1 + np.polynomial.legendre.leggauss(self.n_basis)[0]) / 2

    @property
    def degree(self) -> int:
        return self.n_basis - 1
