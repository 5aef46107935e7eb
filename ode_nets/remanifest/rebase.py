"""Refinement, projection and interpolation of a network: another basis, with all that is stacked like its coefficients.

Every function takes a description (`net`) and its variables and changes neither. Coefficients are what `weight_roles`
says they are, in parameters, batch statistics and optimizer states alike.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ode_nets.arguments import Count, Variables, checked, shown
from ode_nets.nn import weight_roles
from ode_nets.nn.roles import COEFFICIENTS
from ode_nets.remanifest.exchangeable import check_exchangeable
from ode_nets.weights import (
    Basis,
    PiecewiseConstant,
    interpolation_matrix,
    projection_matrix,
    refinement_matrix,
    transform,
)

PyTree = Any
Fields = dict[tuple[Any, ...], set[Any]]
SECOND_MOMENTS = frozenset({"nu", "nu_max", "sum_of_squares", "v", "v_row", "v_col", "e_g", "e_x", "exp_avg_sq"})
"""What optax calls means of squared gradients in its states, which must never be negative."""
ADAN = frozenset({"m", "v", "n", "g"})
"""Means in the state of Adan, of which `n` is the one of squares, and `v` one of signed differences."""


@checked
def map_coefficients(tree: PyTree, function: Callable[[PyTree], PyTree]) -> PyTree:
    """Apply a function to every leaf that is stacked by basis function, wherever it is in a tree; see `weight_roles`.

    Args:
      tree: variables, or an optimizer state made of trees like them.
      function: maps one array `[n_basis, ...]` to another.

    Returns:
      The tree with those leaves replaced and all others as they are.
    """
    change = lambda value, role: function(value) if role == "expansion" else value
    return jax.tree.map(change, tree, weight_roles(tree))


@checked
def refine(net: nn.Module, variables: Variables, factor: Count = 2) -> tuple[nn.Module, PyTree]:
    """The same theta(t) with more coefficients, solved with as many times the steps.

    The refinement of training (ContinuousNet sec. 5.2): N_t and M grow together.

    Args:
      net: a model with `basis` and a `FixedStep` as `solver`.
      variables: `{collection: tree}`: `params`, `batch_stats`, and optimizer states under any other name.
      factor: of both.

    Returns:
      The refined description and its variables. Under one and the same solver both compute the same function,
      wherever the new intervals of the batch statistics lie inside the old ones: always, but for a piecewise
      linear basis of two knots or more, whose statistics are averaged over intervals that overlap.

    Raises:
      ValueError: for a net without a basis or a solver, a solver without a step count, a factor that is not an
        integer of at least 1, or variables without coefficients, as one collection in the place of all has none.

    Example:
        >>> net = OdeBlock(MLP(2), PiecewiseConstant(2), FixedStep("rk4", 2))
        >>> variables = {"params": {"coefficients": jnp.array([1.0, 3.0])}}  # as net.init shapes them
        >>> deeper, finer = refine(net, variables)
        >>> deeper.basis, deeper.solver, finer["params"]["coefficients"].tolist()
        (PiecewiseConstant(n_basis=4), FixedStep(rk4, 4), [1.0, 1.0, 3.0, 3.0])
    """
    check_exchangeable(net, "basis", "solver")
    old = _basis_of(net)
    if not hasattr(net.solver, "refined"):
        raise ValueError(f"net.solver={net.solver!r}: only a FixedStep has a number of steps to multiply")
    deeper = net.clone(solver=net.solver.refined(factor))
    return _rebased(deeper, variables, old.refined(factor), refinement_matrix(old, factor))


@checked
def project(net: nn.Module, variables: Variables, basis: Basis) -> tuple[nn.Module, PyTree]:
    """The L2 projection of theta(t) onto another basis, without data (ContinuousNet sec. 4.4).

    Batch statistics, which are kept by equal intervals, are averaged over as many new intervals; where training did
    not meet them all, they are to be estimated afterwards, by `restat`. Second moments of an optimizer, as Adam's, are
    mapped to an upper bound of what those of mapped gradients are, as a projection has entries of both signs.

    Args:
      net, variables: as in `refine`.
      basis: the new one, with fewer functions or more.

    Returns:
      The description in the new basis, with its solver as it is, and its variables.

    Raises:
      ValueError: for a net without a basis, or variables without coefficients.

    Example:
        >>> net = OdeBlock(MLP(2), PiecewiseConstant(2), FixedStep("rk4", 2))
        >>> variables = {"params": {"coefficients": jnp.array([1.0, 3.0])}}  # as net.init shapes them
        >>> small, coarse = project(net, variables, PiecewiseConstant(1))
        >>> small.basis, coarse["params"]["coefficients"].tolist()
        (PiecewiseConstant(n_basis=1), [2.0])
    """
    return _rebased(net, variables, basis, projection_matrix(_basis_of(net), basis))


@checked
def interpolate(net: nn.Module, variables: Variables, basis: Basis) -> tuple[nn.Module, PyTree]:
    """theta(t) sampled at the nodes of another basis, without data.

    Args, results and errors as of `project`.

    Example:
        >>> net = OdeBlock(MLP(2), PiecewiseConstant(2), FixedStep("rk4", 2))
        >>> variables = {"params": {"coefficients": jnp.array([1.0, 3.0])}}  # as net.init shapes them
        >>> linear, sampled = interpolate(net, variables, PiecewiseLinear(2))
        >>> linear.basis, sampled["params"]["coefficients"].tolist()
        (PiecewiseLinear(n_basis=2), [1.0, 3.0])
    """
    return _rebased(net, variables, basis, interpolation_matrix(_basis_of(net), basis))


def _basis_of(net: Any) -> Basis:
    check_exchangeable(net, "basis")
    basis: Basis = net.basis
    return basis


def _rebased(net: nn.Module, variables: PyTree, basis: Basis, matrix: np.ndarray) -> tuple[nn.Module, PyTree]:
    if variables and "expansion" not in jax.tree.leaves(weight_roles(variables)):
        raise ValueError(
            f"variables={shown(dict(variables))}: expected coefficients of an OdeBlock in them; give what net.init "
            "returned, by collection, as in {'params': ...}"
        )
    intervals = projection_matrix(PiecewiseConstant(_basis_of(net).n_basis), PiecewiseConstant(basis.n_basis))
    changed = {}
    for name, tree in variables.items():
        if name == "params":
            changed[name] = map_coefficients(tree, partial(transform, matrix=matrix))
        elif name == "batch_stats":
            changed[name] = map_coefficients(tree, partial(transform, matrix=intervals))
        else:
            change = partial(_changed, matrix, _fields(tree))
            changed[name] = jax.tree_util.tree_map_with_path(change, tree, weight_roles(tree))
    return net.clone(basis=basis), changed


def _changed(matrix: np.ndarray, fields: Fields, path: tuple[Any, ...], leaf: Any, role: str) -> Any:
    """One array in the new basis; second moments stay at least 0.

    Gradients g that are mapped like the coefficients have a second moment of at most

        E (sum_j A_ij g_j)^2 <= sum_k |A_ik| * sum_j |A_ij| E g_j^2                  (Cauchy-Schwarz)

    whatever their correlations; it is what is taken, and equal to A where rows are weights of an average.
    """
    if role != "expansion":
        return leaf
    if not _is_second_moment(path, fields):
        return transform(leaf, matrix)
    # Adafactor has one number in the place of moments that it does not keep.
    if np.shape(leaf) == (1,) and matrix.shape[1] != 1:
        return leaf
    weights = np.abs(matrix)
    return transform(leaf, weights.sum(1, keepdims=True) * weights)


def _is_second_moment(path: tuple[Any, ...], fields: Fields) -> bool:
    own = [i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
    if not own:
        # A checkpoint restored without a template has dictionaries in place of optax's tuples.
        names = [_name(key) for key in path]
        own = [*range(names.index(COEFFICIENTS))] if COEFFICIENTS in names else []
    return any(_name(path[i]) in ({"n"} if fields[path[:i]] >= ADAN else SECOND_MOMENTS) for i in own)


def _fields(tree: PyTree) -> Fields:
    """The names side by side at each place of a tree."""
    found: Fields = {}
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        for i, key in enumerate(path):
            found.setdefault(path[:i], set()).add(_name(key))
    return found


def _name(key: Any) -> Any:
    return getattr(key, "name", getattr(key, "key", None))
