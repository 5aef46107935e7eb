"""Batch normalization as a pure function that reports its statistics instead of updating them."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ode_nets.arguments import Rule, checked
from ode_nets.axes import AxisName, mean_over

Params = dict[str, Float[Array, "channels"]]
Affine = Annotated[Params, Rule("'scale' and 'bias' by name, [channels] each", lambda p: {"scale", "bias"} <= {*p})]
Statistics = Annotated[Params, Rule("'mean' and 'var' by name, [channels] each", lambda p: {"mean", "var"} <= {*p})]

EPSILON = 1e-5
"""Added to the variance (dimensionless); the value of the ResNet literature."""


def init_batch_norm(channels: int) -> Params:
    """Scale one and bias zero, `[channels]` each, float32."""
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}


def init_statistics(channels: int) -> Params:
    """Running statistics before any data: mean zero and variance one, `[channels]` each, float32."""
    return {"mean": jnp.zeros(channels), "var": jnp.ones(channels)}


@checked
def batch_norm(
    x: Float[Array, "*lanes channels"], params: Affine, stats: Statistics | None = None, axis_name: AxisName = None
) -> tuple[Float[Array, "*lanes channels"], Params]:
    """Normalize every channel, over batch and space.

        y = scale * (x - mean) / sqrt(var + 1e-5) + bias     (ContinuousNet A.3, eq. 30)

    Args:
      x: `[..., channels]`.
      params: `scale` and `bias`, `[channels]`.
      stats: running `mean` and `var` (`[channels]`) for evaluation; `None` normalizes with the statistics of
        this batch, over the global batch when `x` is sharded under jit.
      axis_name: mesh axis of a `jax.shard_map` over which the batch is spread, in equal parts: the statistics of a
        batch are then those of all of it, by one reduction of means and means of squares together. The variance is
        their difference, whose rounding error is that of mean^2.

    Returns:
      `y` like `x`, and the statistics used: in training the batch's mean and biased variance, float32, to
      be folded into running averages by the caller. No state is read or written.

    Example:
        >>> y, used = batch_norm(jnp.array([[1.0], [3.0]]), {"scale": jnp.ones(1), "bias": jnp.zeros(1)})
        >>> y.round(3).tolist(), used["mean"].tolist(), used["var"].tolist()
        ([[-1.0], [1.0]], [2.0], [1.0])
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if stats is None:
        axes = tuple(range(x.ndim - 1))
        mean = jnp.mean(wide, axes)
        if axis_name is None:
            stats = {"mean": mean, "var": jnp.mean(jnp.square(wide - mean), axes)}
        else:
            mean, square = mean_over(axis_name, jnp.stack([mean, jnp.mean(jnp.square(wide), axes)]))
            stats = {"mean": mean, "var": jnp.maximum(square - jnp.square(mean), 0)}
    factor = params["scale"] * jax.lax.rsqrt(stats["var"] + EPSILON)
    shift = params["bias"] - stats["mean"] * factor
    # Rounded to half precision, two large numbers would not cancel.
    y = wide * factor.astype(wide.dtype) + shift.astype(wide.dtype)
    return y.astype(x.dtype), stats
