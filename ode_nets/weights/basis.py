"""What a basis on [0, 1] is: the protocol that `BasisExpansion` reads, and inner products of any two."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ode_nets.arguments import Count, checked
from ode_nets.weights.intervals import Array

Support = tuple[Any, Any]


@dataclasses.dataclass(frozen=True)
@checked
class Basis(ABC):
    """`n_basis` functions phi_b on u in [0, 1], a hashable value.

        theta(u) = sum_b phi_b(u) theta_b                    (ContinuousNet eq. 24)

    The first function is constant or, in a nodal basis, all functions sum to one.

    Args:
      n_basis: number of functions M, at least 1.

    Raises:
      ValueError: if `n_basis` is not an integer of at least 1.

    Example:
        >>> PiecewiseConstant(4).n_basis, PiecewiseConstant(4).nodal, PiecewiseConstant(4).continuous
        (4, True, False)
        >>> PiecewiseConstant(4) == PiecewiseConstant(4)
        True
    """

    n_basis: Count

    nodal: ClassVar[bool] = False
    """Whether the coefficients are values of theta at the nodes."""

    @property
    def continuous(self) -> bool:
        """Whether every function is."""
        return True

    @abstractmethod
    def evaluate(self, u: Array, side: Any = 1) -> Array:
        """phi_b(u), shape `[*u.shape, n_basis]` in the dtype of `u`; by NumPy if `u` is a NumPy array.

        At a jump `side=1` takes the limit from the right and `side=-1` the one from the left.
        """

    @abstractmethod
    def nodes(self) -> Float[np.ndarray, "n_basis"]:
        """Where `BasisExpansion.interpolated` samples, float64, ascending."""

    @property
    @abstractmethod
    def degree(self) -> int:
        """Polynomial degree of the functions between two breaks, up to float64 rounding."""

    def breaks(self) -> np.ndarray:
        """Ends of the pieces on which every function is smooth, float64, from 0.0 to 1.0."""
        return np.array([0.0, 1.0])

    @checked
    def refined(self, factor: Count = 2) -> Basis:
        """A basis of the same kind with `factor` times as many functions, which spans this one."""
        return type(self)(self.n_basis * factor)

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
        u = (jnp.asarray(step, dtype) + quotient(numerator, denominator, dtype)) / n_steps
        return self.support(u.astype(dtype))


def gram_matrix(left: Basis, right: Basis) -> Float[np.ndarray, "n_left n_right"]:
    """Inner products of two bases on [0, 1], the mass matrix where they are the same.

        G_ij = int_0^1 left_i(u) right_j(u) du

    Returns:
      float64, by Gauss-Legendre quadrature that is exact up to rounding on
      every piece between the breaks of both bases.
    """
    x, w = np.polynomial.legendre.leggauss((left.degree + right.degree) // 2 + 1)
    ends = np.union1d(left.breaks(), right.breaks())
    half = np.diff(ends)[:, None] / 2
    u = (ends[:-1, None] + half * (1 + x)).ravel()
    return left.evaluate(u).T @ ((half * w).ravel()[:, None] * right.evaluate(u))


def floating(u: Any) -> Array:
    """A NumPy array as it is, all else as a floating-point JAX array."""
    return u if isinstance(u, np.ndarray) else jnp.asarray(u, jnp.result_type(u, jnp.float32))


def quotient(numerator: Any, denominator: Any, dtype: Any) -> Any:
    """A Python float of Python integers, which may be too large for an array; else an array of `dtype`."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator / denominator
    return jnp.asarray(numerator, dtype) / jnp.asarray(denominator, dtype)
