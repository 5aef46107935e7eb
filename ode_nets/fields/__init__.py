"""Vector fields as pure init/apply pairs.

A field is any pure `field(t, x, theta) -> dx`, or `-> (dx, aux)` with `has_aux`: the signature of diffrax. A
`Unit` is one with parameters to start from and, where it normalizes, statistics: in training it reports those
of the batch, in evaluation it takes running ones as part of theta. It keeps no state. `MLP` is callable as a
field itself.
"""

from typing import Any, Protocol

import jax

from ode_nets.fields.convolution import convolution
from ode_nets.fields.initializers import kaiming_layer, uniform_layer
from ode_nets.fields.mlp import MLP
from ode_nets.fields.normalization import batch_norm
from ode_nets.fields.quantities import jacobian_frobenius, kinetic_energy, of_steps, with_quantities
from ode_nets.fields.residual import ResidualUnit
from ode_nets.fields.second_order import SecondOrder


class Unit(Protocol):
    """A right-hand side with parameters: what an `OdeBlock` integrates. Frozen and hashable.

    Example:
        >>> unit = MLP(size=3)
        >>> dx, statistics = unit.apply(unit.init(jax.random.key(0)), jnp.ones((2, 3)))
        >>> dx.shape, statistics
        ((2, 3), {})
    """

    def init(self, key: jax.Array) -> Any:
        """Parameters theta at one time."""

    def init_stats(self) -> Any:
        """Running statistics before any data; `{}` without batch norm."""

    def apply(self, params: Any, x: jax.Array, t: Any = 0.0, stats: Any = None) -> tuple[jax.Array, Any]:
        """`(dx, statistics used)`; `stats=None` normalizes with the batch's own statistics."""


__all__ = [
    "MLP",
    "ResidualUnit",
    "SecondOrder",
    "Unit",
    "batch_norm",
    "convolution",
    "jacobian_frobenius",
    "kaiming_layer",
    "kinetic_energy",
    "of_steps",
    "uniform_layer",
    "with_quantities",
]
