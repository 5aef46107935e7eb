"""Weights that do not depend on time."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ode_nets.arguments import Domain, Numbers, checked

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
@checked
class Constant:
    """One theta for all times: the weights of NODE18 and of the lecture's time-stationary networks.

        theta(t) = theta

    Args:
      theta: any pytree.
      domain: (t0, t1), the interval that a grid covers, static; theta holds outside of it as well.

    Raises:
      ValueError: for a domain without t0 < t1.

    Example:
        >>> Constant({"w": 2.0}).at(0.3)
        {'w': 2.0}
    """

    theta: PyTree
    domain: Domain = dataclasses.field(default=(0.0, 1.0), metadata={"static": True})

    def __post_init__(self) -> None:
        object.__setattr__(self, "domain", tuple(map(float, self.domain)))

    constant = True
    """theta does not depend on time."""

    @property
    def continuous(self) -> bool:
        """theta does not jump."""
        return True

    @checked
    def at(self, t: Numbers, side: Numbers = 1) -> PyTree:
        """theta, whatever the time."""
        return self.theta

    def n_sections(self, n_steps: int) -> int:
        """One: every step uses all there is."""
        return 1

    def sections(self, n_sections: int) -> Constant:
        """As many copies, leaves `[n_sections, ...]`."""
        repeat = lambda leaf: jnp.broadcast_to(leaf, (n_sections, *jnp.shape(leaf)))
        return Constant(jax.tree.map(repeat, self.theta), self.domain)

    def at_node(self, step: Any, n_steps: Any, numerator: Any, denominator: Any) -> PyTree:
        """theta, at every node of every grid."""
        return self.theta
