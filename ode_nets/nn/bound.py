"""The objective of latent variable models of series: likelihood, divergence and bound, each a pure function."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from ode_nets.arguments import Rule, Scalar, checked, is_real
from ode_nets.trees import known

Deviation = Annotated[
    Any, Rule("a number above 0", lambda x: is_real(x) and not np.ndim(x) and (not known(x) or x > 0))
]
Samples = Annotated[Real[Array, "K *shape"], Rule("an array of real numbers [K, ...], K at least 1", len)]


@checked
def gaussian_log_likelihood(
    x: Real[Array, "... n features"],
    values: Real[Array, "*lanes n features"],
    mask: Bool[Array, "*lanes n features"] | None = None,
    sigma: Deviation = 1.0,
) -> Float[Array, "..."]:
    """Mean log density of what was observed of each series, under predictions with Gaussian noise.

        log p = mean over observed (k, i) of -((v_ki - x_ki) / sigma)^2 / 2 - log(sigma) - log(2 pi) / 2

    Args:
      x: predictions, `[..., n, features]`; leading axes beyond those of `values` are samples.
      values: data, `[..., n, features]`; what stands in masked entries, NaN included, changes nothing.
      mask: boolean, like `values`: what was observed; `None` for everything.
      sigma: standard deviation of the noise, above 0, in the unit of the values.

    Returns:
      `[...]`, of the shape of x without its last two axes; 0 for a series of which nothing was observed.

    Raises:
      ValueError: for x that is not like the values behind the axes of its samples.

    Example:
        >>> values = jnp.array([[0.5], [jnp.nan]])  # -1/8 - log(2 pi)/2
        >>> round(float(gaussian_log_likelihood(jnp.zeros((2, 1)), values, ~jnp.isnan(values))), 3)
        -1.044
    """
    if x.shape[max(x.ndim - values.ndim, 0) :] != values.shape:
        raise ValueError(f"x has shape {x.shape}: expected that of values, {values.shape}, behind axes of samples")
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    # The difference is masked, and not the density: a NaN times 0 would come back in the gradient.
    scaled = jnp.where(mask, x - jnp.where(mask, values, 0), 0) / sigma
    count = mask.sum((-2, -1))
    total = -jnp.sum(scaled**2, (-2, -1)) / 2 - count * (jnp.log(sigma) + math.log(2 * math.pi) / 2)
    return total / jnp.maximum(count, 1)


@checked
def gaussian_kl(mean: Real[Array, "*shape"], std: Real[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Divergence of N(mean, std^2) from N(0, 1), entry by entry.

        KL = (mean^2 + std^2 - 1) / 2 - log(std)

    Args:
      mean, std: of one shape; std above 0. The sum over the last axis is the divergence of a vector.

    Example:
        >>> gaussian_kl(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]))
        Array([0., 2.], dtype=float32)
    """
    return (mean**2 + std**2 - 1) / 2 - jnp.log(std)


@checked
def importance_bound(
    log_likelihood: Samples, kl: Real[Array, ""] | Real[Array, "*shape"], weight: Scalar = 1.0
) -> Float[Array, "*shape"]:
    """The bound on the log evidence from several samples, with the divergence in closed form.

        log( 1/K sum_k exp( log p(x | z_k) - weight * KL ) )

    With one sample it is the usual bound. Latent ODEs take it of likelihoods and divergences that are means over the
    batch (Rubanova et al. 2019, published code), which gives the sample that is best for a batch nearly all of the
    gradient; of those of each series it is nearer to an importance-weighted bound (Burda et al. 2016), whose divergence
    is sampled too.

    Args:
      log_likelihood: `[K, ...]`, a row a sample.
      kl: `[...]`, or a scalar.
      weight: of the divergence.

    Example:
        >>> importance_bound(jnp.array([-1.0, -1.0]), jnp.array(0.5))
        Array(-1.5, dtype=float32)
    """
    return jax.nn.logsumexp(log_likelihood - weight * kl, axis=0) - math.log(log_likelihood.shape[0])
