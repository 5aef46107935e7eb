"""Weights of a trained model in eight bits, without data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ode_nets.arguments import Variables, checked
from ode_nets.nn import weight_roles
from ode_nets.remanifest.costs import WithParams

PyTree = Any
_LARGEST = 127


class Quantized(NamedTuple):
    """An array in eight bits: `values * scale`.

    Args:
      values: int8, of the array's shape, between -127 and 127.
      scale: of the array's dtype; its shape is that of `values` with 1 for every axis that shares a scale.
    """

    values: jax.Array
    scale: jax.Array


@checked
def quantize(variables: WithParams) -> PyTree:
    """Kernels in int8 with one scale a channel, symmetric about 0, from the weights alone.

        scale = max |w| / 127,  values = round(w / scale)          so that |w - values * scale| <= scale / 2

    to the rounding of the weights' own dtype, in which the scale is rounded upwards. A channel that is not finite has a
    scale that is not, and comes back as NaN.

    The maximum is over all but the last axis, the channels that a kernel gives out, and, where weights are stacked by
    basis function, over each function's own: every coefficient of theta(t) has scales of its own.

    Args:
      variables: `{collection: tree}` with `params` among them, floating.

    Returns:
      The tree with a `Quantized` in the place of each array of `params` that has two axes or more, that of the basis
      not counted. Biases, norms, the parameters of weight ODEs and all other collections are as they are.
      `export_inference` takes it, and writes int8 into what it exports.

    Example:
        >>> kernel = jnp.array([[1.0, -8.0], [-0.5, 4.0]])
        >>> small = quantize({"params": {"head": {"kernel": kernel, "bias": jnp.ones(2)}}})
        >>> small["params"]["head"]["kernel"].values.tolist()
        [[127, -127], [-64, 64]]
        >>> error = dequantize(small)["params"]["head"]["kernel"] - kernel
        >>> bool((abs(error) <= small["params"]["head"]["kernel"].scale / 2).all())
        True
    """
    changed = {"params": jax.tree.map(_quantized, variables["params"], weight_roles(variables["params"]))}
    return {**variables, **changed}


@checked
def dequantize(variables: Variables) -> PyTree:
    """The variables that a network takes, from those of `quantize`; others as they are."""

    def wide(leaf: Any) -> Any:
        if not isinstance(leaf, Quantized):
            return leaf
        product = leaf.values.astype(_exact(leaf.scale)) * leaf.scale.astype(_exact(leaf.scale))
        return product.astype(leaf.scale.dtype)

    return jax.tree.map(wide, variables, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def _quantized(leaf: jax.Array, role: str) -> jax.Array | Quantized:
    stacked = int(role == "expansion")
    if leaf.ndim - stacked < 2 or role == "p":
        return leaf
    largest = jnp.abs(leaf).max(axis=tuple(range(stacked, leaf.ndim - 1)), keepdims=True)
    exact = jnp.where(largest == 0, _LARGEST, largest).astype(_exact(leaf)) / _LARGEST
    scale = exact.astype(leaf.dtype)
    # One that is rounded down would put the largest weight beyond 127.
    scale = jnp.where(scale.astype(exact.dtype) < exact, jnp.nextafter(scale, jnp.full_like(scale, jnp.inf)), scale)
    values = jnp.round(leaf.astype(exact.dtype) / scale.astype(exact.dtype))
    return Quantized(jnp.where(jnp.isfinite(values), values, 0).astype(jnp.int8), scale)


def _exact(leaf: jax.Array) -> Any:
    """The dtype to compute scales in: half precision has too few digits for them."""
    return jnp.promote_types(leaf.dtype, jnp.float32)
