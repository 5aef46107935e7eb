"""The toy problem of the ACA paper: linear growth or decay, whose gradient is known exactly."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.arguments import Numbers, checked


@checked
def field(t: Any, z: Numbers, k: Numbers) -> jax.Array:
    """Growth at rate k.

        dz/dt = k z                                          (ACA eq. 27)

    Args:
      t: time, not read.
      z: state of any shape.
      k: rate, a scalar or of the shape of `z`; the theta of this field.

    Returns:
      Like `z`.
    """
    return k * z


@checked
def solution(t: Numbers, z0: Numbers, k: Numbers) -> jax.Array:
    """The state at time t: z0 exp(k t), like `z0`."""
    return z0 * jnp.exp(k * t)


@checked
def loss(z: Numbers) -> jax.Array:
    """L(z(T)) = z(T)^2, summed over the entries of the state (ACA eq. 28); a scalar."""
    return jnp.sum(jnp.square(z))


@checked
def gradient(t: Numbers, z0: Numbers, k: Numbers) -> tuple[jax.Array, jax.Array]:
    """Derivatives of `loss(z(t))` with respect to the initial state and to the rate of each entry.

        dL/dz0 = 2 z0 exp(2 k t)                             (ACA eq. 29)
        dL/dk  = 2 t z0^2 exp(2 k t)

    Args:
      t: end time T.
      z0: initial state of any shape.
      k: rate, a scalar or of the shape of `z0`.

    Returns:
      Two arrays like `z0`; the derivative with respect to a rate shared by all entries is the second's sum.
    """
    growth = jnp.exp(2 * k * t)
    return 2 * z0 * growth, 2 * t * jnp.square(z0) * growth
