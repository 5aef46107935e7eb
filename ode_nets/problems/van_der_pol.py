"""The van der Pol oscillator of the ACA paper: its attracting cycle makes the way back unstable."""

from __future__ import annotations

from jaxtyping import Array, Real

from ode_nets.arguments import Numbers, checked
from ode_nets.fields import SecondOrder

MU = 0.15
"""Coefficient of ACA eq. 82 (dimensionless)."""
START = (2.0, 0.0)
"""y(0) of ACA app. D."""


@checked
def field(t: Numbers, y: Real[Array, "*lanes 2"], mu: Numbers) -> Real[Array, "*lanes 2"]:
    """The oscillator as a system of first order.

        dy1/dt = y2
        dy2/dt = (mu - y1^2) y2 - y1                         (ACA eq. 81-82, mu = 0.15)

    Args:
      t: time, not read.
      y: `[..., 2]`.
      mu: scalar, the theta of this field.

    Returns:
      Like `y`.
    """
    return SecondOrder(lambda t, y1, y2, mu: (mu - y1**2) * y2 - y1)(t, y, mu)


@checked
def power(y: Real[Array, "*lanes 2"], mu: Numbers) -> Real[Array, "*lanes"]:
    """Rate of change of the energy (y1^2 + y2^2) / 2 along a solution.

        dE/dt = (mu - y1^2) y2^2

    Args:
      y: `[..., 2]`.
      mu: scalar.

    Returns:
      `[...]`.
    """
    return (mu - y[..., 0] ** 2) * y[..., 1] ** 2


@checked
def divergence(y: Real[Array, "*lanes 2"], mu: Numbers) -> Real[Array, "*lanes"]:
    """Rate at which areas of initial states grow.

        d/dt log det(dy(t)/dy(0)) = mu - y1^2                (Liouville's formula)

    Negative on most of a cycle: what the flow contracts forward it stretches on the way back, and with it
    every error (ACA eq. 16).

    Args:
      y: `[..., 2]`.
      mu: scalar.

    Returns:
      `[...]`.
    """
    return mu - y[..., 0] ** 2
