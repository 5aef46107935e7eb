"""What is differentiated, known while a backward pass is traced: the rest costs it nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

PyTree = Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Moving:
    """Which leaves of a tree are differentiated: a tree of booleans, static."""

    tree: Any


def perturbed(tree: PyTree) -> tuple[PyTree, Moving]:
    """The arrays that a forward rule with `symbolic_zeros` is given, and which of them are differentiated."""
    is_primal = lambda leaf: isinstance(leaf, CustomVJPPrimal)
    inexact = lambda value: jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    values = jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=is_primal)
    flags = jax.tree.map(lambda leaf: bool(leaf.perturbed and inexact(leaf.value)), tree, is_leaf=is_primal)
    return values, Moving(flags)


def instantiate(cotangents: PyTree) -> PyTree:
    """The same cotangents as arrays: those that are known to be zero come as symbols, of the shapes of primals."""
    is_zero = lambda leaf: isinstance(leaf, SymbolicZero)
    array = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if is_zero(leaf) else leaf
    return jax.tree.map(array, cotangents, is_leaf=is_zero)
