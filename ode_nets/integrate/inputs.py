"""What a user gives, checked: the state, the weights, and what the field returns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def checked_state(x0: PyTree) -> PyTree:
    """A state as arrays.

    Raises:
      ValueError: for leaves that are no arrays of floating point, and where there are none.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x0):
        _check_leaf("x0", path, leaf)
    # With a dtype, so that a Python number turns into an array that promotes like any other.
    x0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.asarray(leaf).dtype), x0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(x0):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            split = "split it into real and imaginary parts, (x.real, x.imag)"
            advice = split if jnp.iscomplexobj(leaf) else "convert it, e.g. with .astype(jnp.float32)"
            raise ValueError(
                f"x0{jax.tree_util.keystr(path)} has dtype {leaf.dtype}: a state must be floating point; {advice}"
            )
    if not jax.tree.leaves(x0):
        raise ValueError("x0 holds no array: expected a pytree of floating-point arrays")
    return x0


def checked_weights(weights: PyTree) -> PyTree:
    """Weights as arrays.

    Raises:
      ValueError: for leaves that are no numbers, named by their place.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        _check_leaf("weights", path, leaf)
    return jax.tree.map(jnp.asarray, weights)


def _check_leaf(name: str, path: Any, leaf: Any) -> None:
    numbers = (jax.Array, np.ndarray, np.generic, int, float, complex)
    if isinstance(leaf, numbers) and not isinstance(leaf, bool) and getattr(leaf, "dtype", None) != np.dtype(object):
        return
    where = f"{name}{jax.tree_util.keystr(path)}"
    if isinstance(leaf, (bool, str)):
        advice = "a setting is no weight: let the field close over it"
    else:
        advice = (
            "only arrays go through a solve; split the model into arrays and the rest, as "
            "arrays, rest = equinox.partition(model, equinox.is_array) does, give the arrays, and let the field "
            "close over the rest"
        )
    raise ValueError(f"{where} is {leaf!r}, a {type(leaf).__name__}: {advice}")


def check_field(x0: PyTree, out: Any) -> None:
    """Check what a field returns.

    Args:
      x0: the state that it is given.
      out: the shapes of what it returns.

    Raises:
      ValueError: unless that is `(dx, aux)` with `dx` like the state.
    """
    if not (isinstance(out, tuple) and len(out) == 2):
        raise ValueError(f"with has_aux the field must return (dx, aux): got {type(out).__name__}")
    dx, expected = out[0], jax.eval_shape(lambda: x0)
    structure: Any = jax.tree.structure(expected)
    if jax.tree.structure(dx) != structure:
        raise ValueError(
            f"the field returned the structure {jax.tree.structure(dx)}: expected that of the state, "
            f"{structure} (with has_aux=True a field may return (dx, aux))"
        )
    for (path, got), want in zip(jax.tree_util.tree_leaves_with_path(dx), jax.tree.leaves(expected), strict=True):
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"the field returned dx{jax.tree_util.keystr(path)} of shape {got.shape} and dtype {got.dtype}: "
                f"expected {want.shape} and {want.dtype}, those of the state"
            )
