"""Waves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ode_nets.weights.basis import Basis, floating
from ode_nets.weights.intervals import Array, namespace


@dataclasses.dataclass(frozen=True)
class Fourier(Basis):
    """1, cos 2 pi u, sin 2 pi u, cos 4 pi u, ..., the first M of them; an even M ends in a lone cosine.

    Every theta in it is periodic: theta(0) = theta(1).

    Example:
        >>> Fourier(4).evaluate(jnp.array(0.0))
        Array([1., 1., 0., 1.], dtype=float32)
    """

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = floating(u)
        xp = namespace(u)
        turns = u[..., None] * np.arange(1, self.n_basis // 2 + 1, dtype=u.dtype)
        # Whole turns come off before the multiplication by 2 pi, whose product could not hold their digits.
        angle = 2 * np.pi * (turns - xp.round(turns))
        waves = xp.stack([xp.cos(angle), xp.sin(angle)], -1).reshape(*u.shape, -1)
        return xp.concatenate([xp.ones_like(u)[..., None], waves], -1)[..., : self.n_basis].astype(u.dtype)

    def nodes(self) -> np.ndarray:
        return np.arange(self.n_basis) / self.n_basis

    @property
    def degree(self) -> int:
        # The Legendre series of cos(pi K x) falls to rounding soon after the degree pi K.
        waves = self.n_basis // 2
        return 4 * waves + 32 if waves else 0
