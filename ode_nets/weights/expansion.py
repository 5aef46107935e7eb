"""theta(t) as a combination of basis functions, and its refinement, projection and interpolation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from ode_nets.arguments import Count, Domain, Numbers, checked, shown
from ode_nets.weights.basis import Basis, gram_matrix

PyTree = Any
Matrix = Float[np.ndarray, "n_new n_old"]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
@checked
class BasisExpansion:
    """A weight function in a basis: a pytree whose leaves are the coefficients.

        theta(t; coefficients) = sum_b phi_b(t) coefficients_b         (ContinuousNet eq. 23-25)

    Args:
      basis: the functions phi_b, static.
      coefficients: pytree of floating-point arrays `[n_basis, ...]`.
      domain: (t0, t1), the interval that the basis is stretched over, static; times are clipped to it.

    Raises:
      ValueError: for a leaf that is not floating point or whose leading axis is not `n_basis`, by name, and
        for a domain without t0 < t1.

    Reading is differentiable in the coefficients and, where theta(t) is continuous, in t. A read of a
    piecewise basis touches one coefficient or two, and so does its gradient.

    Example:
        >>> weights = BasisExpansion(PiecewiseConstant(2), jnp.array([1.0, 3.0]))
        >>> float(weights.at(0.75))
        3.0
        >>> weights.refined(2).coefficients  # the same theta(t)
        Array([1., 1., 3., 3.], dtype=float32)
        >>> weights.projected(PiecewiseConstant(1)).coefficients  # by least squares
        Array([2.], dtype=float32)
    """

    basis: Basis
    coefficients: PyTree
    domain: Domain = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", tuple(map(float, self.domain)))
        self._check()

    def _check(self) -> None:
        _check_leaves(self.coefficients, self.basis.n_basis, "coefficients", repr(self.basis))

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """For JAX: the coefficients are data, basis and domain are static."""
        return ((jax.tree_util.GetAttrKey("coefficients"), self.coefficients),), (self.basis, self.domain)

    @classmethod
    def tree_unflatten(cls, static: tuple[Basis, tuple[float, float]], children: Sequence[Any]) -> BasisExpansion:
        """For JAX. Unchecked, because transformations put other things than coefficients in their place."""
        new = object.__new__(cls)
        for name, value in zip(("basis", "domain", "coefficients"), (*static, *children), strict=True):
            object.__setattr__(new, name, value)
        return new

    @property
    def _dtype(self) -> Any:
        """The dtype basis functions are evaluated in: that of the coefficients, at least float32."""
        return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(self.coefficients)))

    @property
    def continuous(self) -> bool:
        """Whether theta(t) has no jumps."""
        return self.basis.continuous

    @property
    def constant(self) -> bool:
        """Whether theta is the same at all times."""
        return self.continuous and self.basis.degree == 0

    @checked
    def at(self, t: Numbers, side: Numbers = 1) -> PyTree:
        """theta(t), leaves without the leading axis; NaN at a time that is NaN.

        Args:
          t: scalar time in the domain, may be traced.
          side: where theta jumps, 1 for the limit from the right and -1 for the one from the left. A time
            within a few roundings of a jump counts as the jump.
        """
        self._check()
        if np.shape(t) != () or jnp.issubdtype(jnp.result_type(t), jnp.complexfloating):
            raise ValueError(f"t={shown(t)}: expected a scalar time, a real number")
        # No time lies in no interval.
        masked = lambda leaf: jnp.where(jnp.isnan(t), jnp.nan, leaf).astype(leaf.dtype)
        return jax.tree.map(masked, self.read(t, side))

    def read(self, t: Any, side: Any = 1) -> PyTree:
        """What `at` gives at a time that is a number, as those of a solve are, without looking whether it is one.

        A solve reads every leaf at every evaluation, and a mask of each would double what there is to compile.
        """
        t0, t1 = self.domain
        if isinstance(t, int | float):
            # A known time is placed in the domain before it is rounded to the precision of the coefficients.
            u = jnp.asarray((t - t0) / (t1 - t0), self._dtype)
        else:
            u = (jnp.asarray(t, jnp.result_type(t, self._dtype)) - t0) / (t1 - t0)
        # Not jnp.clip, which halves the derivative at the ends.
        u = jnp.where(u < 0, 0.0, jnp.where(u > 1, 1.0, u))
        return _combine(self.coefficients, *self.basis.support(u, side))

    def n_sections(self, n_steps: int) -> int:
        """Largest number of equal sections of a grid that share no coefficient; gcd(M, N) for intervals."""
        return self.basis.n_sections(n_steps)

    def sections(self, n_sections: int) -> BasisExpansion:
        """theta(t) on equal sections of the domain that share no coefficient, stacked: leaves `[L, M / L, ...]`.

        A scan over its leaves gives the weight function of each section. Read at the node of a step counted inside
        its section, it is theta of that step: interval floor((M k + o_i) / N) of a piecewise-constant basis, with
        o_i = `stage_offset(M, c_i)`: exact, and never the interval after the step's own end.

        Args:
          n_sections: number of sections L, a divisor of `self.n_sections(N)` for a grid of N steps.

        Raises:
          ValueError: if the basis cannot be cut so.
        """
        self._check()
        if n_sections < 1 or self.basis.n_sections(n_sections) % n_sections:
            raise ValueError(f"n_sections={n_sections}: {self.basis!r} cannot be cut into as many sections")
        basis = self.basis.section(n_sections)
        split = lambda leaf: jnp.reshape(leaf, (n_sections, basis.n_basis, *leaf.shape[1:]))
        return type(self).tree_unflatten((basis, self.domain), (jax.tree.map(split, self.coefficients),))

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """theta at node `numerator / denominator` of a step of a grid of `n_steps` over the whole domain.

        All arguments are integers and may be traced, so one compiled program serves every step count and
        every scheme; `n_basis * n_steps` and `n_basis * denominator` must fit the integer type. The limits at
        jumps are those from inside the step.
        """
        self._check()
        support = self.basis.node_support(step, n_steps, numerator, denominator, self._dtype)
        return _combine(self.coefficients, *support)

    def refined(self, factor: Count = 2) -> BasisExpansion:
        """The same function of time with more coefficients.

            piecewise constant: every interval is split and its coefficient copied  (ContinuousNet sec. 4.4)
            piecewise linear: `factor - 1` knots are inserted in every piece
            polynomials, Fourier: zeros are appended

        Raises:
          ValueError: if `factor` is not an integer of at least 1.
        """
        return self._in(self.basis.refined(factor), refinement_matrix(self.basis, factor))

    @checked
    def projected(self, basis: Basis) -> BasisExpansion:
        """The best approximation in another basis, with fewer functions or more.

            min over new of int |sum_b psi_b(t) new_b - theta(t)|^2 dt             (ContinuousNet sec. 4.4)

        Exact where theta(t) lies in the new basis. One static matrix: linear, differentiable, jit-able.
        """
        return self._in(basis, projection_matrix(self.basis, basis))

    @checked
    def interpolated(self, basis: Basis) -> BasisExpansion:
        """The function in another basis that agrees with theta(t) at the nodes of that basis, `basis.nodes()`.

        Nodes are interval midpoints, knots, Gauss-Legendre or Chebyshev nodes, or equispaced points. A node on a
        jump of theta(t) takes the limit from the right. One static matrix: linear, differentiable, jit-able.
        """
        return self._in(basis, interpolation_matrix(self.basis, basis))

    def _in(self, basis: Basis, matrix: np.ndarray) -> BasisExpansion:
        return BasisExpansion(basis, transform(self.coefficients, matrix), self.domain)


def refinement_matrix(basis: Basis, factor: int = 2) -> Matrix:
    """What `BasisExpansion.refined` multiplies coefficients by, float64."""
    new = basis.refined(factor)
    return interpolation_matrix(basis, new) if basis.nodal else np.eye(new.n_basis, basis.n_basis)


def projection_matrix(old: Basis, new: Basis) -> Matrix:
    """What `BasisExpansion.projected` multiplies coefficients by, float64.

    P = G(new, new)^-1 G(new, old),  G the inner products of `gram_matrix`
    """
    return _tidy(np.linalg.solve(gram_matrix(new, new), gram_matrix(new, old)))


def interpolation_matrix(old: Basis, new: Basis) -> Matrix:
    """What `BasisExpansion.interpolated` multiplies coefficients by, float64.

    P = Psi^-1 Phi,  Psi_ij = psi_j(u_i),  Phi_ij = phi_j(u_i),  u the nodes of the new basis
    """
    u = new.nodes()
    return _tidy(np.linalg.solve(new.evaluate(u), old.evaluate(u)))


@checked
def transform(tree: PyTree, matrix: Real[np.ndarray, "n_new n_old"]) -> PyTree:
    """Apply a static matrix to the leading axis of every leaf.

        new_i = sum_j matrix_ij old_j

    The coefficients' matrix serves all that is stacked like them: optimizer moments, batch statistics.
    A projection has entries of both signs unless both bases are piecewise constant, so variances and second
    moments may then turn negative.

    Args:
      tree: leaves `[n_old, ...]`, floating point; dtypes are kept.
      matrix: known at trace time.

    Returns:
      The tree with leaves `[n_new, ...]`. A matrix that only selects rows copies them bit by bit.

    Raises:
      ValueError: for a leaf of another dtype or leading axis, by name.
    """
    _check_leaves(tree, matrix.shape[1], "tree", f"a matrix of shape {matrix.shape}")
    rows = matrix.argmax(1)
    if np.array_equal(matrix, np.eye(matrix.shape[1])[rows]):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)
    return jax.tree.map(lambda leaf: _contract(matrix, leaf), tree)


def _tidy(matrix: np.ndarray) -> np.ndarray:
    """Zeros and ones that rounding has blurred, sharp again, so that what is copied is copied exactly."""
    whole = np.round(matrix)
    return np.where(np.abs(matrix - whole) < 1e-13, whole, matrix)


def _contract(weights: Any, leaf: Any) -> Any:
    """sum_j weights_[i]j leaf_j in at least float32: accelerators would otherwise round the factors."""
    dtype = jnp.result_type(jnp.float32, leaf.dtype)
    weights, wide = jnp.asarray(weights, dtype), jnp.asarray(leaf, dtype)
    return jnp.tensordot(weights, wide, 1, precision=jax.lax.Precision.HIGHEST).astype(leaf.dtype)


def _combine(tree: PyTree, start: Any, weights: Any) -> PyTree:
    """theta from the coefficients and a `Support`."""

    def read(leaf: Any) -> Any:
        if weights is None:
            static = isinstance(start, int)
            return leaf[start] if static else jax.lax.dynamic_index_in_dim(leaf, start, keepdims=False)
        width = weights.shape[0]
        part = leaf if width == leaf.shape[0] else jax.lax.dynamic_slice_in_dim(leaf, start, width)
        return _contract(weights, part)

    return jax.tree.map(read, tree)


def _check_leaves(tree: PyTree, n_basis: int, name: str, owner: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = name + jax.tree_util.keystr(path)
        dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{where} has dtype {dtype or type(leaf).__name__}: expected a floating-point array; keep "
                "integers out of the tree or convert them"
            )
        if not shape or shape[0] != n_basis:
            raise ValueError(
                f"{where} has shape {shape}: expected a leading axis of {n_basis}, as {owner} has it; "
                "stack one entry a basis function"
            )
