"""Basis functions phi_b on [0, 1] and which of them a stage of a step reads, in exact integer arithmetic."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from ode_nets.tableaus import Number

Array = Any  # a NumPy array, for tables made at trace time, or a JAX one
Support = tuple[Any, Any]


def interval_index(step: Any, n_steps: Any, n_basis: Any, offset: Any) -> Any:
    """Which of `n_basis` equal intervals a stage of a step lies in, exactly.

        floor((n_basis * step + offset) / n_steps), clipped to [0, n_basis - 1]      (ContinuousNet eq. 25)

    `offset` is `stage_offset(n_basis, c)`: as floor((m + y) / N) = floor((m + floor(y)) / N) for integers m
    and N, the node enters by one integer, and neither a fraction nor a float is left.

    Args:
      step: step number k, `0 <= k < n_steps`; integer or integer array, traced or not, as all arguments.
      n_steps: number of steps over the whole domain.
      n_basis: number of intervals over the whole domain.
      offset: integer of the stage.

    Returns:
      The index, a Python integer if every argument is one. `n_basis * n_steps` must fit the integer type.
    """
    index = (n_basis * step + offset) // n_steps
    if isinstance(index, int):
        return min(max(index, 0), n_basis - 1)
    return _namespace(index).clip(index, 0, n_basis - 1)


def stage_offset(n_basis: int, c: Number) -> int:
    """The integer by which a stage at node c enters `interval_index`.

        floor(n_basis * c) for c < 1,   ceil(n_basis * c) - 1 for c >= 1

    A stage at the end of its step sees the limit from inside the step: the weights of the interval that ends
    there, not of the one that begins. Exact for fractions, and for floats taken as the fractions they are.
    """
    node = Fraction(c)
    return _node_offset(n_basis, node.numerator, node.denominator)


def _node_offset(n_basis: Any, numerator: Any, denominator: Any) -> Any:
    if not isinstance(numerator, int) and jnp.issubdtype(numerator.dtype, jnp.floating):
        # A node that came as a float may be a jump that rounding has moved.
        inside = _locate(numerator, n_basis, jnp.where(numerator < 1, 1, -1))
        return inside.astype(np.int32)
    scaled = n_basis * numerator
    right, left = scaled // denominator, -(-scaled // denominator) - 1
    if isinstance(right, int):
        return right if numerator < denominator else left
    return jnp.where(numerator < denominator, right, left)


@dataclasses.dataclass(frozen=True)
class Basis(ABC):
    """`n_basis` functions phi_b on u in [0, 1], a hashable value.

        theta(u) = sum_b phi_b(u) theta_b                    (ContinuousNet eq. 24)

    The first function is constant or, in a nodal basis, all functions sum to one.

    Args:
      n_basis: number of functions M, at least 1.

    Raises:
      ValueError: if `n_basis` is not an integer of at least 1.
    """

    n_basis: int

    nodal: ClassVar[bool] = False
    """Whether the coefficients are values of theta at the nodes."""

    @property
    def continuous(self) -> bool:
        """Whether every function is."""
        return True

    def __post_init__(self) -> None:
        if isinstance(self.n_basis, bool) or not isinstance(self.n_basis, int) or self.n_basis < 1:
            raise ValueError(
                f"n_basis={self.n_basis!r}: {type(self).__name__} needs an integer of at least 1"
            )

    @abstractmethod
    def evaluate(self, u: Array, side: Any = 1) -> Array:
        """phi_b(u), shape `[*u.shape, n_basis]` in the dtype of `u`; by NumPy if `u` is a NumPy array.

        At a jump `side=1` takes the limit from the right and `side=-1` the one from the left.
        """

    @abstractmethod
    def nodes(self) -> np.ndarray:
        """Where `BasisExpansion.interpolated` samples, float64 `[n_basis]`, ascending."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """Polynomial degree of the functions between two breaks, up to float64 rounding."""

    def breaks(self) -> np.ndarray:
        """Ends of the pieces on which every function is smooth, float64, from 0.0 to 1.0."""
        return np.array([0.0, 1.0])

    def refined(self, factor: int = 2) -> Basis:
        """A basis of the same kind with `factor` times as many functions, which spans this one."""
        return type(self)(self.n_basis * _checked_factor(factor))

    def n_sections(self, n_steps: int) -> int:
        """Largest number of equal sections of a grid of `n_steps` that share no coefficient."""
        return 1

    def section(self, n_sections: int) -> Basis:
        """The basis of one of `n_sections` sections; see `n_sections`."""
        return self

    def support(self, u: Array, side: Any = 1) -> Support:
        """What theta(u) is made of: `(start, weights)`.

            theta(u) = sum_j weights_j theta_{start + j}

        `weights` has the dtype of `u`; `None` stands for the one coefficient `start` itself.
        """
        return 0, self.evaluate(u, side)

    def node_support(self, step: Any, n_steps: Any, numerator: Any, denominator: Any, dtype: Any) -> Support:
        """`support` at node `numerator / denominator` of a step of a uniform grid; integers, may be traced.

        At a jump the limit is the one from inside the step, exactly; see `interval_index`.
        """
        u = (jnp.asarray(step, dtype) + _quotient(numerator, denominator, dtype)) / n_steps
        return self.support(u.astype(dtype))


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant(Basis):
    """Indicators of M equal intervals: the weights of a residual network (ContinuousNet eq. 25)."""

    nodal: ClassVar[bool] = True

    @property
    def continuous(self) -> bool:
        """Only a single constant is."""
        return self.n_basis == 1

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = _floating(u)
        index = _locate(u, self.n_basis, side)
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
        return (0 if self.n_basis == 1 else _locate(_floating(u), self.n_basis, side)), None

    def node_support(self, step: Any, n_steps: Any, numerator: Any, denominator: Any, dtype: Any) -> Support:
        if self.n_basis == 1:
            return 0, None
        offset = _node_offset(self.n_basis, numerator, denominator)
        return interval_index(step, n_steps, self.n_basis, offset), None


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear(Basis):
    """Hat functions on M equally spaced knots from 0 to 1, continuous; M = 1 is the constant."""

    nodal: ClassVar[bool] = True

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = _floating(u)
        if self.n_basis == 1:
            return _namespace(u).ones_like(u)[..., None]
        distance = abs(u[..., None] * (self.n_basis - 1) - np.arange(self.n_basis, dtype=u.dtype))
        return _namespace(u).maximum(1 - distance, 0)

    def nodes(self) -> np.ndarray:
        return np.array([0.5]) if self.n_basis == 1 else self.breaks()

    @property
    def degree(self) -> int:
        return 1

    def breaks(self) -> np.ndarray:
        pieces = max(self.n_basis - 1, 1)
        return np.arange(pieces + 1) / pieces

    def refined(self, factor: int = 2) -> Basis:
        """Every piece cut into `factor`: `(M - 1) * factor + 1` knots; from the constant, `factor` knots."""
        factor = _checked_factor(factor)
        return PiecewiseLinear(factor if self.n_basis == 1 else (self.n_basis - 1) * factor + 1)

    def support(self, u: Array, side: Any = 1) -> Support:
        if self.n_basis == 1:
            return 0, None
        u = _floating(u)
        start = _locate(u, self.n_basis - 1, side)
        right = u * (self.n_basis - 1) - start.astype(u.dtype)
        return start, _namespace(u).stack([1 - right, right], -1)

    def node_support(self, step: Any, n_steps: Any, numerator: Any, denominator: Any, dtype: Any) -> Support:
        if self.n_basis == 1:
            return 0, None
        pieces = self.n_basis - 1
        start = interval_index(step, n_steps, pieces, _node_offset(pieces, numerator, denominator))
        # The whole part is taken off in integers, so that a late step loses no digits of its weights.
        steps_in = jnp.asarray(pieces * step - start * n_steps, dtype)
        right = ((steps_in + pieces * _quotient(numerator, denominator, dtype)) / n_steps).astype(dtype)
        return start, jnp.stack([1 - right, right])


@dataclasses.dataclass(frozen=True)
class Legendre(Basis):
    """Shifted Legendre polynomials P_b(2u - 1), b < M, with phi_b(1) = 1; orthogonal on [0, 1]."""

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = _floating(u)
        x, xp = 2 * u - 1, _namespace(u)
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


@dataclasses.dataclass(frozen=True)
class Chebyshev(Basis):
    """Shifted Chebyshev polynomials T_b(2u - 1), b < M, of size at most 1."""

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = _floating(u)
        x, xp = 2 * u - 1, _namespace(u)
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


@dataclasses.dataclass(frozen=True)
class Fourier(Basis):
    """1, cos 2 pi u, sin 2 pi u, cos 4 pi u, ..., the first M of them; an even M ends in a lone cosine.

    Every theta in it is periodic: theta(0) = theta(1).
    """

    def evaluate(self, u: Array, side: Any = 1) -> Array:
        u = _floating(u)
        xp = _namespace(u)
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


def gram_matrix(left: Basis, right: Basis) -> np.ndarray:
    """Inner products of two bases on [0, 1], the mass matrix where they are the same.

        G_ij = int_0^1 left_i(u) right_j(u) du

    Returns:
      float64 `[left.n_basis, right.n_basis]`, by Gauss-Legendre quadrature that is exact up to rounding on
      every piece between the breaks of both bases.
    """
    x, w = np.polynomial.legendre.leggauss((left.degree + right.degree) // 2 + 1)
    ends = np.union1d(left.breaks(), right.breaks())
    half = np.diff(ends)[:, None] / 2
    u = (ends[:-1, None] + half * (1 + x)).ravel()
    return left.evaluate(u).T @ ((half * w).ravel()[:, None] * right.evaluate(u))


def _namespace(x: Array) -> Any:
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def _floating(u: Any) -> Array:
    return u if isinstance(u, np.ndarray) else jnp.asarray(u, jnp.result_type(u, jnp.float32))


def _quotient(numerator: Any, denominator: Any, dtype: Any) -> Any:
    """A Python float of Python integers, which may be too large for an array; else an array of `dtype`."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator / denominator
    return jnp.asarray(numerator, dtype) / jnp.asarray(denominator, dtype)


def _checked_factor(factor: int) -> int:
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(
            f"factor={factor!r}: expected an integer of at least 1, the number of parts of each piece"
        )
    return factor


def _locate(u: Array, n_intervals: int, side: Any) -> Array:
    """The interval of [0, 1] that u is in, int32; within rounding of an end, the one on the given side."""
    xp = _namespace(u)
    scaled = u * n_intervals
    nearest = xp.round(scaled)
    at_end = abs(scaled - nearest) <= 4 * n_intervals * jnp.finfo(u.dtype).eps
    scaled = xp.where(at_end, nearest, scaled)
    index = xp.where(side < 0, xp.ceil(scaled) - 1, xp.floor(scaled))
    return xp.clip(index, 0, n_intervals - 1).astype(np.int32)
