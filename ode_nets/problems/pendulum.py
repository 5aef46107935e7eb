"""The nonlinear pendulum of the ContinuousNet paper, with its exact elliptic solution and one-step training pairs."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from ode_nets.arguments import Count, Finite, Key, Numbers, Positive, checked
from ode_nets.fields import SecondOrder

GRAVITY = -9.81
"""g of ContinuousNet eq. 12, in 1 / s^2 for a pendulum of unit mass and length."""
START = 3 * math.pi / 4
"""rho(0) of ContinuousNet sec. 3.3.1, in radians; released from rest."""
_HALVINGS = 7
"""Steps of the arithmetic-geometric mean: each doubles the digits, so that float64 is full at |rho(0)| < pi - 1e-6."""


@checked
def field(t: Numbers, x: Real[Array, "*lanes 2"], g: Numbers = GRAVITY) -> Real[Array, "*lanes 2"]:
    """The pendulum as a system of first order.

        rho' = v
        v'   = g sin(rho)                                    (ContinuousNet eq. 12)

    Args:
      t: time, not read.
      x: `[..., 2]`, angle rho (0 is the lowest position) and angular velocity v.
      g: scalar below 0, the theta of this field.

    Returns:
      Like `x`.
    """
    return SecondOrder(lambda t, rho, v, g: g * jnp.sin(rho))(t, x, g)


@checked
def energy(x: Real[Array, "*lanes 2"], g: Numbers = GRAVITY) -> Float[Array, "*lanes"]:
    """What a solution conserves: v^2 / 2 + g cos(rho), `[...]` of states `[..., 2]`."""
    return x[..., 1] ** 2 / 2 + g * jnp.cos(x[..., 0])


@checked
def elliptic(u: Numbers, k: Numbers) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Jacobi's functions of modulus k and the complete integral of the first kind.

    By the arithmetic-geometric mean and descending Landen steps (Abramowitz & Stegun 16.4, 17.6).

    Args:
      u: real argument, any shape.
      k: modulus in [0, 1), scalar.

    Returns:
      sn(u), cn(u), dn(u), each like `u`, and the scalar K.
    """
    return _elliptic(u, k, jnp.sqrt((1 - k) * (1 + k)))


def _elliptic(u: Any, k: Any, complementary: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The same, with the complementary modulus sqrt(1 - k^2), whose digits are lost where k is near 1."""
    a, b, c = jnp.ones_like(k), complementary, k
    ratios = []
    for _ in range(_HALVINGS):
        a, b, c = (a + b) / 2, jnp.sqrt(a * b), (a - b) / 2
        ratios.append(c / a)
    phi = 2**_HALVINGS * a * u
    for ratio in reversed(ratios):
        phi = (phi + jnp.arcsin(ratio * jnp.sin(phi))) / 2
    sn, cn = jnp.sin(phi), jnp.cos(phi)
    return sn, cn, jnp.sqrt(1 - (k * sn) ** 2), jnp.pi / (2 * a)


@checked
def period(rho0: Numbers = START, g: Numbers = GRAVITY) -> jax.Array:
    """Time of one swing there and back, 4 K(k) / w0; scalar."""
    _check(rho0, g)
    half = jnp.abs(jnp.asarray(rho0, float)) / 2
    return 4 * _elliptic(jnp.zeros(()), jnp.sin(half), jnp.cos(half))[3] / jnp.sqrt(jnp.abs(jnp.asarray(g, float)))


@checked
def solution(t: Numbers, rho0: Numbers = START, g: Numbers = GRAVITY) -> Float[Array, "*times 2"]:
    """State at time t of a pendulum released from rest, exactly.

        rho(t) = 2 arcsin(k sn(K - w0 t; k)),  k = sin(rho0 / 2),  w0 = sqrt(|g|)
        v(t)   = -2 k w0 cn(K - w0 t; k)

    ContinuousNet eq. 13 with its typographical errors mended: k is that of rho0 in both places.

    Args:
      t: times of any shape `[...]`; may be negative.
      rho0: angle of release, scalar within (-pi, pi).
      g: scalar below 0.

    Returns:
      `[..., 2]` in the default floating dtype.

    Raises:
      ValueError: for known `rho0` or `g` out of range; traced ones give NaN.
    """
    _check(rho0, g)
    w0, half = jnp.sqrt(-jnp.asarray(g, float)), jnp.asarray(rho0, float) / 2
    k, moduli = jnp.sin(half), (jnp.abs(jnp.sin(half)), jnp.cos(half))
    quarter = _elliptic(jnp.zeros(()), *moduli)[3]
    sn, cn, _, _ = _elliptic(quarter - w0 * jnp.asarray(t, float), *moduli)
    return jnp.stack([2 * jnp.arcsin(k * sn), -2 * k * w0 * cn], axis=-1)


@checked
def pairs(
    n: Count, dt: Positive, *, key: Key | None = None, rho0: Finite = START, g: Finite = GRAVITY
) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
    """States and their successors after a time dt, to fit a one-step model to (ContinuousNet eq. 17).

    Args:
      n: number of pairs, at least 1.
      dt: sampling interval, above 0.
      key: PRNG key: pairs start at random times of one period; `None`: at t_k = k dt, one trajectory.
      rho0, g: as in `solution`.

    Returns:
      x_k and x_{k+1}, `[n, 2]` each.

    Raises:
      ValueError: for n below 1, dt not above 0, and as `solution`.
    """
    t = jnp.arange(n) * dt if key is None else jax.random.uniform(key, (n,)) * period(rho0, g)
    return solution(t, rho0, g), solution(t + dt, rho0, g)


def _check(rho0: Any, g: Any) -> None:
    for name, value in (("rho0", rho0), ("g", g)):
        if jnp.ndim(value) or jnp.iscomplexobj(value):
            raise ValueError(
                f"{name} has shape {jnp.shape(value)}, dtype {jnp.result_type(value)}: expected one real number"
            )
    if not isinstance(rho0, jax.core.Tracer) and not abs(float(rho0)) < math.pi:
        raise ValueError(f"rho0={rho0}: expected an angle within (-pi, pi); at pi the pendulum stands")
    if not isinstance(g, jax.core.Tracer) and not -math.inf < float(g) < 0:
        raise ValueError(f"g={g}: expected a finite number below 0, which pulls towards rho = 0")
